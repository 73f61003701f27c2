"""Files that a reader sees whole or not at all: written aside, fsynced, renamed.

A crash leaves at most `NAME.partial*` behind, which no reader takes for NAME and the next writer replaces.
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_prep.errors import InputError

_HASH_CHUNK_BYTES = 1 << 22


def write_whole(path: Path, chunks: Iterable[bytes | memoryview], sync: bool = True) -> None:
    """Write `chunks` to `path`; a reader sees the old file or the new one, never a part.

    Without `sync` this holds for a process that dies, not for a power cut: for files that can be made again.

    Raises
    ------
    OSError: from the disk (full, read-only); `path` is then as it was.
    """
    partial = _aside(path)
    try:
        with open(partial, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_json(path: Path, content: Any, sync: bool = True) -> None:
    """Write `content` as indented JSON, whole or not at all; the same content gives the same bytes."""
    write_whole(path, [json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"], sync)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder aside, then put it in the place of `folder`, which may exist.

    Folders and files get the mode that the umask gives, whatever library wrote them or whence they were copied. Of a
    link, what it points to is replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _aside(folder)
    partial.mkdir()
    mode = partial.stat().st_mode  # before shutil.copytree gives it another
    try:
        fill(partial)
        for path in (partial, *partial.rglob("*")):
            path.chmod(mode & 0o777 if path.is_dir() else mode & 0o666)
        sync_tree(partial)
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(out: Path, within: bool = False) -> None:
    """Refuse a place where nothing can be written, before hours are spent on what is to go there: the nearest folder
    that exists, since results are made beside `out` and renamed. within: in `out` itself, where it is there.

    Raises
    ------
    InputError: naming that folder.
    """
    above = next(path for path in ([out.absolute()] * within + [*out.absolute().parents]) if path.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is a file: choose a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {above} cannot be written to: choose another folder")


def check_out(out: Path, inputs: Iterable[Path], record: str, always: Iterable[str] = ()) -> None:
    """Refuse an output folder that holds anything but an earlier result, for it will be replaced as a whole.

    record: a JSON file of the result which lists the others under "files"
    always: files that a result may have beside, of versions that did not list them

    Raises
    ------
    InputError: as said, or one of `inputs` is or lies in `out`.
    """
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"--out {out} would replace {path}, which is read: choose another folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: {out} is a file: choose a folder")
    check_writable(out)
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    try:
        written = {*json.loads((out / record).read_text("utf-8"))["files"]}
    except KeyError:
        written = {*always}
    except (OSError, ValueError, TypeError):
        written = set()
    if foreign := sorted(present - written):
        raise InputError(
            f"--out {out} holds {foreign[0]}, which is of no earlier result of this command: choose another folder"
        )


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. An existing `folder` is moved away first: a rename cannot replace a filled folder."""
    old = _aside(folder)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Return a name of our own beside `path`: process numbers repeat across the hosts of a shared file system."""
    return path.with_name(f"{path.name}.partial{secrets.token_hex(4)}")


def cache_folder() -> Path | None:
    """Return where files go that can be made again: $ZEROBERT_CACHE, or a folder of this user among the temporary
    files, which nobody else may write to. None where there is none."""
    given = os.environ.get("ZEROBERT_CACHE")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"zerobert-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    theirs = status.st_uid != os.getuid() or status.st_mode & 0o022
    return None if not given and theirs else folder


def set_umask_mode(path: Path) -> None:
    """Give a file the mode that the umask gives: read off its folder, which must be new, since asking for the umask
    itself changes it for all threads. safetensors writes 600, and a copy has the mode of what was copied."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()
