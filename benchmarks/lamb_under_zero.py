"""How far LAMB's weights are from a float64 reference after 12 steps: ours, and as it is usually written.

    python benchmarks/lamb_under_zero.py

One JSON line: for each (stage, ranks) the distance relative to how far the reference has moved. About three minutes.
"""

import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    import tests.conftest  # noqa: F401 - one thread, on the CPU

from benchmarks.machine import machine
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.train import train
from tests.lamb_runs import STEPS, lamb_run, reference_weights, train_naively
from tests.ranks import run_ranks
from tests.runs import distance, weights
from tests.stores import random_documents, store_of

CUTS = [(zero, world) for world in (1, 2, 3, 4) for zero in (0, 1, 2, 3)]


def main() -> None:
    errors: dict[str, dict[str, float]] = {"ours": {}, "usual": {}}
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder) / "store", random_documents(40)).folder
        final, start = reference_weights(store)
        for zero, world in CUTS:
            for kind, function in (("ours", train), ("usual", train_naively)):
                out = Path(folder) / f"{kind}-{zero}-{world}"
                run_ranks(world, function, lamb_run(store, out, zero=zero))
                errors[kind][f"zero {zero}, {world} ranks"] = distance(
                    weights(checkpoint_dir(out, STEPS)), final, start
                )
    result = {
        "name": "lamb_under_zero",
        "figures": errors,
        "ratio": min(v for k, v in errors["usual"].items() if "zero 0" not in k) / max(errors["ours"].values()),
    }
    print(json.dumps(result | machine("torch", "deepspeed", "transformers")))


if __name__ == "__main__":
    main()
