"""Ask a Hugging Face folder: the missing words of a text, its label, its tags.

    python -m pretrain.predict hf --fill "The capital of France is [MASK]."
    python -m pretrain.predict tuned "a charming and often affecting journey" "what a waste of time"
    python -m pretrain.predict tuned --json < texts.txt

What is answered follows from the folder: words for [MASK] from a pretrained one, labels with their probabilities, a
number or a tag per word from a fine-tuned one. Without a text on the command line, each line of standard input is one.
For a model of pairs a tab separates the two texts; for any other a tab is white space. Answers go to stdout.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from data_prep.calls import call
from data_prep.cli import InputError, print_json, run, say  # first: it continues in .venv where packages are missing

# isort: split
from pretrain import hf_folder  # before transformers: it forbids the network

# isort: split
import torch
import tyro
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_prep.ranges import Range, check_ranges

# Controls, on which a terminal would act or begin a line; a tab stands between two texts.
SPELLED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}

Kind = Literal["fill", "labels", "tags"]
Answer = dict[str, Any]

# The end of a class name in config.json's "architectures", and what such a folder answers.
KINDS: dict[str, Kind] = {
    "ForMaskedLM": "fill",
    "ForPreTraining": "fill",
    "ForSequenceClassification": "labels",
    "ForTokenClassification": "tags",
}
MODELS: dict[Kind, Any] = {
    "fill": AutoModelForMaskedLM,
    "labels": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class PredictConfig:
    """What to ask, and of which model."""

    folder: tyro.conf.Positional[Path]
    """Hugging Face folder, as pretrain.export and pretrain.finetune write it."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts; without any, the lines of standard input."""
    fill: bool = False
    """Ask for masked words, whatever the folder was made for."""
    pair: bool = False
    """Take the texts as pairs, for a folder of another program; one that pretrain.finetune wrote says so itself."""
    top: Annotated[int, Range(1, 1e6)] = 5  # no vocabulary is larger
    """How many answers a text, or a mask, at most."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: PredictConfig) -> None:
    """Load the folder, answer each text in turn, print."""
    with hf_folder.quiet():
        architecture = hf_folder.load_config(config.folder)
        kind: Kind = "fill" if config.fill else kind_of(config.folder, architecture)
        pairs = config.pair or (kind == "labels" and answers_pairs(architecture))
        if pairs and kind != "labels":
            raise InputError(f"--pair: {config.folder} answers {kind}, and no pairs of texts")
        check_label_names(config.folder, architecture, kind)
        texts = texts_of(config, pairs)  # before the weights, which take longer
        tokenizer = hf_folder.load_tokenizer(config.folder)
        model = load(config.folder, kind)
    if kind == "fill" and tokenizer.mask_token is None:
        raise InputError(f"{config.folder}: the tokenizer has no mask token, so that nothing can be filled")
    answers = []
    for text in texts:
        answer = ask(model, tokenizer, kind, pairs, text, config.top)
        answers.append(answer)
        if not config.json:
            print(shown(answer), flush=True)
    if config.json:
        print_json({"folder": str(config.folder), "kind": kind, "answers": answers})


def kind_of(folder: Path, architecture: PreTrainedConfig) -> Kind:
    """What a folder answers, from the class that it was saved from.

    Raises
    ------
    InputError: it was saved without a head, or with one that is not known here.
    """
    saved_from = (architecture.architectures or ["no class"])[0]
    for ending, kind in KINDS.items():
        if saved_from.endswith(ending):
            return kind
    raise InputError(
        f"{folder} holds {saved_from}, which answers nothing here (known: Bert{', Bert'.join(KINDS)}); "
        f"fine-tune it first: {call('finetune')}"
    )


def check_label_names(folder: Path, architecture: PreTrainedConfig, kind: Kind) -> None:
    """Refuse a folder that has no name for an answer it may give.

    Raises
    ------
    InputError: as said.
    """
    names: dict[Any, Any] = architecture.id2label or {}
    if kind != "fill" and (set(names) != set(range(len(names))) or not all(isinstance(n, str) for n in names.values())):
        raise InputError(
            f"{folder}/config.json: id2label must name the labels 0, 1, ... by texts, not {str(names)[:80]}"
        )


def load(folder: Path, kind: Kind) -> PreTrainedModel:
    """The model, ready to answer, on the GPU if there is one. Unused heads in the folder are left aside.

    Raises
    ------
    InputError: a weight of the head that answers is missing: the answers would be random.
    """
    model, fresh = hf_folder.load_model(MODELS[kind], folder)
    if fresh:
        raise InputError(
            f"{folder} lacks weights needed to answer, such as {fresh[0]}: "
            + ("it was saved without its masked-word head" if kind == "fill" else "it is not a whole fine-tuned folder")
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def texts_of(config: PredictConfig, pairs: bool) -> Iterable[str]:
    """The texts to answer, all of them checked before the first is answered, unless somebody types them in.

    Raises
    ------
    InputError: no text, or as `checked`.
    """
    if config.texts:
        return [checked(f"text {number}", text, pairs) for number, text in enumerate(config.texts, 1)]
    if sys.stdin is None:  # closed, as by <&-
        raise InputError("no text: give one on the command line; standard input is closed")
    lines = (checked(f"line {number} of standard input", line, pairs) for number, line in lines_of_stdin())
    if sys.stdin.isatty():
        return lines
    texts = list(lines)
    if not texts:
        raise InputError("no text: give one on the command line, or lines on standard input")
    return texts


def lines_of_stdin() -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are not blank, in UTF-8 whatever the locale says; how many are blank is said.

    A byte that is not UTF-8 comes as half a surrogate pair, as Python reads it on the command line, too.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if sys.stdin.isatty():
        say("one text a line; Ctrl-D ends")
    blank = 0
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            yield number, line.rstrip("\r\n").removeprefix("\ufeff")
        else:
            blank += 1
    if blank:
        say(f"blank lines of standard input, which have no answer: {blank}")


def checked(where: str, text: str, pairs: bool) -> str:
    """`text`, if it can be answered; otherwise an InputError that says where it stands."""
    if "\0" in text or text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        what = "a zero byte" if "\0" in text else "a byte order mark"
        raise InputError(f"{where} holds {what}, as in UTF-16; convert it, for example: iconv -f UTF-16 -t UTF-8")
    if re.search("[\udc80-\udcff]", text):
        raise InputError(f"{where} is not UTF-8; convert it, for example: iconv -f WINDOWS-1252 -t UTF-8")
    if not text.strip():
        raise InputError(f"{where} is empty")
    tabs = text.count("\t")
    if pairs and tabs != 1:
        what = f"{tabs} tabs, but one alone must" if tabs else "a tab must"
        raise InputError(f"{where}: {what} separate the two texts that this model answers: {text[:60]!r}")
    return text


def answers_pairs(architecture: PreTrainedConfig) -> bool:
    """Whether a folder was fine-tuned on pairs of texts."""
    return getattr(architecture, "zerobert_pairs", None) is True or getattr(architecture, "zerobert_task", "") == "pair"


@torch.inference_mode()
def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: Kind, pairs: bool, text: str, top: int
) -> Answer:
    """The answer to one text: {"text"} and, by kind, {"masks"}, {"labels"}, {"score"} or {"tags"}.

    pairs: the text is two, around a tab

    Raises
    ------
    InputError: no mask token in a text to fill; the model's numbers overflow.
    """
    first, second = text.split("\t") if pairs else (text, None)
    longest = min(hf_folder.positions(model.config), tokenizer.model_max_length)
    encoded = tokenizer(first, second, truncation=True, max_length=longest, return_tensors="pt")
    if encoded.encodings[0].overflowing:
        say(f"longer than the model's {longest} tokens, and cut: {text[:60]}...")
    ids = {*encoded["input_ids"][0].tolist()}
    if kind != "fill" and ids <= {*tokenizer.all_special_ids}:
        say(f"the tokenizer knows nothing of this text, and the answer does not depend on it: {text[:60]!a}")
    logits = model(**encoded.to(model.device)).logits[0].float().cpu()
    if not logits.isfinite().all():
        raise InputError(
            f"the model answers with nan or infinity: its weights are too large; the text was {text[:60]!r}"
        )
    names: dict[Any, str] = model.config.id2label or {}
    if kind == "fill":
        return {"text": text, "masks": masked_words(tokenizer, encoded["input_ids"][0].cpu(), logits, text, top)}
    if kind == "tags":
        return {"text": text, "tags": tagged_words(names, encoded, logits, text)}
    if model.config.num_labels == 1:
        return {"text": text, "score": float(logits[0])}
    return {"text": text, "labels": ranked(logits, top, lambda index: {"label": names[index]})}


def masked_words(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, logits: torch.Tensor, text: str, top: int
) -> list[list[Answer]]:
    """The likeliest tokens of each mask. ids: [L]; logits: [L, V]."""
    places = (ids == tokenizer.mask_token_id).nonzero()[:, 0]
    if not len(places):
        where = "only beyond the model's length" if tokenizer.mask_token in text else "not in the text"
        raise InputError(f"the mask token {tokenizer.mask_token} is {where}: {text[:60]!r}")
    return [ranked(logits[at], top, lambda index: {"token": tokenizer.decode([index])}) for at in places]


def tagged_words(names: dict[Any, str], encoded: Any, logits: torch.Tensor, text: str) -> list[Answer]:
    """One tag a word, from its first token; words as the tokenizer cuts them, so that a mark is a word of its own."""
    owners = encoded.word_ids(0)
    answers = []
    for at, word in enumerate(owners):
        if word is not None and word != owners[at - 1]:
            start, end = encoded.word_to_chars(0, word)
            answers.append({"word": text[start:end], "tag": names[int(logits[at].argmax())]})
    return answers


def ranked(logits: torch.Tensor, top: int, name: Any) -> list[Answer]:
    """The `top` likeliest of logits [K], best first, with their probabilities."""
    best = logits.softmax(-1).topk(min(top, len(logits)))
    return [
        {**name(int(index)), "probability": round(float(value), 6)}
        for value, index in zip(best.values, best.indices, strict=True)
    ]


def shown(answer: Answer) -> str:
    """One answer for people: the text, and below it a line an answer."""
    lines = [answer["text"]]
    for number, words in enumerate(answer.get("masks", []), 1):
        if len(answer["masks"]) > 1:
            lines.append(f"  mask {number}")
        lines += [f"  {word['probability']:.4f}  {word['token']}" for word in words]
    lines += [f"  {label['probability']:.4f}  {label['label']}" for label in answer.get("labels", [])]
    if "score" in answer:
        lines.append(f"  {answer['score']:.6g}")  # in the unit of the labels, which may be tiny
    if "tags" in answer:
        lines.append("  " + " ".join(f"{word['word']}/{word['tag']}" for word in answer["tags"]))
    return "\n".join(line.translate(SPELLED) for line in lines)


if __name__ == "__main__":
    run(main, PredictConfig, __doc__)
