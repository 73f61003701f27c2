"""Turn a checkpoint into a Hugging Face folder, and prove that it is the same model.

    python -m pretrain.export RUN OUT                        the newest whole checkpoint of a run
    python -m pretrain.export RUN/checkpoints/step-0001000 OUT --head mlm

    OUT/config.json, model.safetensors      what transformers loads
    OUT/tokenizer.json, ...                 the tokenizer that the store was made with
    OUT/README.md, provenance.json          model card; which run, step, data and settings it comes from

The folder is written aside, loaded again with transformers, and its outputs on real and random tokens are compared
with those of the trainer's own model and weights; only then does it get its name. DeepSpeed is not needed. A folder
holds exactly one head's weights, since transformers reports what it does not use: `pretraining` (both heads), `mlm`,
`encoder`.
"""

from data_prep.cli import InputError, print_json, run, say  # first: it finds the project's packages

# isort: split
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, PreTrainedModel

from data_prep.files import write_folder, write_json
from data_prep.store import TOKENIZER_FILES
from pretrain import hf_folder
from pretrain.attention import Layout
from pretrain.checkpoint import Identity, newest_whole, read_manifest, read_weights
from pretrain.model import Batch, encode, from_weights, unpadded

HEADS: dict[str, type[PreTrainedModel]] = {
    "pretraining": BertForPreTraining,
    "mlm": BertForMaskedLM,
    "encoder": BertModel,
}
TOLERANCE = 1e-4  # largest difference of an output; padding-free and padded sums differ in rounding only
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1863 the war was not yet decided; 3,000 men had crossed the river at dawn.",
    "Größe, café, naïve; 北京的冬天很冷。 Привет, мир! مرحبا",
)


@dataclass(frozen=True)
class ExportConfig:
    """What to convert and where to."""

    source: tyro.conf.Positional[Path]
    """a run folder, or one checkpoint of it"""
    out: tyro.conf.Positional[Path]
    """Hugging Face folder to write; an existing one is replaced"""
    head: Literal["pretraining", "mlm", "encoder"] = "pretraining"
    """which head's weights the folder holds beside the encoder's"""
    json: bool = False
    """print one JSON object"""


class Source(NamedTuple):
    """A checkpoint and what its run says about it."""

    checkpoint: Path
    run: Path
    manifest: dict[str, Any]
    identity: Identity
    record: dict[str, Any]  # the run's config.json


def main(config: ExportConfig) -> None:
    """Convert, compare, then put into place."""
    source = find_source(config.source)
    if config.out.exists() and not (config.out / "config.json").is_file() and any(config.out.iterdir()):
        raise InputError(f"{config.out} exists and is no Hugging Face folder; choose another place")
    step = source.manifest["step"]
    say(f"exporting {source.checkpoint} (step {step})")
    weights = read_weights(source.checkpoint, source.manifest["parameters"])
    ours = from_weights(source.identity.model, weights)

    def fill(folder: Path) -> None:
        write_model(folder, source, config.head, weights)
        write_card(folder, source, config.head)
        difference = largest_difference(folder, config.head, ours, source.identity.vocab_size)
        write_json(folder / "provenance.json", provenance(source, config.head, difference))

    write_folder(config.out, fill)
    result = json.loads((config.out / "provenance.json").read_text())
    parameters = sum(tensor.numel() for tensor in weights.values())
    say(
        f"{config.out}: {config.head}, {parameters:,} parameters, {source.identity.vocab_size} vocabulary entries; "
        f"largest difference to the trainer's outputs {result['largest_difference']:.1e}"
    )
    if config.json:
        print_json({"out": str(config.out), "step": step, "largest_difference": result["largest_difference"]})


def find_source(path: Path) -> Source:
    """The checkpoint that `path` means.

    Raises
    ------
    InputError: neither a run with a whole checkpoint nor a whole checkpoint.
    """
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a run folder or a checkpoint folder")
    checkpoint = path if (path / "manifest.json").is_file() else newest_whole(path)
    if checkpoint is None:
        raise InputError(f"{path} is neither a run folder with checkpoints nor a checkpoint")
    manifest = read_manifest(checkpoint)
    run_folder = checkpoint.resolve().parent.parent
    if not (run_folder / "config.json").is_file():
        raise InputError(f"{checkpoint} does not lie in a run folder ({run_folder}/config.json is missing)")
    record = json.loads((run_folder / "config.json").read_text())
    return Source(checkpoint, run_folder, manifest, Identity(**manifest["identity"]), record)


def write_model(folder: Path, source: Source, head: str, weights: dict[str, Tensor]) -> None:
    """config.json, model.safetensors and the tokenizer, with the vocabulary's true size."""
    identity = source.identity
    config = BertConfig(**identity.model | {"vocab_size": identity.vocab_size})
    model = HEADS[head](config)
    # A bare BertModel names its tensors without the prefix of the others.
    prefix = "" if head != "encoder" else "bert."
    state = {
        name.removeprefix(prefix): unpadded(name, weight, identity.vocab_size)
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
    wanted = dict(model.named_parameters()).keys()
    if missing := wanted - state.keys():
        raise InputError(f"{source.checkpoint} lacks {', '.join(sorted(missing))}")
    # strict=False: tied copies (the decoder) are no parameters of their own; the logits are compared afterwards.
    model.load_state_dict({name: state[name] for name in wanted}, strict=False)
    with hf_folder.quiet():
        model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (source.run / "vocab" / name).is_file():
            shutil.copy(source.run / "vocab" / name, folder / name)


def largest_difference(folder: Path, head: str, ours: BertForPreTraining, vocab_size: int) -> float:
    """Largest difference between the folder's outputs in transformers, padded, and the trainer's, padding-free.

    Raises
    ------
    RuntimeError: above TOLERANCE; the folder is not the trained model.
    """
    with hf_folder.quiet():
        theirs = HEADS[head].from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = min(theirs.config.max_position_embeddings, 128)
    texts = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in PROBES]
    random_ids = np.random.default_rng(0).integers(0, vocab_size, size=longest).tolist()
    sequences = [*texts, random_ids]
    padded = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    mask = padded["attention_mask"].bool()
    with torch.no_grad():
        output = theirs(**padded)
        hidden = encode(ours, _batch_of(sequences))
        pairs = [(output.last_hidden_state[mask], hidden)] if head == "encoder" else []
        if head == "mlm":
            pairs = [(output.logits[mask], ours.cls.predictions(hidden)[:, :vocab_size])]
        if head == "pretraining":
            first = torch.tensor([0, *np.cumsum([len(ids) for ids in sequences])[:-1]])
            pooled = ours.bert.pooler(hidden[first, None])  # type: ignore[misc]  # None only where it is left out
            pairs = [
                (output.prediction_logits[mask], ours.cls.predictions(hidden)[:, :vocab_size]),
                (output.seq_relationship_logits, ours.cls.seq_relationship(pooled)),
            ]
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported model differs from the trained one by {difference:.2e}; nothing was written")
    return difference


def _batch_of(sequences: list[list[int]]) -> Batch:
    """Sequences end to end, all rows kept, nothing to predict."""
    lengths = [len(ids) for ids in sequences]
    flat = torch.tensor([token for ids in sequences for token in ids])
    rows = torch.arange(len(flat))
    layout = Layout(tuple(lengths), torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32))
    nothing = torch.zeros(0, dtype=torch.int64)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Batch(
        flat, torch.zeros_like(flat), positions, rows, nothing, nothing, nothing, nothing, layout, kept_layout=layout
    )


def provenance(source: Source, head: str, difference: float) -> dict[str, Any]:
    """Where the folder comes from."""
    return {
        "run": str(source.run),
        "step": source.manifest["step"],
        "head": head,
        "vocab_sha256": source.identity.vocab_sha256,
        "stores": source.record["stores"],
        "train": source.record["train"],
        "deepspeed": source.record["deepspeed"],
        "versions": source.record["versions"],
        "git": source.record["git"],
        "largest_difference": difference,
    }


def write_card(folder: Path, source: Source, head: str) -> None:
    """README.md with the metadata that model hubs read."""
    train, evaluation = source.record["train"], last_evaluation(source)
    results = []
    if evaluation is not None:
        results = [
            EvalResult("fill-mask", "held-out documents", "held-out documents", name, value)
            for name, value in (
                ("loss", round(evaluation["mlm_loss"], 4)),
                ("perplexity", round(evaluation["perplexity"], 2)),
                ("accuracy", round(evaluation["mlm_acc"], 4)),
            )
        ]
    name = train["model"] or Path(train["init_from"]).name
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction" if head == "encoder" else "fill-mask",
        tags=["bert", "zerobert"],
        model_name=name,
        eval_results=results or None,
    )
    lines = [
        f"---\n{card.to_yaml()}\n---",
        f"# {name}, pretrained on {', '.join(Path(store['folder']).name for store in source.record['stores'])}",
        f"A BERT of {source.identity.model['num_hidden_layers']} layers and hidden size "
        f"{source.identity.model['hidden_size']}, pretrained with zerobert: masked language modelling"
        + ("" if train["objective"] == "mlm" else f" and sentence pairs ({train['objective']})")
        + f", {source.manifest['step']:,} steps of {source.record['deepspeed']['train_batch_size']:,} samples of "
        f"{train['seq_len']} tokens.",
    ]
    if evaluation is not None:
        lines.append(
            f"On held-out documents: MLM loss {evaluation['mlm_loss']:.3f} nats (perplexity "
            f"{evaluation['perplexity']:.1f}), accuracy {evaluation['mlm_acc']:.3f}, pair accuracy "
            f"{evaluation['nsp_acc']:.3f}."
        )
    lines.append("`provenance.json` has the settings, versions and the identity of the data.")
    (folder / "README.md").write_text("\n\n".join(lines) + "\n")
    ModelCard.load(folder / "README.md")  # the metadata parse


def last_evaluation(source: Source) -> dict[str, Any] | None:
    """The newest held-out evaluation up to the exported step."""
    try:
        lines = [json.loads(line) for line in (source.run / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return None
    found = [line for line in lines if line["kind"] == "eval" and line["step"] <= source.manifest["step"]]
    return found[-1] if found else None


if __name__ == "__main__":
    run(main, ExportConfig, __doc__)
