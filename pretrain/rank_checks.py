"""What must be alike on all ranks: software, settings, stores, and the folder that they write into.

    distributed.check_same_on_all_ranks(what_ranks_share(record, ds_configs, identity))      before anything is written
    check_shared(run)                                                             once the first rank has locked it

Two nodes with other versions, another copy of a store or another command would train on, each at its own.
"""

import time
from pathlib import Path

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.version import code_sha256
from pretrain.checkpoints.format import ModelIdentity
from pretrain.checkpoints.run_lock import lock_holder
from pretrain.distributed import all_ranks_or_none, broadcast_object
from pretrain.run_record import RunRecord

# Of the settings, these may be others on each node: folders mounted elsewhere. What they hold is compared.
OF_NODES = ("data", "out", "ds_config", "init_from", "eval_pairs", "resume")
SHARED_WITHIN = 60.0  # seconds until every node sees a file of another: NFS remembers for so long that there was none


def what_ranks_share(record: RunRecord, ds_configs: list[JsonObject], identity: ModelIdentity) -> JsonObject:
    """Return all that must be the same on every rank: software, settings, and the contents of stores and models."""
    shared = {f"--{name}": value for name, value in record["train"].items() if name not in OF_NODES}
    for index, phase in enumerate(ds_configs, 1):
        shared |= _flat(phase, "DeepSpeed setting " if len(ds_configs) == 1 else f"phase {index}'s DeepSpeed setting ")
    shared |= record["versions"] | {"python": record["python"], "zerobert's code": code_sha256()[:12]}
    shared["tokenizer"] = identity.vocab_sha256[:12]
    shared |= {f"store {number}": store["identity"][:12] for number, store in enumerate(record["stores"], 1)}
    for index, phase in enumerate(record["phases"], 1):
        which = "" if len(record["phases"]) == 1 else f"phase {index}'s "
        shared |= {f"{which}passes of store {number}": passes for number, passes in enumerate(phase["passes"], 1)}
    return (
        shared
        | {f"model's {name}": value for name, value in identity.model.items()}
        | {
            "--init_from": record.get("init_sha256", "")[:12],
            "--eval_pairs": record.get("eval_pairs_sha256", "")[:12],
        }
    )


def _flat(content: JsonObject, prefix: str) -> JsonObject:
    """Return a nested dict by dotted names."""
    flat: JsonObject = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def check_shared(run: Path) -> None:
    """Refuse a run folder that is another one on another node: every rank must see who has locked it. Collective."""
    holder = broadcast_object(lock_holder(run))
    until = time.monotonic() + SHARED_WITHIN
    while (seen := lock_holder(run)) != holder and time.monotonic() < until:
        time.sleep(0.2)
    with all_ranks_or_none(f"run folder {run}"):
        if seen != holder:
            raise InputError(
                f"--out {run} is not the folder that rank 0 on {holder.host if holder else 'its node'} writes into; "
                "checkpoints need one that all nodes share"
            )
