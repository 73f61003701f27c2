"""What a folder can be exported as: its class in transformers, which weights it holds, and which of them are new.

    skeleton(source, head) -> the model without memory      its config.json, and the names and shapes of its weights
    parts(model, source, head) -> Parts                     where each of them comes from

    pretraining, mlm, nsp, base         what was trained
    causal                              the masked-word head over an encoder that looks back only; to be trained on
    sequence-classification, token-classification, question-answering, multiple-choice
                                        the encoder, with the head of a fine-tuned folder or, of any other, with none:
                                        transformers begins it at random, and says so
    encoder-decoder                     two copies; what lets the second look at the first is new (Rothe et al. 2020)

A folder holds the weights of exactly one head, since transformers reports what it does not use.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

from data_prep.cli import InputError, say
from pretrain.export.origin import Head
from pretrain.export.sources import TASK_HEADS, ExportSource
from pretrain.model import strip_vocab_padding

CLASSES: dict[Head, Any] = {
    "pretraining": BertForPreTraining,
    "mlm": BertForMaskedLM,
    "base": BertModel,
    "nsp": BertForNextSentencePrediction,
    "causal": BertLMHeadModel,
    "sequence-classification": BertForSequenceClassification,
    "token-classification": BertForTokenClassification,
    "question-answering": BertForQuestionAnswering,
    "multiple-choice": BertForMultipleChoice,
    "encoder-decoder": EncoderDecoderModel,
}
TASKS: tuple[Head, ...] = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")
# What model hubs file a folder under; none for what answers nothing yet.
PIPELINES: dict[Head, str] = {
    "pretraining": "fill-mask",
    "mlm": "fill-mask",
    "base": "feature-extraction",
    "causal": "text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
    "encoder-decoder": "text-generation",
}
PAIR_HEAD = ("bert.pooler.", "cls.seq_relationship.")  # only sentence pairs train them


class Parts(NamedTuple):
    """Where the weights of a folder come from."""

    stored: dict[str, str]  # name in the folder: name in the source
    made: list[str]  # begin here, and are in the folder
    absent: list[str]  # begin when transformers loads the folder
    parameters: int = 0  # of those in the folder

    @property
    def new(self) -> list[str]:
        """The modules that begin at random, once each: "classifier", "bert.pooler"."""
        return list(dict.fromkeys(_module(name) for name in (*self.made, *self.absent)))


def default_head(source: ExportSource) -> Head:
    """Return the head that a source was trained for: a fine-tuned one, both of pretraining, the masked-word head
    alone, or none."""
    if (task := _task_of(source)) is not None:
        return task
    trained = {name for name in source.weights if not _is_untrained(source, name)}
    if "cls.predictions.bias" not in trained:
        return "base"
    return "pretraining" if {"cls.seq_relationship.weight", "bert.pooler.dense.weight"} <= trained else "mlm"


def _task_of(source: ExportSource) -> Head | None:
    """Return which task head a fine-tuned folder has."""
    if not source.task_weights:
        return None
    saved_from = (source.labels.get("architectures") or [""])[0]
    return next((head for head in TASKS if saved_from == CLASSES[head].__name__), None)


def skeleton(source: ExportSource, head: Head) -> PreTrainedModel:
    """Return the model of a folder on no device: a configuration, names and shapes."""
    identity = source.identity
    values = identity.model | {"vocab_size": identity.vocab_size, "initializer_range": source.initializer_range}
    if head == _task_of(source):
        values |= {name: value for name, value in source.labels.items() if name != "architectures"}
    with torch.device("meta"):
        if head == "base":
            has_pooler = "bert.pooler.dense.weight" in source.weights and not _is_untrained(source, "bert.pooler.")
            return BertModel(BertConfig(**values), add_pooling_layer=has_pooler)
        if head == "encoder-decoder":
            return EncoderDecoderModel(_encoder_decoder_config(values, source))
        if head == "causal":
            values |= {"is_decoder": True}
        return CLASSES[head](BertConfig(**values))


def _encoder_decoder_config(values: dict[str, Any], source: ExportSource) -> EncoderDecoderConfig:
    decoder = BertConfig(**values, is_decoder=True, add_cross_attention=True)
    config: Any = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**values), decoder)
    config.pad_token_id = source.identity.model["pad_token_id"]
    return config


def parts(model: PreTrainedModel, source: ExportSource, head: Head) -> Parts:
    """Return where each weight of `model` comes from; a head that was never trained is said.

    Raises
    ------
    InputError: the source lacks some, of the encoder or of a head that is to be exported.
    """
    found = Parts({}, [], [])
    lost = []
    has_task = head == _task_of(source)
    for name, parameter in model.named_parameters():
        origin = _origin(name, head)
        if has_task and origin in source.task_weights and source.task_weights[origin].shape != parameter.shape:
            raise InputError(
                f"{source.origin}: {origin} is {list(source.task_weights[origin].shape)}, but its config.json names "
                f"{len(parameter)} labels"
            )
        is_there = origin in source.weights or (has_task and origin in source.task_weights)
        if is_there and not (head in TASKS and _is_untrained(source, origin)):
            found.stored[name] = origin
        elif head in TASKS and (origin in TASK_HEADS or origin.startswith("bert.pooler.")):
            found.absent.append(name)
        elif head == "encoder-decoder" and (".crossattention." in name or name.startswith("encoder.pooler.")):
            found.made.append(name)
        else:
            lost.append(origin)
    if lost:
        raise InputError(
            f"{source.origin} lacks {', '.join(sorted(lost))}, which --head {head} needs; choose another head"
        )
    if head in ("pretraining", "nsp") and any(_is_untrained(source, origin) for origin in found.stored.values()):
        say(
            f"warning: {source.origin} was trained without sentence pairs: its sentence-pair head is as random as at "
            "the start; --head mlm leaves it out"
        )
    count = sum(weight.numel() for name, weight in model.named_parameters() if name not in found.absent)
    return found._replace(parameters=count)


def _origin(name: str, head: Head) -> str:
    """Return what BertForPreTraining calls a weight: "encoder.layer.0..." of a bare BertModel is "bert.encoder...."."""
    if head == "base":
        return f"bert.{name}"
    if head == "encoder-decoder":
        side, _, inner = name.partition(".")
        return f"bert.{inner}" if side == "encoder" else inner
    return name


def _is_untrained(source: ExportSource, name: str) -> bool:
    return not source.has_pairs and name.startswith(PAIR_HEAD)


def read_part(name: str, shape: torch.Size, source: ExportSource, found: Parts) -> Tensor:
    """Return one weight of a folder in fp32, without the rows that pad the vocabulary."""
    if name in found.made:
        return _new_weight(name, shape, source.initializer_range)
    origin = found.stored[name]
    tensor = source.weights[origin] if origin in source.weights else source.task_weights[origin]
    return strip_vocab_padding(origin, tensor, source.identity.vocab_size)


def _new_weight(name: str, shape: torch.Size, deviation: float) -> Tensor:
    """Return a weight as BERT's begin, the same in every export."""
    if name.endswith("LayerNorm.weight"):
        return torch.ones(shape)
    weight = torch.zeros(shape)
    if not name.endswith("bias"):
        seed = sum(name.encode())  # another one for each layer
        nn.init.normal_(weight, std=deviation, generator=torch.Generator().manual_seed(seed))
    return weight


def _module(name: str) -> str:
    """Return what a new weight belongs to: "decoder cross-attention", "bert.pooler", "classifier"."""
    if ".crossattention." in name:
        return "cross-attention"
    return name.removesuffix(".weight").removesuffix(".bias").removesuffix(".dense")
