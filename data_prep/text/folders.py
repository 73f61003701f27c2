"""Which files of a folder are text of a corpus, in sorted order, and which are left out, by name.

    files = text_files(Path("wiki"), is_known, out=Path("wiki/store"))

Links to folders are not followed, hidden files not read. What this project writes is no text, wherever it lies: stores
(finished or not), runs, models, the vocabulary of a tokenizer, folders of `make`, and the --out of the command itself,
so that a second run of it sees the same corpus. All that is left out is said, by kind and name.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_prep.cli import InputError, printable, say

NAMES_SHOWN = 4  # names of a kind
_ASIDE = re.compile(r"\.partial[0-9a-f]{8}$")  # what a crash left of a file of data_prep/files.py
_SHARD = re.compile(r"shard-\d{5,}-\d{3,}\.bin$")
_WEIGHTS = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}
_SPECIAL = {"[CLS]", "[SEP]", "[MASK]"}
_OF_TOKENIZERS = {
    *("vocab.txt", "merges.txt", "added_tokens.txt"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json", "added_tokens.json"),
}
# What makes text of what is none; docs/corpora.md has the commands.
_HOW = {
    "trafilatura": (".html", ".htm", ".xhtml", ".mhtml", ".warc"),
    "pdftotext": (".pdf",),
    "pandoc": (".docx", ".odt", ".epub", ".rtf", ".fb2", ".md", ".markdown", ".rst", ".tex", ".org", ".ipynb"),
    "LibreOffice": (".doc", ".ppt", ".pptx", ".odp"),
    "a spreadsheet, as .csv": (".xlsx", ".xls", ".ods"),
    "tesseract": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".djvu"),
    "--dataset FOLDER": (".arrow",),
    "unpacking": (".zip", ".7z", ".rar", ".xz", ".lz4"),
    "ffmpeg, as .txt": (".srt", ".vtt"),
}

_TOOLS = {ending: tool for tool, endings in _HOW.items() for ending in endings}


def text_files(folder: Path, is_known: Callable[[Path], bool], out: Path | None = None) -> list[Path]:
    """Return the files below a folder that are text; what is left out is said.

    Raises
    ------
    InputError: a folder that cannot be read; one that is a store, a run or a model itself.
    """
    others: dict[str, list[str]] = {}
    found: list[Path] = []
    if folder.resolve() == Path("/"):
        raise InputError(f"{printable(folder)} is the whole machine, not text; give the folder of the text")
    try:
        for path, why in _walk(folder, out.resolve() if out is not None else None):
            if not why and is_known(path):
                found.append(path)
            else:
                others.setdefault(why or _kind_of(path), []).append(path.relative_to(folder).as_posix())
    except OSError as error:
        _refuse(error)
    if others:
        say(f"{printable(folder)}: left out: {'; '.join(_named(why, others[why]) for why in sorted(others))}")
    endings = sorted(ending for why in others if (ending := why.removesuffix(" files")) in _TOOLS)
    if endings:
        ways = ", ".join(f"{ending} by {_TOOLS[ending]}" for ending in endings)
        say(f"{printable(folder)}: text can be made of {ways}: docs/corpora.md")
    return sorted(found)


def how_to_read(path: Path) -> str:
    """Return what makes text of a file of this ending, to be put into a message; "" where nobody knows."""
    tool = _TOOLS.get(path.suffix.lower())
    return f" (text can be made of it by {tool}: docs/corpora.md)" if tool else ""


def left_out(names: Iterable[str]) -> str:
    """Return files that are left out, by ending and name."""
    by_kind: dict[str, list[str]] = {}
    for name in names:
        by_kind.setdefault(_kind_of(Path(name)), []).append(name)
    return "; ".join(_named(kind, by_kind[kind]) for kind in sorted(by_kind))


def _named(kind: str, names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{kind}: {len(names):,} ({', '.join(map(printable, names[:NAMES_SHOWN]))}{more})"


def _walk(folder: Path, out: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield files below a folder, with the reason if they are left out for what they are or where they lie; so are
    folders into which there is no going."""
    for here, folders, names in os.walk(folder, onerror=_refuse):
        place = Path(here)
        what = _ours(place, folders, names)
        if what and place == folder:
            raise InputError(f"{printable(folder)} is {what}, not text; give the folder of the text")
        for name in sorted(folders):
            if why := _closed(place / name, out):
                folders.remove(name)
                yield place / name, why
        if what:
            yield place, what
            folders.clear()
            continue
        for name in names:
            yield place / name, _why_not(place / name, names, out)


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{printable(error.filename)} cannot be read: {error.strerror}; make it readable, or name what lies beside it"
    ) from error


def _closed(folder: Path, out: Path | None) -> str:
    if folder.name.startswith("."):
        return "hidden"
    if folder.is_symlink():
        return "links to folders"
    if out is not None and folder.resolve() == out:
        return "the --out of this command"
    return "half-written by this project" if _ASIDE.search(folder.name) else ""


def _why_not(path: Path, beside: list[str], out: Path | None) -> str:
    if path.name.startswith("."):
        return "hidden"
    if _ASIDE.search(path.name):
        return "half-written by this project"
    if not path.is_file():
        return "links to nothing" if path.is_symlink() else "pipes, sockets or devices"
    if out is not None and path.resolve() == out:
        return "the --out of this command"
    return "of a tokenizer" if _is_of_tokenizer(path, beside) else ""


def _ours(folder: Path, folders: list[str], names: list[str]) -> str:
    """Return what of this project a folder is, if it is any."""
    if "make.json" in names and _is_object_with(folder / "make.json", {"sources", "given", "stages"}):
        return "made by `make`"
    if "parts" in folders and (folder / "parts/plan.json").is_file():
        return "a token store in the making"
    if "manifest.json" in names and (
        any(map(_SHARD.match, names)) or _is_object_with(folder / "manifest.json", {"format", "vocab", "shards"})
    ):
        return "a token store"
    if "config.json" in names and ("metrics.jsonl" in names or "checkpoints" in folders):
        return "a run of training"
    return "a model" if "config.json" in names and not _WEIGHTS.isdisjoint(names) else ""


def _is_object_with(path: Path, keys: set[str]) -> bool:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and keys <= content.keys()


def _is_of_tokenizer(path: Path, beside: list[str]) -> bool:
    """Whether a file is the vocabulary of a tokenizer: beside tokenizer.json, or by what it holds."""
    if path.name in _OF_TOKENIZERS and ("tokenizer.json" in beside or "tokenizer_config.json" in beside):
        return True
    if "vocab" not in path.name or path.suffix != ".txt":
        return False
    with open(path, "rb") as file:
        entries = file.read(1 << 16).decode("utf-8", "replace").split()
    return set(entries) >= _SPECIAL


def _kind_of(path: Path) -> str:
    return f"{path.suffix.lower()} files" if path.suffix else "files without an ending"
