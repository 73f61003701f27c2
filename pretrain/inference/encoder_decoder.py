"""Two BERTs as one model, of which one reads a text and the other writes one: as `--task seq2seq` makes them.

    writer = open_writer(folder)
    texts = generate(writer, ["a text"], beams=4, max_new_tokens=64)

The folder is what EncoderDecoderModel.from_pretrained reads. The tokenizer of the texts that are read lies beside the
weights, that of the texts that are written in a folder of its own where it is another one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import regex
import torch
from transformers import EncoderDecoderModel, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import InputError
from data_prep.untrusted import check_model_config
from pretrain import hf_folder
from pretrain.hf_files import need_tokenizer, read_config

TARGET_TOKENIZER = "decoder_tokenizer"
BATCH = 32  # texts that are written at once
# Between Chinese or Japanese characters and their marks; WordPiece makes a token of each Han character.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\uff00-\uffef]"
_GAP = regex.compile(rf"(?<={_UNSPACED}) (?={_UNSPACED})")


class Writer(NamedTuple):
    """A model and how it spells what it reads and what it writes."""

    model: Any  # EncoderDecoderModel
    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase


def open_writer(folder: Path) -> Writer:
    """Return the model of a folder, in float32, ready to answer, on the GPU if there is one.

    Raises
    ------
    InputError: a folder that is not whole, or no encoder-decoder.
    """
    content = read_config(folder)
    for part in ("encoder", "decoder"):
        if not isinstance(content.get(part), dict):
            raise InputError(
                f"{folder}/config.json has no {part}: it is no encoder-decoder; take it from its source again"
            )
        check_model_config(folder / "config.json", content[part])
    config: Any = hf_folder.load_config(folder)
    need_tokenizer(folder)
    source = hf_folder.tokenizer_for(folder, config.encoder)
    other = folder / TARGET_TOKENIZER
    target = hf_folder.tokenizer_for(other, config.decoder) if other.is_dir() else source
    hf_folder.check_frame(folder, config.encoder, source, pairs=False)
    hf_folder.check_frame(other if other.is_dir() else folder, config.decoder, target, pairs=False)
    model, missing, mismatched, unexpected = hf_folder.open_model(EncoderDecoderModel, folder, config)
    if wrong := sorted(missing | mismatched | unexpected):
        raise InputError(
            f"{folder}: {len(wrong)} weights are missing or have no place in the model, such as {wrong[0]}; "
            "the folder is incomplete, or its config.json belongs to another model"
        )
    return Writer(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), source, target)


def wire(model: Any, target: PreTrainedTokenizerBase, *, beams: int, max_new_tokens: int) -> None:
    """Tell a model with which tokens a text begins, ends and is filled up, and how it is written, in place.

    A text is [CLS] w1 w2 ... [SEP]: [CLS] is given, and the rest is what the decoder learns to write.
    """
    ids = {
        "decoder_start_token_id": target.cls_token_id,
        "eos_token_id": target.sep_token_id,
        "pad_token_id": target.pad_token_id,
    }
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.config.vocab_size = model.config.decoder.vocab_size
    model.generation_config = GenerationConfig(**ids, **how(beams, max_new_tokens))


def how(beams: int, max_new_tokens: int) -> dict[str, Any]:
    """Return options of generate(): a beam search, or with one beam the likeliest token each time."""
    return {"num_beams": beams, "max_new_tokens": max_new_tokens} | ({"early_stopping": True} if beams > 1 else {})


@torch.inference_mode()
def generate(
    writer: Writer,
    texts: Sequence[str],
    *,
    beams: int | None = None,
    max_new_tokens: int | None = None,
    tick: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Return what the model writes for each text. Texts of like length go through it together.

    beams, max_new_tokens: in place of the model's own
    tick: is told how many texts have been written since it was told last
    """
    ids = writer.source(list(texts), truncation=True, max_length=most_to_read(writer.model.config))
    order = sorted(range(len(texts)), key=lambda index: -len(ids["input_ids"][index]))
    own = writer.model.generation_config
    options = how(
        beams or own.num_beams or 1, max_new_tokens or own.max_new_tokens or positions_to_write(writer.model.config)
    )
    written = [""] * len(texts)
    for first in range(0, len(order), BATCH):
        some = order[first : first + BATCH]
        inputs = writer.source.pad({name: [ids[name][index] for index in some] for name in ids}, return_tensors="pt")
        found = writer.model.generate(**inputs.to(writer.model.device), do_sample=False, **options)
        for index, tokens in zip(some, found, strict=True):
            written[index] = spelled(writer.target, tokens)
        tick(len(some))
    return written


def spelled(tokenizer: PreTrainedTokenizerBase, tokens: Any) -> str:
    """Return tokens as a text, with no space before a full stop, nor between characters of a script without spaces."""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    return _GAP.sub("", text).strip()


def most_to_read(config: PreTrainedConfig) -> int:
    """Return how many tokens of a text are read: as many as were learnt from, else all that the encoder can."""
    longest, learnt = hf_folder.positions(config.encoder), getattr(config, "zerobert_seq_len", None)
    return min(longest, learnt) if isinstance(learnt, int) and learnt > 3 else longest


def positions_to_write(config: PreTrainedConfig) -> int:
    """Return how many tokens the decoder can write: each is one that it has read before, [CLS] first."""
    return hf_folder.positions(config.decoder)
