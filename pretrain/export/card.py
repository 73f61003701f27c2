"""The model card of an export: README.md, with the metadata that model hubs read, and the curve of its training.

    what it is, and what of it is new           use, in three lines of code
    the data: stores, sources, languages        how it was trained: settings, curve
    how good it is: on held-out text, by source licence

What a run's folder does not tell any more is left out.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data_prep.cli import InputError
from data_prep.fields import is_number
from data_prep.files import sha256_of
from data_prep.store_manifest import StoreManifest, read_manifest
from pretrain.export.heads import CLASSES, PIPELINES
from pretrain.export.origin import Format, Head
from pretrain.export.sources import ExportSource
from pretrain.report.charts import charts_of
from pretrain.report.drawing import as_png
from pretrain.report.history import History
from pretrain.run_facts import run_facts

CURVE = "curve.png"
SOURCES_NAMED = 8  # of a store
NOT_FOR_CARDS = ("Model", "Data", "Vocabulary")  # of run_facts(), said elsewhere
ASKED = {"fill-mask": "The capital of France is [MASK].", "text-generation": "The capital of France"}


class About(NamedTuple):
    """What a card says beside what its source does."""

    head: Head
    format: Format
    new: list[str]  # modules that begin at random
    longest: int  # tokens of a text
    license: str | None = None


def write_card(folder: Path, source: ExportSource, about: About) -> None:
    """Write README.md and, of a run whose metrics are there, the curve of its losses."""
    stores = _stores(source)
    evaluation = source.evaluation or {}
    named = (("loss", "mlm_loss", 4), ("perplexity", "perplexity", 2), ("accuracy", "mlm_acc", 4))
    results = [
        EvalResult("fill-mask", "held-out documents", "held-out documents", name, round(evaluation[key], digits))
        for name, key, digits in named
        if key in evaluation
    ]
    init = source.record.get("train", {}).get("init_from")
    metadata = ModelCardData(
        library_name="sentence-transformers" if about.format == "sentence-transformers" else "transformers",
        pipeline_tag="sentence-similarity" if about.format == "sentence-transformers" else PIPELINES.get(about.head),
        tags=["bert", "zerobert"],
        language=sorted({store.manifest.settings["lang"] for store in stores if store.manifest.settings.get("lang")})
        or None,
        license=about.license,
        base_model=Path(init).name if init else None,
        model_name=source.name,
        eval_results=results or None,
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {source.title}",
        *_what_it_is(source, about),
        *_use(about),
        *_data(stores),
        *_training(folder, source),
        *_results(source),
        *_licence(about.license),
        "`provenance.json` has the settings, versions and the identity of the data.",
    ]
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", "utf-8")
    ModelCard.load(folder / "README.md")  # the metadata parse


def _what_it_is(source: ExportSource, about: About) -> list[str]:
    model = source.identity.model
    positions = model["max_position_embeddings"]
    limit = f"Texts are cut at {about.longest} tokens"
    if about.longest < positions:
        limit += f": of its {positions} positions, those behind were never trained"
    new = f"New, and random until it is trained: {', '.join(about.new)}." if about.new else ""
    return [
        f"A BERT of {model['num_hidden_layers']} layers and hidden size {model['hidden_size']}, {source.story}",
        f"{limit}. {new}".strip(),
    ]


def _use(about: About) -> list[str]:
    """Return three lines of code that ask the model something."""
    task = PIPELINES.get(about.head)
    if about.format == "sentence-transformers":
        lines = [
            "from sentence_transformers import SentenceTransformer",
            'model = SentenceTransformer("FOLDER")',
            'vectors = model.encode(["a text", "another one"])',
        ]
    elif about.format == "onnx":
        lines = [
            "import onnxruntime, transformers",
            'texts = transformers.AutoTokenizer.from_pretrained("FOLDER")(["a text"], return_tensors="np")',
            'outputs = onnxruntime.InferenceSession("FOLDER/model.onnx").run(None, dict(texts))',
        ]
    elif task in (None, "question-answering", "multiple-choice") or about.head == "encoder-decoder":
        name = CLASSES[about.head].__name__
        lines = [
            f"from transformers import AutoTokenizer, {name}",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            f'model = {name}.from_pretrained("FOLDER")',
        ]
    else:
        lines = [
            "from transformers import pipeline",
            f'ask = pipeline("{task}", model="FOLDER")',
            f'print(ask("{ASKED.get(task or "", "A text.")}"))',
        ]
    return ["## Use", "\n".join(["```python", *lines, "```"])]


class _Store(NamedTuple):
    name: str
    passes: float | None
    manifest: StoreManifest


def _stores(source: ExportSource) -> list[_Store]:
    """Return the stores of a run that are still where they were, and what they were."""
    found = []
    for entry in source.record.get("stores", []):
        folder = Path(entry["folder"])
        try:
            if sha256_of(folder / "manifest.json") == entry["identity"]:
                found.append(_Store(folder.name, entry.get("passes"), read_manifest(folder)))
        except (OSError, InputError):  # it is gone: the record has its name and identity
            continue
    return found


def _data(stores: list[_Store]) -> list[str]:
    if not stores:
        return []
    lines = ["| store | language | documents | tokens | sources |", "|---|---|---|---|---|"]
    for name, _, manifest in stores:
        paths = [entry.path for entry in manifest.sources]
        more = len(paths) - SOURCES_NAMED
        named = ", ".join(paths[:SOURCES_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        counts = manifest.counts
        language = manifest.settings.get("lang") or "not stated"
        lines.append(f"| {_cell(name)} | {language} | {counts.documents:,} | {counts.tokens:,} | {_cell(named)} |")
    held_out = sum(store.manifest.counts.held_out_documents for store in stores)
    return ["## Data", "\n".join(lines), f"Held out of training: {held_out:,} documents."]


def _training(folder: Path, source: ExportSource) -> list[str]:
    """Return the settings, and write the curve."""
    if "train" not in source.record:
        return []
    told = run_facts(source.record)  # type: ignore[arg-type]  # what is kept of a RunRecord
    if source.step is not None:
        written = datetime.fromtimestamp(source.origin.stat().st_mtime, UTC).date()
        told["Checkpoint"] = f"step {source.step:,}, {written}"
    rows = [f"| {name} | {_cell(value)} |" for name, value in told.items() if name not in NOT_FOR_CARDS]
    sections = ["## Training", "\n".join(["| setting | value |", "|---|---|", *rows])]
    try:
        history = History.read(Path(source.record["run"]))
        (chart, *_) = charts_of([history])
        (folder / CURVE).write_bytes(as_png(chart, [history], "step"))
    except (InputError, ValueError, LookupError):  # no metrics, or damaged ones
        return sections
    return [*sections, f"![{chart.title}]({CURVE})"]


def _results(source: ExportSource) -> list[str]:
    evaluation = source.evaluation
    if evaluation is None:
        return []
    named = (("accuracy", "mlm_acc"), *([("pair accuracy", "nsp_acc")] if source.has_pairs else []))
    shares = "".join(f", {name} {evaluation[key]:.3f}" for name, key in named if key in evaluation)
    at = evaluation.get("step", source.step)
    when = "" if at == source.step else f" after {at:,} steps"
    sections = [
        "## Results",
        f"On held-out documents{when}: MLM loss {evaluation['mlm_loss']:.3f} nats (perplexity "
        f"{evaluation['perplexity']:.1f}){shares}.",
    ]
    losses = {name: of.get("mlm_loss") for name, of in evaluation.get("by_source", {}).items()}
    known = sorted((loss, name) for name, loss in losses.items() if is_number(loss) and math.isfinite(loss))
    if known:
        rows = [f"| {_cell(name)} | {loss:.3f} |" for loss, name in known]
        sections.append("\n".join(["| held-out text of | MLM loss |", "|---|---|", *rows]))
    return sections


def _licence(name: str | None) -> list[str]:
    said = name or "not stated. Ask whoever trained the model; `--license` of the export puts it here"
    return ["## Licence", f"{said[0].upper()}{said[1:]}." if name is None else said]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
