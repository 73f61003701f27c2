"""How transformers opens a tokenizer folder: asked in a process aside, without torch, and kept on this machine.

    opened_by_transformers(folder) -> Opened     ids, special tokens, segments, padding, and the tokenizer within

AutoTokenizer is imported in a process aside, without torch, unless this one has it already; what it said is kept by the
hash of the folder.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import ROOT, InputError, say
from data_prep.fields import SEAL, read_fields, write_sealed
from data_prep.files import cache_folder, write_json
from data_prep.tokens.encode import ADVERSARIAL_STRINGS, ROLES
from data_prep.tokens.tokenizer_folder import copy_tokenizer, tokenizer_sha256

LONG_TEXT = " ".join(ADVERSARIAL_STRINGS) * 4  # longer than any model, so that a cut is seen


class Opened(NamedTuple):
    """A folder as AutoTokenizer opens it."""

    kind: str  # the class
    state: str  # of the tokenizer within, as JSON
    size: int
    special_ids: dict[str, int | None]  # by role
    one: list[int]  # a text as a model gets it
    long: list[int]
    two: list[int]  # a pair, and the segment of each of its tokens
    segments: list[int]
    padding_side: str


def open_with_transformers(folder: Path) -> Opened:
    """Open a folder as everyone who uses the exported model will: by AutoTokenizer, running no code of the folder's."""
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    plain: dict[str, Any] = {"split_special_tokens": True, "verbose": False}  # a literal "[MASK]" is text here
    pair = theirs(ADVERSARIAL_STRINGS[0], ADVERSARIAL_STRINGS[2], **plain)
    names = {role: getattr(theirs, f"{role}_token") for role in ROLES}
    return Opened(
        type(theirs).__name__,
        theirs.backend_tokenizer.to_str(),
        len(theirs),
        {role: theirs.convert_tokens_to_ids(str(name)) if name else None for role, name in names.items()},
        theirs(ADVERSARIAL_STRINGS[0], **plain)["input_ids"],
        theirs(LONG_TEXT, **plain)["input_ids"],
        pair["input_ids"],
        pair.get("token_type_ids", []),
        theirs.padding_side,
    )


def opened_by_transformers(folder: Path) -> Opened:
    """Return `folder` as it is opened beside a BERT's config.json, as it will lie in an exported folder.

    What transformers makes of a tokenizer is a function of its files and of two versions: it is kept, since importing
    transformers takes longer than a small corpus.

    Raises
    ------
    ValueError: transformers cannot open it.
    """
    versions = (
        tokenizer_sha256(folder),
        version("transformers"),
        version("tokenizers"),
        sys.version,
        ADVERSARIAL_STRINGS,
        Path(__file__).read_text(),
    )
    key = hashlib.sha256(repr(versions).encode()).hexdigest()[:20]
    kept = None if (cached := cache_folder()) is None else cached / f"tokenizer-{key}.json"
    if kept is not None and kept.is_file():
        with suppress(InputError, TypeError):  # damaged: it is made again
            content = read_fields(kept, "it is made again").content
            return Opened(**{name: value for name, value in content.items() if name != SEAL})
    opened = _opened_now(folder)
    if kept is not None:
        try:
            write_sealed(kept, opened._asdict())
        except OSError as error:  # a full disk must not stop what can do without
            say(f"warning: what transformers makes of {folder} is not kept ({error})")
    return opened


def _opened_now(folder: Path) -> Opened:
    with tempfile.TemporaryDirectory() as scratch:
        beside = Path(scratch) / "hf"
        beside.mkdir()
        copy_tokenizer(folder, beside)
        write_json(beside / "config.json", {"model_type": "bert"}, sync=False)
        if "transformers" in sys.modules:
            try:
                return open_with_transformers(beside)
            except Exception as error:  # the tokenizers library raises bare Exception
                raise ValueError(f"{type(error).__name__}: {error}") from error
        command = [sys.executable, "-m", "data_prep.tokens.as_transformers", str(beside)]
        aside = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        if aside.returncode:
            raise ValueError((aside.stderr.strip().splitlines() or ["no message"])[-1])
        return Opened(**json.loads(aside.stdout))


def _main() -> None:
    """The process aside: print a folder as transformers opens it."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # half the time and three quarters of the memory
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "critical",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }
    print(json.dumps(open_with_transformers(Path(sys.argv[1]))._asdict()))


if __name__ == "__main__":
    _main()
