"""What a fine-tuning leaves beside OUT while it is under way, so that the same command goes on where it was.

    OUT.progress/  command.json       what was asked for: options, and checksums of what is read
                   seed-0.json        scores and answers of a seed that is done
                   model/             the model of the first seed, which OUT will hold
                   seed-1/step-120/   the newest checkpoint of the seed under way (checkpoints.py)
                   writing/           a checkpoint before it is whole
                   lock.json          who is at it

The folder goes when OUT is whole. No torch here: another command is refused before that is imported.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError
from data_prep.fields import read_fields, write_sealed
from data_prep.files import sha256_of, write_json
from data_prep.json_types import JsonObject
from data_prep.untrusted import read_object
from pretrain.finetune.config import FinetuneConfig

COMMAND, MODEL, SCRATCH, LOCK = "command.json", "model", "writing", "lock.json"
PATHS = ("hf", "train", "eval", "decoder")  # compared by their content
OF_NO_RESULT = ("out", "json", "save_minutes")
OF_NO_SEED = (*OF_NO_RESULT, "seeds")  # a seed is the same however many there are


class Outcome(NamedTuple):
    """What a seed that is done leaves."""

    entry: JsonObject  # of results.json
    answers: list[Any]  # to the examples that are measured on
    encoder_cosine: float | None  # before the first one was trained


def progress_of(out: Path) -> Path:
    """Return the folder beside OUT of what is under way for it."""
    out = out.resolve()
    return out.with_name(f"{out.name}.progress")


class Unfinished:
    """The folder of a fine-tuning under way. Nothing is written before there is something to keep."""

    def __init__(self, config: FinetuneConfig):
        self.config, self.folder = config, progress_of(config.out)

    @property
    def model(self) -> Path:
        """Return the folder of the model that OUT will hold."""
        return self.folder / MODEL

    def of_seed(self, seed: int) -> Path:
        """Return the folder of a seed's checkpoints."""
        return self.folder / f"seed-{seed}"

    def check(self) -> None:
        """Refuse to go on with what another command has begun.

        Raises
        ------
        InputError: as said, naming the difference; or the folder is none of ours.
        """
        path = self.folder / COMMAND
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}, where what is under way would lie, is a file: choose another --out")
        if not path.is_file():
            names = {each.name for each in _within(self.folder) if not each.name.startswith(LOCK)}
            if foreign := sorted(names - {SCRATCH}):
                raise InputError(f"{self.folder} holds {foreign[0]}, and is none of ours: choose another --out")
            return
        begun, asked = read_object(path), self._command()
        if begun == asked:
            return
        name = next(name for name in {**asked, **begun} if begun.get(name) != asked.get(name))
        if name in PATHS:
            option = "another Hugging Face folder" if name == "hf" else f"another --{name}"
            what = f"with {option} than {getattr(self.config, name)}"
        else:
            what = f"{_spelled(name, begun.get(name))}, not {_spelled(name, asked.get(name))}"
        raise InputError(
            f"--out {self.config.out}: the fine-tuning that is not finished there was begun {what}; give that "
            f"command again to go on, another --out, or remove {self.folder} to begin anew"
        )

    def begin(self) -> None:
        """Note which command it is, before anything else is kept."""
        if not (self.folder / COMMAND).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / COMMAND, self._command())

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what is not whole yet; it goes with the block."""
        folder = self.folder / SCRATCH
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def done(self, seed: int) -> Outcome | None:
        """Return what a seed has led to, where it is done; the first one is, when its model is there, too.

        Raises
        ------
        InputError: what was kept is damaged.
        """
        path = self.folder / f"seed-{seed}.json"
        if not path.is_file() or (seed == self.config.seed and not self.model.is_dir()):
            return None
        kept = read_fields(path, "remove it to train this seed anew")
        return Outcome(kept.object("entry").content, kept.list("answers"), kept.get("encoder_cosine"))

    def keep(self, seed: int, outcome: Outcome) -> None:
        """Note that a seed is done; its checkpoints go."""
        self.begin()
        write_sealed(self.folder / f"seed-{seed}.json", outcome._asdict())
        shutil.rmtree(self.of_seed(seed), ignore_errors=True)

    def place_model(self, folder: Path) -> None:
        """Put the model that is kept into `folder`, without a copy where the disk can."""
        shutil.copytree(self.model, folder, copy_function=_place, dirs_exist_ok=True)

    def clear(self) -> None:
        """Remove all but the lock, which its holder takes away."""
        for path in _within(self.folder):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)  # as a lock that its heartbeat has written aside, and put into place since

    def give_up(self) -> int:
        """Remove what went wrong, and all where no seed is done before it; the number of seeds that are done."""
        done = 0
        while self.done(self.config.seed + done) is not None:
            done += 1
        if done:
            shutil.rmtree(self.of_seed(self.config.seed + done), ignore_errors=True)
        else:
            self.clear()
        return done

    def remove_empty(self) -> None:
        """Remove the folder, when the lock is gone and nothing else is in it."""
        with suppress(OSError):
            self.folder.rmdir()

    def _command(self) -> JsonObject:
        """Return all that decides the result; a file is its content, wherever it lies."""
        given = {name: value for name, value in asdict(self.config).items() if name not in OF_NO_SEED}
        for name in PATHS:
            if given[name] is not None:
                given[name] = _content_of(given[name])
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _content_of(path: Path) -> str:
    """Return a checksum of a file, or of the files of a Hugging Face folder."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".safetensors"):
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _within(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _spelled(name: str, value: Any) -> str:
    """Return an option as it was given: with --lr 0.1, without --lr."""
    if value is None or value is False or value == []:
        return f"without --{name}"
    words = [] if value is True else value if isinstance(value, list) else [value]
    return " ".join([f"with --{name}", *map(str, words)])


def _place(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
