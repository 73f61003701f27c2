"""Files of torch.save, read without running what they hold: a pickle is a program.

content = load(path, ALLOWED, remedy="...")       tensors mapped from the file, everything else inert

torch's restricted unpickler reads them, with an allow-list of names. Even those are never imported: a stand-in that
keeps nothing takes their place. Any other name is refused, named. The checksums of an archive are compared first.
"""

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from data_prep.cli import InputError, one_line


class Inert:
    """Stands for an object that is not needed: made from anything, it keeps nothing."""

    def __new__(cls, *arguments: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Of NumPy and the standard library, that trainers keep beside weights: none is imported.
COMMON = """
    argparse.Namespace types.SimpleNamespace pathlib.PosixPath
    numpy.ndarray numpy.dtype numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar
""".split()


def load(path: Path, allowed: list[Any], *, remedy: str) -> Any:
    """Return the content of an archive of torch.save, tensors mapped from it; nothing outside the allow-list comes to
    life.

    remedy: the end of a refusal, what to do about it

    Raises
    ------
    InputError: damaged, or refused, naming what is.
    """
    check_archive(path)
    return _load(path, allowed, remedy, is_archive=True)


def load_any(path: Path, allowed: list[Any], *, remedy: str) -> Any:
    """As load(), also of torch before 1.6, which wrote no archive and no checksums."""
    if zipfile.is_zipfile(path):
        return load(path, allowed, remedy=remedy)
    return _load(path, allowed, remedy, is_archive=False)


def _load(path: Path, allowed: list[Any], remedy: str, *, is_archive: bool) -> Any:
    try:
        with _only(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(f"{path} is refused: it calls {found[1]}, which holds no weights. {remedy}") from error
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))  # behind advice that is not for us
        raise InputError(f"{path} is refused: {found[1] if found else one_line(error)}; {remedy}") from error
    except Exception as error:  # whatever a damaged or a forged pickle makes the reader stumble over
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def check_archive(path: Path) -> None:
    """Refuse a damaged archive: torch.load itself does not look at checksums.

    Raises
    ------
    InputError: naming what is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} is not a whole file of torch.save: {one_line(error)}") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged: the checksum of {damaged} does not fit")


@contextmanager
def _only(allowed: list[Any]) -> Iterator[None]:
    """Allow exactly these names beside torch's own, whatever other libraries have added for themselves."""
    others = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(allowed)
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(others)
