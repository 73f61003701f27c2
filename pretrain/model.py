"""BERT for pretraining: transformers' BertForPreTraining, driven padding-free.

    build_model(preset or HF folder) -> BertForPreTraining -> PretrainingModule(model)(batch) -> Losses

transformers' own modules do the arithmetic, so any BERT folder can be continued and export needs no table of names;
what is saved is work that changes nothing: no padding, the language-model head on masked rows only, and in the last
layer queries and feed-forward for the rows that a head looks at. docs/design.md has the measurements.

The vocabulary is padded inside the model to a multiple of 64 for the sake of matrix kernels. Padding entries have an
embedding of 0 and an output bias of -1e4, so their probability and their gradient are exactly 0 and the loss is that of
the unpadded model.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining
from transformers.models.bert.modeling_bert import BertLayer

from data_prep.calls import call
from data_prep.cli import InputError, say
from data_prep.json_types import JsonObject
from data_prep.tokens.row_sources import VocabFrom, find_rows
from data_prep.untrusted import weight_files
from pretrain import hf_folder
from pretrain.attention import SeqLens, use_varlen_attention, varlen_attention
from pretrain.hf_files import read_init
from pretrain.new_rows import give_rows, stretch_positions
from pretrain.settings.limits import BERT_INITIALIZER_RANGE, MAX_POSITIONS, Preset
from pretrain.settings.shape import PRESETS, Shape
from pretrain.token_loss import use_token_loss

VOCAB_MULTIPLE = 64
PADDING_BIAS = -1e4  # within fp16's range; exp(-1e4) is 0 in every precision
# What decides the meaning of weights: the part of a configuration that a checkpoint and an exported folder repeat.
CONFIG_KEYS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act max_position_embeddings "
    "type_vocab_size layer_norm_eps pad_token_id"
).split()
# Weights that repeat others in a folder of transformers: the language-model head shares the embedding.
COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
IGNORED = -100  # nsp label of a sample without a second segment


class Batch(NamedTuple):
    """One micro-batch of B samples end to end. T tokens, M masked tokens, K = M + B rows that a head looks at."""

    input_ids: Tensor  # [T] int64
    token_types: Tensor  # [T] int64, 0 in segment A, 1 in segment B
    positions: Tensor  # [T] int64, position in the sample
    head_rows: Tensor  # [K] int64, masked and [CLS] rows, ascending
    mlm_index: Tensor  # [M] int64, where the masked rows stand among the head rows
    cls_index: Tensor  # [B] int64, where the [CLS] rows stand among the head rows
    mlm_labels: Tensor  # [M] int64, true ids
    nsp_labels: Tensor  # [B] int64, 1 if B is random, IGNORED without a B
    seqlens: SeqLens  # of all rows
    head_seqlens: SeqLens  # of the head rows

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device, without waiting where the host memory is pinned."""
        return Batch(*(field.to(device, non_blocking=True) for field in self))  # type: ignore[arg-type]

    def pin_memory(self) -> "Batch":
        """Move into memory from which a GPU can copy while the host goes on."""
        return Batch(*(field.pin_memory() for field in self))  # type: ignore[arg-type]


class Losses(NamedTuple):
    """Sums over a micro-batch, float32 scalars, or over each of its samples [B]; the caller divides by counts."""

    mlm: Tensor  # nats
    nsp: Tensor  # nats
    mlm_correct: Tensor
    nsp_correct: Tensor


class Answers(NamedTuple):
    """What the model takes for the likeliest token of each masked one."""

    probability: Tensor  # [M]
    token: Tensor  # [M] int64


class PretrainingModule(nn.Module):
    """The module that DeepSpeed wraps: a batch in, losses out."""

    def __init__(self, model: BertForPreTraining, checkpoint_activations: bool = False):
        super().__init__()
        use_token_loss(model)
        self.model, self.checkpoint_activations = model, checkpoint_activations

    def forward(self, batch: Batch, by_sample: bool = False, is_asked: bool = False) -> Losses | Answers:
        rows = encode_head_rows(self.model, batch, checkpoint_activations=self.checkpoint_activations and self.training)
        heads = self.model.cls
        masked = rows[batch.mlm_index]
        pooler: nn.Module = self.model.bert.pooler  # type: ignore[assignment]  # None only where it is left out
        pooled = pooler(rows[batch.cls_index, None])
        nsp_logits = heads.seq_relationship(pooled).float()  # [B, 2]
        if is_asked:
            return Answers(*heads.predictions(masked).float().softmax(-1).max(-1))
        if by_sample:
            return _per_sample_losses(heads.predictions(masked).float(), nsp_logits, batch)
        mlm = heads.predictions.decoder(heads.predictions.transform(masked), batch.mlm_labels)
        return Losses(
            mlm.loss,
            cross_entropy(nsp_logits, batch.nsp_labels, reduction="sum", ignore_index=IGNORED),
            mlm.correct,
            (nsp_logits.detach().argmax(-1) == batch.nsp_labels).sum().float(),
        )


def _per_sample_losses(mlm_logits: Tensor, nsp_logits: Tensor, batch: Batch) -> Losses:
    """Return the losses of each sample [B], for evaluation by source."""
    # Beside its masked rows, a sample's [CLS] is a head row: of all samples, or of none.
    lengths = batch.head_seqlens.lengths
    masked = torch.tensor(lengths, device=mlm_logits.device) - len(batch.cls_index) // len(lengths)
    sample = torch.arange(len(masked), device=mlm_logits.device).repeat_interleave(masked)  # [M]

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(len(masked), device=values.device).index_add_(0, sample, values.float())

    return Losses(
        summed(cross_entropy(mlm_logits, batch.mlm_labels, reduction="none")),
        cross_entropy(nsp_logits, batch.nsp_labels, reduction="none", ignore_index=IGNORED),
        summed(mlm_logits.argmax(-1) == batch.mlm_labels),
        (nsp_logits.argmax(-1) == batch.nsp_labels).float(),
    )


def encode_head_rows(
    model: BertForMaskedLM | BertForPreTraining, batch: Batch, *, checkpoint_activations: bool = False
) -> Tensor:
    """Return the encoder's output at the head rows, [K, hidden].

    Only modules are called, never their weights: under ZeRO-3 a weight exists only inside its module's forward. With
    `checkpoint_activations` a layer keeps nothing but its input, and is run again, with the same dropout, in the
    backward pass: a third more arithmetic, a fraction of the memory.
    """
    hidden = model.bert.embeddings(
        input_ids=batch.input_ids[None], token_type_ids=batch.token_types[None], position_ids=batch.positions[None]
    )
    *layers, last = cast(Iterable[BertLayer], model.bert.encoder.layer)
    for layer in layers:
        hidden = _run(checkpoint_activations, layer, hidden, None, seqlens=batch.seqlens)
    return _run(checkpoint_activations, _last_layer, last, hidden[0], batch)


def _run(is_checkpointed: bool, layer: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    return checkpoint(layer, *inputs, use_reentrant=False, **named) if is_checkpointed else layer(*inputs, **named)


def _last_layer(layer: BertLayer, hidden: Tensor, batch: Batch) -> Tensor:
    """A BertLayer for the head rows only: keys and values come from all rows, everything else from the head rows."""
    attention: Any = layer.attention.self
    shape = (-1, attention.num_attention_heads, attention.attention_head_size)
    rows = hidden[batch.head_rows]
    mixed = varlen_attention(
        attention.query(rows).view(shape),
        attention.key(hidden).view(shape),
        attention.value(hidden).view(shape),
        batch.head_seqlens,
        batch.seqlens,
        attention.scaling,
    )
    return layer.feed_forward_chunk(layer.attention.output(mixed.flatten(1), rows))


def build_model(
    *,
    preset: Preset | None = None,
    shape: Shape | None = None,
    init_from: Path | None = None,
    vocab_size: int,
    dropout: float,
    seed: int,
    needs_nsp: bool,
    pad_id: int = 0,
    initializer_range: float = BERT_INITIALIZER_RANGE,
    vocab: Path | None = None,
    vocab_from: VocabFrom = "same",
    positions: int | None = None,
) -> BertForPreTraining:
    """Return a new BERT (of a `preset`, or of any `shape`) or an existing one (`init_from`) in float32, its vocabulary
    padded.

    Weights are a function of the arguments alone. `pad_id`: whose embedding stays 0; `vocab`: the store's tokenizer
    folder, the same tokenizer as that of `init_from`, or one with words added to it, or with `vocab_from` match any;
    `positions`: how many there are in place of 512, or of those of `init_from`, which are then stretched.

    Raises
    ------
    InputError: `init_from` is not a usable BERT folder, its tokenizer is another one, or it has more positions.
    """
    torch.manual_seed(seed)
    shape = PRESETS[preset] if preset is not None else shape
    if shape is not None:
        model = BertForPreTraining(
            config_of(
                shape,
                vocab_size,
                dropout=dropout,
                pad_id=pad_id,
                initializer_range=initializer_range,
                positions=positions or MAX_POSITIONS,
            )
        )
    else:
        assert init_from is not None
        model = _load(init_from, vocab_size, dropout, needs_nsp, pad_id, vocab, vocab_from)
        if positions is not None:
            stretch_positions(init_from, model, positions)
    use_varlen_attention(model)
    _pad_vocabulary(model, vocab_size)
    return model


def compile_layers(model: BertForPreTraining) -> None:
    """Fuse the arithmetic between matrix products (torch.compile), in all layers but the last, whose parts are called
    one by one. Layers share one compiled graph, whatever the number of tokens. Costs about a minute at the first step.
    """
    for layer in model.bert.encoder.layer[:-1]:
        layer.compile(dynamic=True)


def config_of(
    shape: Shape,
    vocab_size: int,
    *,
    dropout: float,
    pad_id: int = 0,
    initializer_range: float = BERT_INITIALIZER_RANGE,
    positions: int = MAX_POSITIONS,
) -> BertConfig:
    """Return transformers' configuration of a new model, the vocabulary as it is."""
    return BertConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        initializer_range=initializer_range,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=positions,
    )


def architecture_of(config: BertConfig) -> JsonObject:
    """Return the part of a configuration that a checkpoint may only be resumed under."""
    return {key: getattr(config, key) for key in CONFIG_KEYS}


def model_from_weights(architecture: JsonObject, weights: dict[str, Tensor]) -> BertForPreTraining:
    """Return the trainer's model in eval mode, vocabulary padded, around these very weights, named as
    named_parameters() names them."""
    model = model_around(BertForPreTraining, BertConfig(**architecture), weights)
    use_varlen_attention(model)
    return model


def model_around(model_class: Any, config: BertConfig, weights: dict[str, Tensor]) -> Any:
    """Return a BERT in eval mode whose parameters are these tensors: none is drawn, none copied."""
    with torch.device("meta"):
        model = model_class(config)
    names = dict(model.named_parameters()).keys()
    assert names == weights.keys(), names ^ weights.keys()
    model.load_state_dict(weights, strict=False, assign=True)  # what is tied is no parameter of its own
    model.tie_weights()
    embeddings = model.base_model.embeddings  # whose buffers are counted, not loaded
    embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    return model.eval()


def _load(
    folder: Path,
    vocab_size: int,
    dropout: float,
    needs_nsp: bool,
    pad_id: int,
    vocab: Path | None,
    vocab_from: VocabFrom,
) -> BertForPreTraining:
    read_init(folder)
    config: Any = hf_folder.load_config(folder)
    rows = None if vocab is None else find_rows(folder, vocab, vocab_from)
    if rows is not None:
        vocab_size, pad_id = rows.known, rows.old_pad_id  # of its own tokenizer
    # Rows beyond the entries of the tokenizer pad the vocabulary: to a multiple of 8 or 64.
    if config.vocab_size < vocab_size or (vocab is None and config.vocab_size != vocab_size):
        raise InputError(
            f"--init_from {folder} has {config.vocab_size} vocabulary entries, "
            + (
                f"the store {vocab_size}; make the store with this folder's tokenizer"
                if rows is None
                else f"its own tokenizer {vocab_size}; they are not of one model: take both from its source again"
            )
        )
    if needs_nsp and config.type_vocab_size < 2:
        raise InputError(
            f"--init_from {folder} knows one segment (type_vocab_size 1), but sentence pairs have two; "
            "train with --objective mlm"
        )
    hf_folder.settle_padding(folder, config, pad_id)
    config.tie_word_embeddings = True  # as it is, then
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = dropout, 0.0
    model, missing, mismatched, unexpected = hf_folder.open_model(BertForPreTraining, folder, config)
    _refuse_own_decoder(folder)
    _report_missing(folder, missing, mismatched, unexpected, needs_nsp)
    others = tuple(head for head in hf_folder.HEADS if not head.startswith("cls."))  # those are the model's own
    hf_folder.report_unused(folder, unexpected, "bert.", others)
    if rows is not None:
        give_rows(folder, model, rows)
    return model


def _refuse_own_decoder(folder: Path) -> None:
    """Refuse a language-model head with weights of its own where BERT shares the embedding's."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            here = {*COPIES, *COPIES.values()} & {*file.keys()}
            weights |= {name: file.get_tensor(name) for name in here}
    for copy, original in COPIES.items():
        if copy in weights and original in weights and not torch.equal(weights[copy], weights[original]):
            raise InputError(
                f"--init_from {folder}: {copy} differs from {original}; a model with untied ones is not continued"
            )


def _report_missing(
    folder: Path, missing: set[str], mismatched: set[str], unexpected: set[str], needs_nsp: bool
) -> None:
    """Say which heads begin at random; an encoder with a hole is no checkpoint to continue."""
    nsp = {key for key in missing if key.startswith(("cls.seq_relationship.", "bert.pooler."))}
    mlm = {key for key in missing if key.startswith("cls.predictions.")}
    if other := sorted(missing - nsp - mlm) + sorted(mismatched):
        some = f"{', '.join(other[:4])} ({len(other)} tensors in all)"
        prefixes = {found.removesuffix(name) for name in other for found in unexpected if found.endswith(f".{name}")}
        remedy = f"; all of its names begin with {prefixes.pop()!r}: convert it first" if len(prefixes) == 1 else ""
        raise InputError(
            f"--init_from {folder} lacks, or has in another shape than config.json says, {some}{remedy}"
            + (f", {call('export', folder, 'OUT')}" if remedy else "")
        )
    if mlm:
        say(f"{folder} has no language-model head; it begins at random: {', '.join(sorted(mlm))}")
    if nsp and needs_nsp:
        say(
            f"{folder} has no next-sentence head; it begins at random: {', '.join(sorted(nsp))} "
            "(--objective mlm trains without it)"
        )


@torch.no_grad()
def _pad_vocabulary(model: BertForPreTraining, vocab_size: int) -> None:
    model.resize_token_embeddings(vocab_size, pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    model.bert.embeddings.word_embeddings.weight[vocab_size:] = 0.0
    model.cls.predictions.bias[vocab_size:] = PADDING_BIAS


@torch.no_grad()
def set_output_bias(model: BertForPreTraining, bias: np.ndarray) -> None:
    """Let the masked-token head begin with a bias [V] for each entry; what pads the vocabulary keeps its own."""
    model.cls.predictions.bias[: len(bias)] = torch.from_numpy(bias)


def strip_vocab_padding(name: str, tensor: Tensor, vocab_size: int) -> Tensor:
    """Return a parameter as it is exported: without the rows that pad the vocabulary."""
    padded = {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    return tensor[:vocab_size] if name in padded else tensor


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return groups for the optimizer: matrices and embeddings decay; biases and LayerNorm do not (Devlin et al. 2019).

    A `layer_decay` below 1 makes two groups a layer, with lr_scale layer_decay ** (layers above, heads counted as one)
    as in BEiT (Bao et al. 2021): the nearer to the embeddings, the slower.
    """
    layers = sum(1 for module in model.modules() if isinstance(module, BertLayer))
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        above = 0 if layer_decay == 1 else layers + 1 - _depth(name, layers)
        is_plain = name.endswith(".bias") or "LayerNorm" in name
        groups.setdefault((above, is_plain), []).append(parameter)
    return [
        {
            "params": groups[key],
            "weight_decay": 0.0 if key[1] else weight_decay,
            "decay_scale": 0.0 if key[1] else 1.0,
            "lr_scale": layer_decay ** key[0],
        }
        for key in sorted(groups)
    ]


def _depth(name: str, layers: int) -> int:
    """0 of the embeddings, 1 to `layers` of the layers, then the heads and the pooler."""
    if "embeddings" in name:
        return 0
    match = re.search(r"\.layer\.(\d+)\.", name)
    return int(match[1]) + 1 if match else layers + 1
