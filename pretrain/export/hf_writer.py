"""A checkpoint becomes a Hugging Face folder, and is proved to be the same model. command.py asks.

convert(source, config, vocab, out, "mlm", as_json=False)
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, PreTrainedModel

from data_prep.cli import InputError, print_json, say
from data_prep.files import write_folder, write_json
from data_prep.json_types import JsonObject
from data_prep.tokens import contract
from data_prep.tokens.tokenizer_folder import TOKENIZER_FILES
from data_prep.untrusted import read_object
from pretrain import hf_folder
from pretrain.attention import SeqLens
from pretrain.export.origin import PROVENANCE, Weights
from pretrain.export.sources import ExportSource, find_source
from pretrain.model import Batch, encode_head_rows, model_from_weights, strip_vocab_padding

HEADS: dict[str, type[PreTrainedModel]] = {
    "pretraining": BertForPreTraining,
    "mlm": BertForMaskedLM,
    "encoder": BertModel,
}
# Largest difference of an output, where the largest is above 1 as a share of it; padding-free and padded sums differ in
# rounding only.
TOLERANCE = 1e-4
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1863 the war was not yet decided; 3,000 men had crossed the river at dawn.",
    "Größe, café, naïve; 北京的冬天很冷。 Привет, мир! مرحبا",
)


def convert(
    source_folder: Path,
    config: Path | None,
    vocab: Path | None,
    out: Path,
    head: str,
    as_json: bool,
    weights: Weights = "raw",
) -> None:
    """Convert, compare, then put into place."""
    source = find_source(source_folder, config, vocab, weights)
    say(f"exporting {source.origin}" + ("" if source.step is None else f" (step {source.step})"))

    def fill(folder: Path) -> None:
        parameters = write_model(folder, source, head)
        write_card(folder, source, head)
        difference = largest_difference(folder, head, trained_model(source), source.identity.vocab_size)
        files = sorted({PROVENANCE, *(path.name for path in folder.iterdir())})
        record = provenance(source, head, difference) | {"parameters": parameters, "files": files}
        write_json(folder / PROVENANCE, record)

    write_folder(out, fill)
    result = json.loads((out / PROVENANCE).read_text())
    say(
        f"{out}: {head}, {result['parameters']:,} parameters, {source.identity.vocab_size} vocabulary "
        f"entries; largest difference to the trainer's outputs {result['largest_difference']:.1e}"
    )
    if as_json:
        print_json({"out": str(out), "step": source.step, "largest_difference": result["largest_difference"]})


def write_model(folder: Path, source: ExportSource, head: str) -> int:
    """Write config.json, model.safetensors and the tokenizer, with the vocabulary's true size; return the number of
    parameters."""
    identity = source.identity
    config = BertConfig(
        **identity.model | {"vocab_size": identity.vocab_size, "initializer_range": source.initializer_range}
    )
    has_pooler = "bert.pooler.dense.weight" in source.weights  # what was trained without sentence pairs has none
    model = HEADS[head](config) if head != "encoder" else BertModel(config, add_pooling_layer=has_pooler)
    # A bare BertModel names its tensors without the prefix of the others.
    prefix = "" if head != "encoder" else "bert."
    state = {
        name.removeprefix(prefix): strip_vocab_padding(name, weight, identity.vocab_size)
        for name, weight in source.weights.items()
        if name.startswith(prefix)
    }
    wanted = dict(model.named_parameters()).keys()
    if missing := wanted - state.keys():
        raise InputError(
            f"{source.origin} lacks {', '.join(sorted(missing))}, which --head {head} needs; choose another head"
        )
    hf_folder.check_finite(source.origin, [(name, state[name]) for name in wanted])
    # strict=False: tied copies (the decoder) are no parameters of their own; the logits are compared afterwards.
    model.load_state_dict({name: state[name] for name in wanted}, strict=False)
    with hf_folder.silenced_libraries():
        hf_folder.save_model(model, folder)
    write_tokenizer(folder, source, config.max_position_embeddings)
    return int(model.num_parameters())


def write_tokenizer(folder: Path, source: ExportSource, positions: int) -> None:
    """Write the tokenizer of the source, opened as transformers will and compared with what made the ids.

    Raises
    ------
    InputError: transformers would give other ids; naming a text, both ids and what to change.
    """
    with contract.settled(source.tokenizer) as vocab:
        for name in TOKENIZER_FILES:
            if (vocab / name).is_file():
                shutil.copyfile(vocab / name, folder / name)
    settings = read_object(folder / contract.CONFIG)
    # Readers cut a text there: beyond its positions the model has no embedding.
    if not 0 < (settings.get("model_max_length") or 0) <= positions:
        write_json(folder / contract.CONFIG, settings | {"model_max_length": positions})
    contract.check(folder, named=source.tokenizer)


def trained_model(source: ExportSource) -> BertForPreTraining:
    """Return the trainer's own model with the source's weights; a head that the source lacks, and nobody looks at, is
    0."""
    identity = source.identity.model
    with torch.device("meta"):
        parameters = dict(BertForPreTraining(BertConfig(**identity)).named_parameters())
    absent = {name: torch.zeros(weight.shape) for name, weight in parameters.items() if name not in source.weights}
    return model_from_weights(identity, source.weights | absent)


def largest_difference(folder: Path, head: str, ours: BertForPreTraining, vocab_size: int) -> float:
    """Return the largest difference between the folder's outputs, by transformers, padded, and the trainer's own.

    Raises
    ------
    InputError: the tokenizer does not fit the model.
    RuntimeError: above TOLERANCE; the folder is not the trained model.
    """
    with hf_folder.silenced_libraries():
        theirs = HEADS[head].from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
        tokenizer = hf_folder.load_tokenizer(folder)
    longest = min(theirs.config.max_position_embeddings, 128)
    texts = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in PROBES]
    random_ids = np.random.default_rng(0).integers(0, vocab_size, size=longest).tolist()
    sequences = [*texts, random_ids]
    padded = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    mask = padded["attention_mask"].bool()
    with torch.no_grad():
        output = theirs(**padded)
        hidden = encode_head_rows(ours, _batch_of(sequences))
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
    scale = max(1.0, *(float(a.abs().max()) for a, _ in pairs))
    if not difference <= TOLERANCE * scale:
        raise RuntimeError(f"the exported model differs from the trained one by {difference:.2e}; nothing was written")
    return difference


def _batch_of(sequences: list[list[int]]) -> Batch:
    """Return sequences end to end, all of whose rows are head rows, with nothing to predict."""
    lengths = [len(ids) for ids in sequences]
    flat = torch.tensor([token for ids in sequences for token in ids])
    rows = torch.arange(len(flat))
    seqlens = SeqLens.from_bounds(np.cumsum([0, *lengths]))
    nothing = torch.zeros(0, dtype=torch.int64)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Batch(
        input_ids=flat,
        token_types=torch.zeros_like(flat),
        positions=positions,
        head_rows=rows,
        mlm_index=nothing,
        cls_index=nothing,
        mlm_labels=nothing,
        nsp_labels=nothing,
        seqlens=seqlens,
        head_seqlens=seqlens,
    )


def provenance(source: ExportSource, head: str, difference: float) -> JsonObject:
    """Return what is known of where the folder comes from."""
    return source.record | {
        "step": source.step,
        "head": head,
        "vocab_sha256": source.identity.vocab_sha256,
        "largest_difference": difference,
    }


def write_card(folder: Path, source: ExportSource, head: str) -> None:
    """Write README.md with the metadata that model hubs read."""
    evaluation = source.evaluation
    results = []
    if evaluation is not None:
        results = [
            EvalResult("fill-mask", "held-out documents", "held-out documents", name, round(evaluation[key], digits))
            for name, key, digits in (
                ("loss", "mlm_loss", 4),
                ("perplexity", "perplexity", 2),
                ("accuracy", "mlm_acc", 4),
            )
            if key in evaluation
        ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction" if head == "encoder" else "fill-mask",
        tags=["bert", "zerobert"],
        model_name=source.name,
        eval_results=results or None,
    )
    model = source.identity.model
    lines = [
        f"---\n{card.to_yaml()}\n---",
        f"# {source.title}",
        f"A BERT of {model['num_hidden_layers']} layers and hidden size {model['hidden_size']}, {source.story}",
    ]
    if evaluation is not None:
        named = (("accuracy", "mlm_acc"), ("pair accuracy", "nsp_acc"))
        shares = "".join(f", {name} {evaluation[key]:.3f}" for name, key in named if key in evaluation)
        at = evaluation.get("step", source.step)
        when = "" if at == source.step else f" after {at:,} steps"
        lines.append(
            f"On held-out documents{when}: MLM loss {evaluation['mlm_loss']:.3f} nats (perplexity "
            f"{evaluation['perplexity']:.1f}){shares}."
        )
    lines.append("`provenance.json` has the settings, versions and the identity of the data.")
    (folder / "README.md").write_text("\n\n".join(lines) + "\n")
    ModelCard.load(folder / "README.md")  # the metadata parse
