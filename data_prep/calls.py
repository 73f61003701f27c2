"""The commands of the project, and how to name them to a user: in the style in which the program was called.

    call("shard", "--corpus", "my texts")      words to paste: python data_prep/shard.py --corpus 'my texts'
                                               or, where it was called so: zerobert shard --corpus 'my texts'
    own()                                      the running command itself, for its usage line
    in_style(text)                             a text whose examples are literal, in that style

A command that starts others hands its style on in the environment, so that all of them speak as the first was called.
Standard library only.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STYLE = "ZEROBERT_CALL"  # the variable that hands it on: "zerobert", "bash launch/pretrain.sh", ...
CONSOLE = "launch.zerobert"
PRETRAIN = "launch/pretrain.sh"


class Command(NamedTuple):
    """A command: the module that `python -m` runs, and what it does."""

    module: str
    what: str


COMMANDS = {
    "make": Command("launch.make", "texts and hours -> a model: all that follows, one after another"),
    "plan": Command("pretrain.advice", "what fits these texts, this machine, these hours"),
    "vocab": Command("data_prep.vocab", "texts -> a tokenizer folder"),
    "shard": Command("data_prep.shard", "texts -> a token store"),
    "show": Command("data_prep.show", "look at a store: figures, samples, checksums"),
    "dedup": Command("data_prep.dedup", "texts -> a list of copies, for shard --drop"),
    "train": Command("pretrain.train", "stores -> a pretrained BERT, on all GPUs or RANKS=N"),
    "export": Command("pretrain.export", "a run or checkpoint -> a Hugging Face folder"),
    "finetune": Command(
        "pretrain.finetune", "a Hugging Face folder and labelled text -> a model for a task, with its score"
    ),
    "predict": Command("pretrain.predict", "ask a model: missing words, labels, tags"),
    "score": Command("pretrain.score", "minimal pairs or texts -> how likely a model finds them"),
    "report": Command("pretrain.report", "runs -> a page with their curves"),
    "doctor": Command("launch.doctor", "this machine, or those of a hostfile: what would go wrong, and its remedy"),
}
_NAMES = {command.module: name for name, command in COMMANDS.items()}
# What examples say literally.
_LITERAL = re.compile(
    r"(?P<bash>bash launch/pretrain\.sh)"
    r"|(?:\.venv/bin/)?python (?:(?P<folder>data_prep|launch)/(?P<file>\w+)\.py|-m (?P<module>[\w.]+\w))"
)


def call(name: str, *arguments: object) -> str:
    """Return the words that run a command with `arguments`, quoted for a shell, in the style of this process."""
    return shlex.join([*_words(name), *map(str, arguments)])


def own() -> str:
    """Return the words by which this process was called, without its arguments."""
    style, name, words = _style(), _name(), typed()
    if _is_console(style):
        return shlex.join([*style, name] if name else style)
    if words[-1].endswith(PRETRAIN):  # a rank, which the launcher has started
        return shlex.join(style if style[-1].endswith(PRETRAIN) and STYLE in os.environ else ["deepspeed", words[-1]])
    return shlex.join(words)


def in_style(text: str) -> str:
    """`text` with each literal call of a command in the style of this process."""

    def spoken(found: re.Match[str]) -> str:
        module = found["module"] or ("pretrain.train" if found["bash"] else f"{found['folder']}.{found['file']}")
        name = _NAMES.get(module)
        return call(name) if name else found[0]

    return _LITERAL.sub(spoken, text)


def typed() -> list[str]:
    """Return the words of this process before its arguments, as short as they can be pasted here."""
    head = sys.orig_argv[: max(1, len(sys.orig_argv) - len(sys.argv) + 1)]
    if Path(head[-1]).name == "zerobert":  # the interpreter before it is the script's own first line
        return [_short(head[-1])]
    return [_short(head[0]), *head[1:]]


def hand_on() -> None:
    """Let this process, whatever becomes of its arguments, and all that it starts speak as it was called."""
    os.environ.setdefault(STYLE, shlex.join(typed()))


def _style() -> list[str]:
    return shlex.split(os.environ.get(STYLE, "")) or typed()


def _name() -> str | None:
    """Of the command that runs here."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), Path(getattr(main, "__file__", None) or "")
    if spec is not None:
        return _NAMES.get(spec.name.removesuffix(".__main__"))
    return _NAMES.get("pretrain.train" if file.match(PRETRAIN) else f"{file.parent.name}.{file.stem}")


def _is_console(style: list[str]) -> bool:
    return style[-1] == CONSOLE or Path(style[-1]).stem == "zerobert"


def _words(name: str) -> list[str]:
    style, module = _style(), COMMANDS[name].module
    if _is_console(style):
        return [*style, name]
    if name == "train":
        return ["bash", _from_here(ROOT / PRETRAIN)]
    was_python = "python" in Path(style[0]).name
    python = style[0] if was_python else _short(sys.executable)
    if module.startswith("pretrain."):
        return [python, "-m", module]
    return [python, _from_here(ROOT / f"{module.replace('.', '/')}.py")]


def _from_here(path: Path) -> str:
    """Return a path as one would type it in the working directory."""
    return min(os.path.relpath(path), str(path), key=len)


def _short(program: str) -> str:
    """Return a program as one would type it: by its name where the shell finds it."""
    if "/" not in program:
        return program
    found = shutil.which(Path(program).name)
    if found is not None and os.path.abspath(found) == os.path.abspath(program):
        return Path(program).name
    return _from_here(Path(os.path.abspath(program)))
