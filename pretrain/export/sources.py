"""What export converts: weights under transformers' names, with what they mean and where they come from.

    find_source(path, config, vocab) -> ExportSource

    a run folder, or a checkpoint of one     says everything itself; it may have averaged weights beside the raw ones
    a DeepSpeed checkpoint folder            of any trainer around a transformers BERT. It holds weights only, so
                                             --config and --vocab say the rest, unless the files lie beside them
    a Hugging Face folder                    for another head
    pytorch_model.bin, or NVIDIA's .pt       pickled_format.py
    bert_model.ckpt of google-research/bert  tensorflow_format.py; config and vocabulary beside it, as for the former

The names of others are matched strictly. A wrapper's prefix (`module.`, `model.`, ...) is removed where it leads to the
embeddings; then every name must be one of BertForPreTraining, in its shape, and the encoder must be whole. A decoder
that repeats the embedding is dropped; another one is refused, since an exported folder could not say so.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import InputError, one_line, say
from data_prep.fields import is_number
from data_prep.json_types import JsonObject
from data_prep.tokens.old_tokenizer import whole_tokenizer
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from data_prep.untrusted import read_object
from pretrain.checkpoints.format import Manifest, ModelIdentity, read_state, record_under
from pretrain.checkpoints.slices import index_slices, read_weight
from pretrain.checkpoints.verify import latest_valid_checkpoint, verify_checkpoint
from pretrain.export import deepspeed_format, pickled_format, tensorflow_format
from pretrain.export.origin import (
    Origin,
    Weights,
    beside,
    check_origin,
    find_tag,
    need_vocab,
    read_meaning,
    tensorflow_prefix,
)
from pretrain.export.tensors import StoredWeights
from pretrain.hf_folder import HEADS, check_architecture, check_types, weight_readers
from pretrain.model import COPIES, architecture_of
from pretrain.monitor.lines import read_lines
from pretrain.run_folder import disagreement
from pretrain.run_record import RunRecord
from pretrain.settings.averaging import parse_average
from pretrain.settings.limits import BERT_INITIALIZER_RANGE
from pretrain.settings.shape import model_in_words

TOLD = ("mlm_loss", "perplexity", "mlm_acc", "nsp_acc")  # of an evaluation, on the model card
TASK_HEADS = ("classifier.weight", "classifier.bias", "qa_outputs.weight", "qa_outputs.bias")
LABELS = ("architectures", "id2label", "label2id", "problem_type")
EMBEDDING = "embeddings.word_embeddings.weight"
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # of older versions: 0, 1, 2, ...
OLD_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of TensorFlow's time


class ExportSource(NamedTuple):
    """A model, wherever it was trained."""

    origin: Path  # the folder that was read
    step: int | None
    weights: Mapping[str, Tensor]  # as BertForPreTraining names them, fp32; a head may be absent
    identity: ModelIdentity
    initializer_range: float  # for a config.json
    tokenizer: Path
    name: str
    title: str  # of the model card
    story: str  # how it was trained, after "A BERT of 12 layers and hidden size 768, "
    evaluation: JsonObject | None  # the last one up to `step`, as metrics.jsonl has it, or its loss alone
    record: JsonObject  # for provenance.json
    has_pairs: bool = True  # whether the pooler and the sentence-pair head, where they are there, were ever trained
    trained_length: int | None = None  # tokens; positions beyond are random. None: as its tokenizer says
    task_weights: Mapping[str, Tensor] = MappingProxyType({})  # the head of a fine-tuned folder: "classifier.weight"
    labels: Mapping[str, Any] = MappingProxyType({})  # what its config.json says of it


def find_source(
    path: Path, config: Path | None, vocab: Path | None, weights: Weights = "raw", scratch: Path | None = None
) -> ExportSource:
    """Return the model that `path` means.

    scratch: an empty folder, for a tokenizer.json that has to be made

    Raises
    ------
    InputError: nothing that can be converted, not whole, or not the model that `config` says; without such `weights`.
    """
    origin = check_origin(path, config, vocab, weights)
    if origin == "deepspeed":
        tag = find_tag(path)
        assert tag is not None
        return _from_deepspeed(tag, config, vocab, scratch)
    if origin == "hf":
        return _from_hf(path, config or path, vocab or path, scratch)
    if origin in ("pickle", "tensorflow"):
        return _from_others(path, origin, config, vocab, scratch)
    checkpoint = path if origin == "checkpoint" else latest_valid_checkpoint(path)
    assert checkpoint is not None
    return _from_run(checkpoint, weights)


def _from_run(folder: Path, weights: Weights) -> ExportSource:
    manifest = verify_checkpoint(folder)
    if weights == "averaged" and not manifest.average:
        raise InputError(
            f"{folder} holds no averaged weights; leave out --weights averaged, choose a later checkpoint (--average "
            "last=S keeps none before the last share of the run), or train with --average ema=.999"
        )
    run = folder.resolve().parent.parent
    if wrong := disagreement(run, manifest):
        raise InputError(f"{wrong}; the command that trained the run writes vocab/ and config.json anew")
    name, title, story, record = describe_run(run, manifest, record_under(folder, manifest))
    evaluation = last_evaluation(run, manifest)
    if manifest.average:
        count = read_state(folder, manifest).state.averaged
        say(f"{folder}: {_compared(manifest, evaluation, weights)}")
        record |= {"weights": weights, "average": manifest.average, "averaged_steps": count}
        if weights == "averaged":
            story = f"{story} These weights are the {parse_average(manifest.average).in_words(count)}."
            evaluation = _of_average(evaluation)
    slices, kind = index_slices(folder), "average" if weights == "averaged" else "master"
    return ExportSource(
        origin=folder,
        step=manifest.step,
        weights=StoredWeights(
            {name: partial(read_weight, slices[name, kind], shape) for name, shape in manifest.parameters.items()}
        ),
        identity=manifest.identity,
        initializer_range=_initializer_range(record),
        tokenizer=run / "vocab",
        name=name,
        title=title,
        story=story,
        evaluation=evaluation,
        record={"run": str(run)} | record,
        has_pairs=_has_pairs(record),
        trained_length=trained_length(record, manifest.step, manifest.identity.model["max_position_embeddings"]),
    )


def _has_pairs(record: JsonObject) -> bool:
    """Return whether sentence pairs may have trained a run's pooler: its own, or those of the model it began with."""
    records = [*record.get("segments", []), record]
    objectives = {_objective(one) for one in records}
    return objectives != {"mlm"} or bool(records[0].get("train", {}).get("init_from"))


def trained_length(record: JsonObject, step: int, positions: int) -> int | None:
    """Return the most tokens that a sample of a run had up to `step`, or that the model it began with takes; None where
    the record does not tell."""
    first = [*record.get("segments", []), record][0].get("train", {})
    lengths = [phase["seq_len"] for _, phase, _ in _trained_phases(record, step)]
    if not lengths and "seq_len" not in first:
        return None
    lengths = lengths or [first["seq_len"]]
    if folder := first.get("init_from"):
        said: Any = None
        with suppress(InputError):  # it is gone
            said = read_object(Path(folder) / "tokenizer_config.json").get("model_max_length")
        lengths.append(min(said, positions) if is_number(said) and said > 0 else positions)
    return int(max(lengths))


def describe_run(run: Path, manifest: Manifest, record: RunRecord) -> tuple[str, str, str, JsonObject]:
    """Return name, title and story of a run, and its record for provenance.json; where that is damaged, what the
    checkpoint itself says, which knows less of where it comes from."""
    try:
        train, segments = record["train"], _segments(record)
        name = model_in_words(train) or Path(train["init_from"]).name
        pairs = ", ".join(dict.fromkeys(found for found in map(_objective, segments) if found not in ("", "mlm")))
        objectives = f" and sentence pairs ({pairs})" if pairs else ""
        init = segments[0].get("train", {}).get("init_from")
        start = f", starting from the weights of {Path(init).name}" if init else ""
        course = _course(record, manifest.step)
        story = f"pretrained with zerobert{start}: masked language modelling{objectives}, {course}."
        stores = dict.fromkeys(name for segment in segments for name in _stores(segment))
        title = f"{name}, pretrained on {', '.join(stores)}"
        kept: JsonObject = {key: record[key] for key in ("stores", "train", "deepspeed", "versions", "git")}
        kept |= {key: value for key, value in record.items() if key in ("phases", "from_step")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        say(f"warning: {run / 'config.json'} does not tell of the run ({error!r}); what the checkpoint says is used")
    else:
        return name, title, story, kept | {"segments": record.get("segments", [])}
    story = f"pretrained with zerobert: {manifest.step:,} steps. The settings of the run are not known any more."
    return run.name, run.name, story, {"deepspeed": manifest.ds_config, "versions": {}}


def _segments(record: RunRecord) -> list[RunRecord]:
    """Return the records of a run in their order: each was in force until the next one."""
    return [*record.get("segments", []), record]


def _initializer_range(record: JsonObject) -> float:
    """Return the deviation of the weights that a run began with, of what is kept of its record."""
    train = (record.get("segments") or [record])[0].get("train", {})
    return float(train.get("initializer_range", BERT_INITIALIZER_RANGE))  # an older version knew no other


def _objective(segment: RunRecord) -> str:
    return segment.get("train", {}).get("objective", "")  # an older version did not record it


def _stores(segment: RunRecord) -> list[str]:
    return [Path(store["folder"]).name for store in segment.get("stores", [])]


def _course(record: RunRecord, step: int) -> str:
    """Return the steps of a run up to `step` in words, in their order, by segment and phase; with objective and stores
    where these were not always the same."""
    segments = _segments(record)
    spoken = [(_objective(segment), ", ".join(_stores(segment))) for segment in segments]
    varied = [len({said for said in column if said}) > 1 for column in zip(*spoken, strict=True)]
    parts: list[tuple[str, int]] = []  # what steps were of, and how many
    for index, phase, steps in _trained_phases(record, step):
        what = f"{phase['global_batch']:,} samples of {phase['seq_len']} tokens"
        what += f" with {spoken[index][0]}" * varied[0] + f" of {spoken[index][1]}" * varied[1]
        before = parts.pop()[1] if parts and parts[-1][0] == what else 0
        parts.append((what, before + steps))
    if sum(steps for _, steps in parts) == step:
        return ", then ".join(f"{steps:,} steps of {what}" for what, steps in parts)
    batch, seq_len = record["deepspeed"]["train_batch_size"], record["train"]["seq_len"]
    return f"{step:,} steps of {batch:,} samples of {seq_len} tokens"


def _trained_phases(record: RunRecord | JsonObject, step: int) -> Iterator[tuple[int, JsonObject, int]]:
    """Yield (number of the segment, phase, steps trained of it) of a run up to `step`, in their order."""
    segments = [*record.get("segments", []), record]
    ends = [*(segment["from_step"] for segment in segments[1:]), step]
    for index, (segment, end) in enumerate(zip(segments, ends, strict=True)):
        first = 0
        for phase in segment.get("phases", []):
            begun, first = max(first, segment.get("from_step", 0)), first + phase["steps"]
            if (steps := min(first, end) - begun) > 0:
                yield index, phase, steps


def _from_deepspeed(tag: Path, config: Path | None, vocab: Path | None, scratch: Path | None) -> ExportSource:
    # transformers' Trainer puts config.json and the tokenizer beside `latest`.
    nearby = [folder for folder in (tag, tag.parent) if (folder / "config.json").is_file()]
    config = config or next(iter(nearby), None)
    if config is None:
        raise InputError(
            f"{tag} holds weights only; say of which model, to export: --config FOLDER_OR_config.json, and --vocab "
            "FOLDER"
        )
    folder = config if config.is_dir() else config.parent
    read = deepspeed_format.read(tag)
    record = {"checkpoint": str(tag.resolve()), "zero_stage": read.stage, "ranks": read.ranks, "versions": {}}
    record["versions"] = {"deepspeed": read.version}
    story = f"converted with zerobert from a DeepSpeed checkpoint (ZeRO stage {read.stage}, {read.step:,} steps)."
    found = _trained_elsewhere(
        tag,
        read.weights,
        config=config,
        vocab=vocab or folder,
        step=read.step,
        story=story,
        record=record,
        scratch=scratch,
    )
    name = tag.resolve().parent.name  # a tag such as global_step100 names no model
    return found._replace(name=name, title=name)


def _from_hf(folder: Path, config: Path, vocab: Path, scratch: Path | None) -> ExportSource:
    record: JsonObject = {"folder": str(folder.resolve())}
    if (folder / "provenance.json").is_file():
        try:
            record["provenance"] = read_object(folder / "provenance.json")
        except InputError as error:
            say(f"warning: where {folder} comes from is not known: {error}")
    return _trained_elsewhere(
        folder,
        StoredWeights(weight_readers(folder)),
        config=config,
        vocab=vocab,
        step=None,
        story="converted with zerobert.",
        record=record,
        scratch=scratch,
    )


def _from_others(
    path: Path, origin: Origin, config: Path | None, vocab: Path | None, scratch: Path | None
) -> ExportSource:
    """Return what is pickled, or a checkpoint of TensorFlow; what it means lies beside it, unless it is named."""
    prefix = tensorflow_prefix(path) if origin == "tensorflow" else None
    folder = path if path.is_dir() else path.parent
    what = "a checkpoint of TensorFlow" if prefix else "a file of torch.save"
    found = _trained_elsewhere(
        path,
        pickled_format.read(path) if prefix is None else tensorflow_format.read(prefix),
        config=config or folder,
        vocab=vocab or beside(config, folder),
        step=None,
        story=f"converted with zerobert from {what}.",
        record={"file": str(path.resolve())},
        scratch=scratch,
    )
    return found if path.is_dir() else found._replace(name=path.stem, title=path.stem)


def _trained_elsewhere(
    origin: Path,
    weights: Mapping[str, Tensor],
    *,
    config: Path,
    vocab: Path,
    step: int | None,
    story: str,
    record: JsonObject,
    scratch: Path | None,
) -> ExportSource:
    """Return a model that others have trained; `config` says what its weights mean."""
    need_vocab(origin, vocab)
    record |= {"config": str(config.resolve()), "vocab": str(vocab.resolve())}
    if scratch is not None:
        vocab = whole_tokenizer(vocab, scratch)
    meaning = read_config(config)
    task_weights = {name: weights[name].float() for name in weights if name in TASK_HEADS}
    others = {name: partial(weights.__getitem__, name) for name in weights if name not in task_weights}
    named = matched(origin, StoredWeights(others), meaning)
    rows = {"vocab_size": len(named[f"bert.{EMBEDDING}"])}  # padded, perhaps
    name = origin.resolve().name
    return ExportSource(
        origin=origin,
        step=step,
        weights=named,
        identity=ModelIdentity(architecture_of(meaning) | rows, tokenizer_sha256(vocab), meaning.vocab_size),
        initializer_range=meaning.initializer_range,
        tokenizer=vocab,
        name=name,
        title=name,
        story=story,
        evaluation=None,
        record=record,
        task_weights=task_weights,
        labels=_labels(config) if task_weights else {},
    )


def _labels(config: Path) -> JsonObject:
    """Return what a fine-tuned folder's config.json says of its answers, and the class that it was saved from."""
    _, content = read_meaning(config)
    return {name: value for name, value in content.items() if name in LABELS or name.startswith("zerobert_")}


def read_config(path: Path) -> BertConfig:
    """Return the configuration of a BERT, from a Hugging Face folder or a file such as config.json.

    Raises
    ------
    InputError: missing, damaged, or of another architecture.
    """
    path, content = read_meaning(path)
    check_architecture(path, content)
    try:
        return BertConfig.from_dict(content)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{path} cannot be read as a model configuration: {one_line(error)}") from error


def matched(origin: Path, weights: Mapping[str, Tensor], config: BertConfig) -> Mapping[str, Tensor]:
    """Return `weights` in fp32 under BertForPreTraining's names, each read when it is asked for; heads of other tasks
    are named and left aside.

    Raises
    ------
    InputError: names left over or missing, another shape than `config` says, numbers of another type, a decoder of its
        own.
    """
    # Looked at one by one, and let go of again: the types, and the shapes.
    looks = {name: (tensor.dtype, tensor.shape) for name, tensor in weights.items()}
    check_types(origin, {name: dtype for name, (dtype, _) in looks.items()})
    found, left = _without_prefix(origin, [*looks])
    for copy, original in COPIES.items():
        if copy in found:
            name = found.pop(copy)
            if not torch.equal(weights[name], weights[found.setdefault(original, name)]):
                raise InputError(f"{origin}: {copy} differs from {original}; a model with untied ones is not converted")
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in BertForPreTraining(config).named_parameters()}
    left += sorted(found.keys() - shapes.keys())
    heads = {name.removeprefix("bert.").split(".")[0] for name in left}
    if left and not heads <= {*HEADS} - {"pooler"}:  # which is no head of another task
        raise InputError(f"{origin} holds weights that BERT has not: {_some(left)}")
    if left:
        say(f"{origin}: not converted: {', '.join(sorted(heads))} (heads of other tasks)")
        found = {inner: name for inner, name in found.items() if inner in shapes}
    # A head that is missing is missed by whoever wants it; a pooler belongs to the sentence-pair head.
    encoder = {name for name in shapes if name.startswith("bert.") and not name.startswith("bert.pooler.")}
    if missing := sorted(encoder - found.keys()):
        raise InputError(f"{origin} lacks {_some(missing)}")
    rows = looks[found[f"bert.{EMBEDDING}"]][1][0]
    for inner, name in found.items():
        wanted, shape = shapes[inner], looks[name][1]
        if inner in COPIES.values() and rows > config.vocab_size:
            wanted = torch.Size([rows, *wanted[1:]])  # entries that pad the vocabulary are cut off in export
        if shape != wanted:
            raise InputError(f"{origin}: {inner} is {list(shape)}, the configuration says {list(wanted)}")
    return StoredWeights({inner: partial(_in_fp32, weights, found[inner]) for inner in shapes if inner in found})


def _in_fp32(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[name].float()


def _without_prefix(origin: Path, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return BertForPreTraining's names of weights, each with the one that it has here, behind a common prefix; and the
    names without that prefix."""
    anchors = [name for name in names if name == EMBEDDING or name.endswith(f".{EMBEDDING}")]
    if len(anchors) != 1:
        raise InputError(f"{origin} holds {len(anchors)} tensors called ...{EMBEDDING}, not one: {_some(anchors)}")
    lead = anchors[0].removesuffix(EMBEDDING)
    whole = f".{lead}".endswith(".bert.")  # else a bare encoder
    prefix = lead.removesuffix("bert.") if whole else lead
    found: dict[str, str] = {}
    left = []
    for name in names:
        if name.endswith(BUFFERS):
            continue
        if not name.startswith(prefix):
            left.append(name)
            continue
        inner = name.removeprefix(prefix) if whole else f"bert.{name.removeprefix(prefix)}"
        end = ".".join(inner.rsplit(".", 2)[-2:])
        inner = inner.removesuffix(end) + OLD_ENDS.get(end, end)
        if inner in found:
            raise InputError(f"{origin} holds two tensors for {inner}; which one is meant cannot be told")
        found[inner] = name
    return found, sorted(left)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def last_evaluation(run: Path, manifest: Manifest) -> JsonObject | None:
    """Return the newest held-out evaluation of a run up to a checkpoint, of those that were not taken back by a resume
    from before it. Where its line is damaged, the loss alone is known, from the checkpoint."""
    path = run / "metrics.jsonl"
    found: list[JsonObject] = []
    try:
        read = read_lines(path, most=1)
    except OSError as error:
        say(f"warning: {path} cannot be read ({error}); the checkpoint's own held-out loss is used")
    else:
        if read.damaged or read.is_cut:
            say(f"warning: {read.damaged + read.is_cut} lines of {path} are cut short or damaged, and left out")
        for line in read.lines:
            if line["kind"] == "event" and line["event"] in ("resume", "rollback"):
                found = [earlier for earlier in found if earlier["step"] <= line["step"]]
            elif line["kind"] == "eval" and line["step"] <= manifest.step and all(map(_is_finite, map(line.get, TOLD))):
                found.append(line)
    loss = manifest.held_out_loss
    if loss is None or (found and found[-1]["mlm_loss"] == loss):
        return found[-1] if found else None
    return {"mlm_loss": loss, "perplexity": math.exp(min(loss, 700))}


def _of_average(evaluation: JsonObject | None) -> JsonObject | None:
    """Return what an evaluation says of averaged weights, by the names of the raw ones' scores; None where nothing."""
    line = evaluation or {}
    scores = {name: line[f"avg_{name}"] for name in TOLD if _is_finite(line.get(f"avg_{name}"))}
    if not {"mlm_loss", "perplexity"} <= scores.keys():
        return None
    return {name: line[name] for name in ("step",) if name in line} | scores


def _compared(manifest: Manifest, evaluation: JsonObject | None, chosen: Weights) -> str:
    """Return in words that there are two kinds of weights, which has the lower held-out loss, and how to choose."""
    averaged = _of_average(evaluation)
    other = "raw" if chosen == "averaged" else "averaged"
    ours = f"it holds raw and averaged weights ({manifest.average})"
    how = f"these are the {chosen} ones; --weights {other} for the others"
    if averaged is None or evaluation is None:
        return f"{ours}, not compared on held-out text; {how}"
    raw, average = evaluation["mlm_loss"], averaged["mlm_loss"]
    lower = "alike" if raw == average else "the averaged ones are lower" if average < raw else "the raw ones are lower"
    return f"{ours}, with a held-out loss of {raw:.4f} and {average:.4f}: {lower}. {how[0].upper()}{how[1:]}"


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
