"""kill -9 at random moments of training and saving: does every run end with the weights of an undisturbed one?

    python benchmarks/faults.py --points 50
    python benchmarks/faults.py --points 0 --flips      every byte of a manifest, a state, a config.json, flipped

Each point starts two ranks, kills one of them or both at a random moment, starts them again from what is on disk, and
compares the last checkpoint with the undisturbed run's, byte for byte. One JSON line; ends with 1 if a point failed.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    import tests.conftest  # noqa: F401 - one thread, on the CPU; before torch

from benchmarks.machine import machine
from data_prep.cli import parse, say
from data_prep.fields import read_fields, write_sealed
from data_prep.store import Store
from pretrain.checkpoints.format import MANIFEST, STATE, Manifest, checkpoint_dir, list_checkpoints
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.train import train
from tests.checkpoints import RECORD, checkpoint_of
from tests.damage import sweep
from tests.ranks import run_ranks, start_ranks
from tests.runs import SAVING_STEPS, contents, saving_run, steps_done
from tests.stores import random_documents, store_of


@dataclass(frozen=True)
class FaultsConfig:
    """How many times."""

    points: int = 50
    """kills"""
    seed: int = 0
    """of the moments and the victims"""
    flips: bool = False
    """flip each byte of small files, by three masks: refused by name, or the same content; fails otherwise"""


def main(settings: FaultsConfig) -> None:
    draw = random.Random(settings.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = store_of(folder / "store", random_documents(40), held_out={3, 17}).folder
        run_ranks(2, train, saving_run(store, folder / "undisturbed", save_every=2))
        expected = contents(checkpoint_dir(folder / "undisturbed", SAVING_STEPS))
        outcomes = [strike(store, folder / f"run-{point}", draw) for point in range(settings.points)]
        equal = [
            contents(checkpoint_dir(folder / f"run-{p}", SAVING_STEPS)) == expected for p in range(settings.points)
        ]
        with redirect_stdout(sys.stderr):  # what the sweeps of the tests say on their way
            flipped = flips(folder / "flips") if settings.flips else {}
    result = {
        "name": "faults" if settings.points else "flips",
        "figures": {
            "points": settings.points,
            "bit_equal": sum(equal),
            "killed_before_the_first_checkpoint": sum(outcome["checkpoints"] == 0 for outcome in outcomes),
            "killed_while_saving": sum(outcome["staged"] for outcome in outcomes),
            "steps_at_the_kill": sorted(outcome["steps"] for outcome in outcomes),
            "flips": flipped,
        },
        "ratio": sum(equal) / max(settings.points, 1),
    }
    print(json.dumps(result | machine("torch", "deepspeed")))
    sys.exit(0 if all(equal) else 1)


def flips(run: Path) -> dict[str, dict[str, int]]:
    """How many flips of a byte were refused, and how many changed nothing (white space), by file."""
    saved = checkpoint_of(run, 6)
    write_sealed(run / "config.json", RECORD)
    store = store_of(run / "store", random_documents(12), shards=2).folder
    manifest = json.loads((store / "manifest.json").read_text())
    write_sealed(store / "manifest.json", manifest)
    reads: dict[Path, Callable[[], Any]] = {
        saved / MANIFEST: lambda: Manifest.read(saved),
        saved / STATE: lambda: verify_checkpoint(saved),
        run / "config.json": lambda: {name: read_fields(run / "config.json", "").content[name] for name in RECORD},
        store / "manifest.json": lambda: Store.open(store).manifest,
    }
    return {str(path.relative_to(run)): dict(sweep(path, read, masks=3)) for path, read in reads.items()}


def strike(store: Path, run: Path, draw: random.Random) -> dict[str, int]:
    """Train, kill, train again; what was there at the kill."""
    ranks = start_ranks(2, train, saving_run(store, run, save_every=2))
    step = draw.randrange(SAVING_STEPS)
    while steps_done(run) < step:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))  # anywhere in a step, or in the save after it
    victims = draw.choice([[0], [1], [0, 1]])
    for victim in victims:
        ranks[victim][0].kill()
    time.sleep(draw.uniform(0, 0.1))  # what a launcher takes to notice
    for process, _ in ranks:
        process.kill()
        process.join()
    found = {
        "steps": steps_done(run),
        "checkpoints": len(list_checkpoints(run)),
        "staged": len(list((run / "checkpoints").glob("*.partial*"))),
    }
    say(f"{run.name}: killed {victims} after step {found['steps']}, {found['checkpoints']} checkpoints")
    run_ranks(2, train, saving_run(store, run, save_every=2))
    return found


if __name__ == "__main__":
    main(parse(FaultsConfig, __doc__))
