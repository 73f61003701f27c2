"""--task seq2seq: learn to write one text for another: translations, summaries.

examples -> tokens of both sides -> an encoder and a decoder, warm-started -> beam search -> BLEU and chrF

Both sides start from a pretrained encoder (Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence
Generation Tasks"). The decoder is the other one read causally, its word embeddings tied to its output; the attention
from one to the other is new, and learnt.
"""

from pathlib import Path
from typing import Any, NamedTuple

import regex
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from data_prep.cli import InputError, say
from data_prep.json_types import JsonObject
from data_prep.progress import Progress
from pretrain import hf_folder
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.tasks.lost import tell_lost
from pretrain.inference.encoder_decoder import TARGET_TOKENIZER, Writer, generate, wire

HEADS = ("cls.", "pooler.", "bert.pooler.")  # of these the decoder uses cls.predictions
_count_han = regex.compile(r"\p{Han}").findall
_count_letters = regex.compile(r"\p{L}").findall


class Sides(NamedTuple):
    """What both halves of the model are made from."""

    encoder: Path
    decoder: Path
    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase

    @property
    def share_a_tokenizer(self) -> bool:
        """Whether texts that are read and that are written are spelled alike."""
        one, two = self.source.backend_tokenizer, self.target.backend_tokenizer
        return self.encoder == self.decoder or one.to_str() == two.to_str()


def open_sides(config: FinetuneConfig) -> Sides:
    """Return the folders of both halves and their tokenizers; `config`: a settled one.

    Raises
    ------
    InputError: a decoder that cannot be made of its folder, or that has no positions for so long a text.
    """
    folder = config.decoder or config.hf
    architecture = hf_folder.load_config(folder)
    if architecture.model_type != "bert":
        raise InputError(f"{folder} is a {architecture.model_type!r} model; a decoder is made of a BERT: --decoder HF")
    sides = Sides(config.hf, folder, hf_folder.load_tokenizer(config.hf), hf_folder.load_tokenizer(folder))
    hf_folder.check_frame(folder, architecture, sides.target, pairs=False)
    for name in ("seq_len", "max_new_tokens"):
        if getattr(config, name) > hf_folder.positions(architecture):
            raise InputError(
                f"--{name} {getattr(config, name)} is more than the {hf_folder.positions(architecture)} positions of "
                f"{folder}, which writes"
            )
    return sides


def tell_targets(training: list[Example], evaluation: list[Example], *, sides: Sides) -> JsonObject:
    """Say how BLEU is counted: by characters where the targets are Chinese, without case where the model has none."""
    settings = bleu_settings([example.label for example in evaluation], sides.target)
    if settings["lowercase"]:
        say(f"the tokenizer of {sides.decoder} knows no capitals: scores are those of texts in lower case")
    return {"sacrebleu": settings}


def bleu_settings(targets: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return sacrebleu's `tokenize` and `lowercase`."""
    text = "".join(targets)
    normalizer = tokenizer.backend_tokenizer.normalizer
    return {
        "tokenize": "zh" if 2 * len(_count_han(text)) > len(_count_letters(text)) else "13a",
        "lowercase": normalizer is not None and normalizer.normalize_str("A") == "a",
    }


def encode_targets(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int, *, sides: Sides
) -> list[dict[str, Any]]:
    """Return tokens of the sources, and as labels those of the targets behind their [CLS], which is given."""
    sources = tokenizer([example.text for example in examples], truncation=True, max_length=seq_len)
    targets = sides.target([example.label for example in examples], truncation=True, max_length=seq_len)
    tell_lost(sources, seq_len, tokenizer, "sources")
    tell_lost(targets, seq_len, sides.target, "targets")
    return [
        {**{key: sources[key][row] for key in sources}, "labels": targets["input_ids"][row][1:]}
        for row in range(len(examples))
    ]


def build(config: FinetuneConfig, *, sides: Sides) -> EncoderDecoderModel:
    """Return a model whose halves begin as their folders say, or at random."""
    reading, writing = (hf_folder.load_config(folder) for folder in (sides.encoder, sides.decoder))
    hf_folder.settle_padding(sides.encoder, reading, sides.source.pad_token_id)
    hf_folder.settle_padding(sides.decoder, writing, sides.target.pad_token_id)
    writing.is_decoder = writing.add_cross_attention = True
    together = EncoderDecoderConfig.from_encoder_decoder_configs(reading, writing)
    if config.from_scratch:
        model = EncoderDecoderModel(config=together)
    else:
        model = EncoderDecoderModel(
            config=together,
            encoder=half(AutoModel, sides.encoder, reading),
            decoder=half(AutoModelForCausalLM, sides.decoder, writing),
        )
    assert config.beams is not None
    assert config.max_new_tokens is not None
    wire(model, sides.target, beams=config.beams, max_new_tokens=config.max_new_tokens)
    model.config.zerobert_task, model.config.zerobert_seq_len = config.task, config.seq_len
    return model


def half(auto_class: Any, folder: Path, config: PreTrainedConfig) -> Any:
    """Return one half from its folder. What may start at random: a pooler, the attention to the encoder, and with a
    word of it what turns vectors into words.

    Raises
    ------
    InputError: any other weight is missing, or has no place.
    """
    model, missing, mismatched, unexpected = hf_folder.open_model(auto_class, folder, config)
    fresh = {name for name in missing | mismatched if ".crossattention." not in name and "pooler." not in name}
    words = {name for name in fresh if name.startswith("cls.")}
    if words:
        say(f"{folder} was saved without its masked-word head: what it writes starts from random weights of that head")
    if lost := sorted(fresh - words):
        raise InputError(
            f"{folder}: {len(lost)} weights of the encoder are missing or of another shape, such as {lost[0]}; "
            "the folder is incomplete, or its names or config.json belong to another model: export it again"
        )
    foreign = {name for name in unexpected if not name.startswith(HEADS)}
    hf_folder.report_unused(folder, foreign, f"{model.base_model_prefix}.")
    return model


def write_targets(model: Any, evaluation: list[Example], *, sides: Sides) -> list[str]:
    """Return what the model writes for each source."""
    was_training = model.training
    model.eval()
    with Progress(what="writing", unit="text", total=len(evaluation)) as progress:
        written = generate(
            Writer(model, sides.source, sides.target),
            [str(example.text) for example in evaluation],
            tick=progress.update,
        )
    model.train(was_training)
    return written


def score_targets(
    written: Any, features: list[dict[str, Any]], examples: list[Example], names: list[str], *, sides: Sides
) -> dict[str, float]:
    """Return BLEU and chrF of a corpus, 0 to 100, one reference a source."""
    import sacrebleu  # here: lxml and its tokenizers are nothing to the other tasks

    targets = [example.label for example in examples]
    settings = bleu_settings(targets, sides.target)
    bleu = sacrebleu.corpus_bleu(written, [targets], force=True, **settings)
    chrf = sacrebleu.CHRF(lowercase=settings["lowercase"]).corpus_score(written, [targets])
    return {"bleu": float(bleu.score), "chrf": float(chrf.score)}


def save_target_tokenizer(folder: Path, *, sides: Sides) -> None:
    """Write the tokenizer of the texts that are written where it is another one."""
    if not sides.share_a_tokenizer:
        (folder / TARGET_TOKENIZER).mkdir()
        hf_folder.copy_tokenizer(sides.decoder, folder / TARGET_TOKENIZER, sides.target)
