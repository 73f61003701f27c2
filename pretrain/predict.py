"""Ask a Hugging Face folder: the missing words of a text, its label, its tags.

    python -m pretrain.predict hf --fill "The capital of France is [MASK]."
    python -m pretrain.predict tuned "a charming and often affecting journey" "what a waste of time"
    python -m pretrain.predict tuned --json < texts.txt
    python -m pretrain.predict hf --embed lines.txt --out vectors.npy
    python -m pretrain.predict hf --nearest lines.txt "where does the river rise?"
    python -m pretrain.predict reader --question "Who wrote it?" "Effi Briest is a novel by Theodor Fontane."
    python -m pretrain.predict chooser --choose dev.jsonl

What is answered follows from the folder: words for [MASK] from a pretrained one, labels with their probabilities, a
number, a tag per word, the answer to a question, one of several options or another text from a fine-tuned one. Without
a text on the command line, each line of standard input is one. For a model of pairs a tab separates the two texts, for
one of questions the question and its context where there is no --question, for one of options a text and each of its
options; for any other a tab is white space. Answers go to stdout.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import tyro

from data_prep.calls import call
from data_prep.cli import InputError, run, say
from data_prep.files import check_writable
from data_prep.interpreter import importing
from data_prep.json_types import JsonObject
from data_prep.ranges import Range, check_ranges
from data_prep.untrusted import weight_files
from pretrain.finetune.files.choices import in_full, read_choices
from pretrain.hf_files import Kind, forbid_network, need_tokenizer, read_config

# The end of a class name in config.json's "architectures", and what such a folder answers.
KINDS: dict[str, Kind] = {
    "ForMaskedLM": "fill",
    "ForPreTraining": "fill",
    "ForSequenceClassification": "labels",
    "ForTokenClassification": "tags",
    "ForQuestionAnswering": "answers",
    "ForMultipleChoice": "choice",
    "EncoderDecoderModel": "generated",
}
OPTIONS = 3  # parts of a line at least: a text, and two options of which one is chosen
RowOfOptions = tuple[str, str | None, Sequence[str]]  # text, question, options


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
    question: str | None = None
    """What to ask of each text, for a folder that answers questions or chooses. Default: a text is question, tab,
    context; what options go on from is the text alone."""
    choose: Path | None = None
    """File of questions and their options, as pretrain.finetune reads them, in place of texts; which is right need not
    be there."""
    beams: Annotated[int | None, Range(1, 256)] = None
    """How many beginnings of a text are followed at once while it is written. Default: as the folder says."""
    max_new_tokens: Annotated[int | None, Range(1, 1 << 20)] = None
    """How many tokens are written for a text at most. Default: as the folder says."""
    top: Annotated[int, Range(1, 1e6)] = 5  # no vocabulary is larger
    """How many answers a text, or a mask, at most."""
    embed: Path | None = None
    """File whose lines become vectors of unit length, the mean over their tokens; with --out."""
    out: Path | None = None
    """Where --embed writes them, in numpy's format: float32, a row a line."""
    nearest: Path | None = None
    """File of whose lines those are looked for that mean most nearly what the texts do."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: PredictConfig) -> None:
    """Look at the folder and the texts, then answer each text in turn, and print."""
    content = read_config(config.folder)
    if config.embed is not None or config.nearest is not None or config.out is not None:
        embed(config, content)
        return
    kind: Kind = "fill" if config.fill else kind_of(config.folder, content)
    if config.question is not None and kind not in ("answers", "choice"):
        raise InputError(f"--question: {config.folder} answers {kind}, and no questions")
    if config.choose is not None and (kind != "choice" or config.texts or config.question is not None):
        raise InputError(
            f"--choose: {config.folder} answers {kind}, and chooses nothing"
            if kind != "choice"
            else "--choose FILE takes no texts and no --question: they stand in the file"
        )
    for name in ("beams", "max_new_tokens"):
        if getattr(config, name) is not None and kind != "generated":
            raise InputError(f"--{name}: {config.folder} answers {kind}, and writes no texts")
    pairs = (
        config.pair or (kind == "labels" and answers_pairs(content)) or (kind == "answers" and config.question is None)
    )
    if pairs and kind not in ("labels", "answers"):
        raise InputError(f"--pair: {config.folder} answers {kind}, and no pairs of texts")
    need_tokenizer(config.folder)
    weight_files(config.folder)
    question = None if config.question is None else checked("--question", config.question, 1).replace("\t", " ")
    if kind == "choice":
        rows = rows_of_options(config, question, learnt_questions=content.get("zerobert_pairs"))
    else:
        texts = texts_of(config, 2 if pairs else 1)
        if question is not None:
            texts = (f"{question}\t{text}" for text in texts)
    forbid_network()
    # Behind all that can be refused at once: torch and transformers take seconds.
    with importing():
        from pretrain.inference.pipeline import answer, choose, write

    if kind == "choice":
        choose(config.folder, rows, config.top, config.json)
        return
    if kind == "generated":
        write(config.folder, texts, config.beams, config.max_new_tokens, config.json)
        return
    answer(config.folder, kind, pairs, texts, config.top, config.json)


def rows_of_options(
    config: PredictConfig, question: str | None, *, learnt_questions: bool | None
) -> Iterable[RowOfOptions]:
    """Return what to choose from: the rows of --choose, or texts with options behind tabs.

    learnt_questions: the model was asked one about each text; where it is not now, or the reverse, that is said. None:
        nobody knows

    Raises
    ------
    InputError: a damaged file, or as texts_of().
    """
    if config.choose is not None:
        examples = read_choices(config.choose, answered=False)
        _tell_questions(config, learnt_questions, examples[0].pair is not None)
        return [(str(example.text), example.pair, example.label.texts) for example in examples]
    _tell_questions(config, learnt_questions, question is not None)
    question = None if question is None else in_full(question)
    split = (text.split("\t") for text in texts_of(config, OPTIONS))
    return ((text, question, options) for text, *options in split)


def _tell_questions(config: PredictConfig, learnt: bool | None, asked: bool) -> None:
    if learnt is not None and learnt != asked:
        what = "with a question about each text, and none is asked" if learnt else "without questions about texts"
        say(f"{config.folder} was fine-tuned {what}: its answers may mean little")


def embed(config: PredictConfig, content: JsonObject) -> None:
    """Look at the folder and the file, then write its vectors, or print the lines nearest to the texts.

    Raises
    ------
    InputError: options that do not go together, a file that is not there or no text, a folder without an encoder.
    """
    file = config.embed or config.nearest
    if file is None or (config.embed and config.nearest):
        raise InputError("give --embed FILE --out VECTORS.npy, or --nearest FILE and texts")
    if config.embed and (config.out is None or config.texts):
        raise InputError("--embed FILE takes no texts, and writes to --out VECTORS.npy")
    if content.get("model_type") == "encoder-decoder":
        raise InputError(f"{config.folder} is an encoder with a decoder; give a folder of --head base")
    if not file.is_file():
        raise InputError(f"{file}: " + ("a folder, not a file of lines" if file.exists() else "no such file"))
    if config.out is not None:
        if config.out.is_dir() or config.out.resolve() == file.resolve():
            raise InputError(f"--out {config.out} is a folder, or the file that is read: choose another name")
        check_writable(config.out)
    need_tokenizer(config.folder)
    weight_files(config.folder)
    texts = [] if config.embed else list(texts_of(config, 1))
    blank = [not line.strip() for line in lines_in(file)]
    if all(blank):
        raise InputError(f"{file} holds no text")
    if any(blank):
        what = "each has a row all the same, which means nothing" if config.embed else "which are not looked at"
        say(f"{file}: blank lines: {sum(blank):,}; {what}")
    forbid_network()
    # Behind all that can be refused at once: torch and transformers take seconds.
    with importing():
        from pretrain.inference.embedding import embed_file, print_nearest

    if config.out is not None:
        embed_file(config.folder, lines_in(file), len(blank), config.out, as_json=config.json)
    else:
        print_nearest(config.folder, lines_in(file), texts, top=config.top, as_json=config.json)


def lines_in(file: Path) -> Iterator[str]:
    """Yield the lines of a file, in UTF-8, blank ones included; they end in LF, CR LF or CR, as on standard input.

    Raises
    ------
    InputError: naming a line of another encoding.
    """
    with open(file, encoding="utf-8", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, 1):
            text = line.rstrip("\n")
            yield checked(f"{file}: line {number}", text.removeprefix("\ufeff"), 1) if text.strip() else text


def kind_of(folder: Path, content: JsonObject) -> Kind:
    """Return what a folder answers, from the class that it was saved from.

    Raises
    ------
    InputError: it was saved without a head, or with one that is not known here.
    """
    named = content.get("architectures")
    saved_from = str(named[0]) if isinstance(named, list) and named else "no class"
    for ending, kind in KINDS.items():
        if saved_from.endswith(ending):
            return kind
    known = ", ".join(f"Bert{ending}" if ending.startswith("For") else ending for ending in KINDS)
    raise InputError(
        f"{folder} holds {saved_from}, which answers nothing here (known: {known}); "
        f"fine-tune it first: {call('finetune')}"
    )


def texts_of(config: PredictConfig, parts: int) -> Iterable[str]:
    """Return the texts to answer, all of them checked before the first is answered, unless somebody types them in.

    parts: as for `checked`

    Raises
    ------
    InputError: no text, or as `checked`.
    """
    if config.texts:
        return [checked(f"text {number}", text, parts) for number, text in enumerate(config.texts, 1)]
    if sys.stdin is None:  # closed, as by <&-
        raise InputError("no text: give one on the command line; standard input is closed")
    lines = (checked(f"line {number} of standard input", line, parts) for number, line in lines_of_stdin())
    if sys.stdin.isatty():
        return lines
    texts = list(lines)
    if not texts:
        raise InputError("no text: give one on the command line, or lines on standard input")
    return texts


def lines_of_stdin() -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines that are not blank, in UTF-8 whatever the locale says; how many are blank is
    said.

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


def checked(where: str, text: str, parts: int) -> str:
    """Return `text`, if it can be answered; otherwise an InputError says where it stands.

    parts: how many texts tabs part; of OPTIONS there may be more. Of one, a tab is white space
    """
    if "\0" in text or text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        what = "a zero byte" if "\0" in text else "a byte order mark"
        raise InputError(f"{where} holds {what}, as in UTF-16; convert it, for example: iconv -f UTF-16 -t UTF-8")
    if re.search("[\udc80-\udcff]", text):
        raise InputError(f"{where} is not UTF-8; convert it, for example: iconv -f WINDOWS-1252 -t UTF-8")
    if not text.strip():
        raise InputError(f"{where} is empty")
    tabs = text.count("\t")
    if parts == OPTIONS and (tabs < 2 or not all(part.strip() for part in text.split("\t"))):
        raise InputError(
            f"{where}: tabs must separate a text and two options or more, none of them empty: {text[:60]!r}; "
            "or give a file: --choose FILE"
        )
    if parts == 2 and tabs != 1:
        what = f"{tabs} tabs, but one alone must" if tabs else "a tab must"
        raise InputError(f"{where}: {what} separate the two texts that this model answers: {text[:60]!r}")
    return text


def answers_pairs(content: JsonObject) -> bool:
    """Return whether a folder was fine-tuned on pairs of texts."""
    return content.get("zerobert_pairs") is True or content.get("zerobert_task") == "pair"


if __name__ == "__main__":
    run(main, PredictConfig, __doc__)
