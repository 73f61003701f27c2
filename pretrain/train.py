"""Pretrain a BERT from token stores.

    deepspeed launch/pretrain.sh --data STORE --out RUN --model bert-base           (clusters: --hostfile H)
    RANKS=2 bash launch/pretrain.sh --data runs/wiki/store --out runs/wiki/run --model bert-mini --steps 1000
    RANKS=2 bash launch/pretrain.sh --config runs/wiki/run/config.json --out runs/again --seed 1      # that run again

One process a rank. Leaves in RUN: config.json (everything needed to repeat the run), metrics.jsonl, log.txt,
tensorboard/, vocab/ and checkpoints/. The same command again continues from the newest whole checkpoint.
"""

import os
import resource
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv
    from pretrain.stop import StopRequests

    continue_in_venv()
    stop = StopRequests()  # before the seconds that imports take

from data_prep.cli import InputError, parse, say
from data_prep.interpreter import importing
from data_prep.safe_output import survive_console
from pretrain.hf_files import forbid_network
from pretrain.placement import ranks_in, take_place
from pretrain.settings.config import TrainConfig
from pretrain.settings.settings_file import with_settings
from pretrain.setup import open_named, prepare
from pretrain.state import RunState
from pretrain.stop import STOPPED, StopRequests

DRY_RUN = {"--dry_run", "--dry-run"}


def main(argv: list[str] | None = None, stop: StopRequests | None = None) -> None:
    """Entry of every rank; only the first to meet an error speaks, and before ranks have joined one on each node.

    Exit codes as in data_prep/cli.py, and STOPPED where the run was asked to stop, saved, and can be continued.
    """
    survive_console()
    stop = stop or StopRequests()
    try:
        code = exit_code_of(argv, stop)
    except SystemExit as end:
        tell_place(end.code if isinstance(end.code, int) else 1)
        raise
    except Exception:  # another rank was lost, and what torch says of it follows
        tell_place(1)
        raise
    finally:
        stop.end()
    if code in (0, STOPPED):
        tell_outcome(code)
    tell_place(code)
    sys.exit(code)


def exit_code_of(argv: list[str] | None, stop: StopRequests) -> int:
    """Train as the command line says; an error becomes one line and a code."""
    try:
        take_place(may_be_alone=DRY_RUN & set(sys.argv[1:] if argv is None else argv) != set())
    except InputError as error:  # of this rank, whichever it is
        say(f"error: {error}")
        return 2
    tell_place()
    raise_open_files()
    try:
        setup = prepare(parse_command(argv), ranks_in(os.environ) or 1)
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            say(f"error: {error}")
        elif os.environ.get("LOCAL_RANK") == "0":
            say(f"error: rank {os.environ['RANK']} on {socket.gethostname()}: {error}")
        return 2
    # Its warnings come with frames of C++; what ends a run is said by us. Read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    settle_on_cpu()
    forbid_network()
    with importing():
        from pretrain.trainer import run_rank

    return run_rank(setup, stop)


def parse_command(argv: list[str] | None) -> TrainConfig:
    """Return what the command line, and a file that it names, ask for.

    Raises
    ------
    InputError: as parse() and with_settings() do.
    """
    return parse(TrainConfig, __doc__, with_settings(sys.argv[1:] if argv is None else argv))


def refusal(argv: list[str]) -> int:
    """Say what is wrong with a command line, before ranks are started for it: 2 and a line on stderr, or 0."""
    try:
        config, ranks = parse_command(argv), ranks_in(os.environ)
        if ranks is None:
            open_named(config)
        else:
            prepare(config, ranks)
    except InputError as error:
        say(f"error: {error}")
        return 2
    return 0


def train(config: TrainConfig, stop: StopRequests | None = None) -> RunState:
    """Run, or continue, one pretraining, as a function. Collective over the ranks that the launcher started.

    Raises
    ------
    InputError: anything wrong with the stores, settings or the run folder, which is then as it was.
    DivergedError: too many steps in a row did not happen.
    """
    take_place(may_be_alone=config.dry_run)
    setup = prepare(config, ranks_in(os.environ) or 1)
    from pretrain import trainer

    return trainer.train(setup, stop)


def settle_on_cpu() -> None:
    """Without a GPU: say so to DeepSpeed, and share the cores among the ranks instead of all ranks taking all."""
    import torch

    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_SIZE", "1"))))


def raise_open_files() -> None:
    """Take as many open files as this user may have: a store maps each of its shards, and gloo has ten a rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tell_outcome(code: int) -> None:
    """For launch/supervise.py, by each rank: the launcher in between loses exit codes when it is killed or told to end.
    That the process then ends with this code, too, is seen from there."""
    if "ZEROBERT_OUTCOME" in os.environ:
        outcome = Path(os.environ["ZEROBERT_OUTCOME"]) / os.environ.get("RANK", "0")
        here, all_ranks = os.environ.get("LOCAL_SIZE", "1"), os.environ.get("WORLD_SIZE", "1")
        with suppress(OSError):  # the supervisor was killed, nobody will ask
            outcome.write_text(f"{code} {here} {all_ranks}")


def tell_place(code: int | str = "") -> None:
    """For launch/supervise.py, where ranks are on several hosts: on which one this rank is (by the name that the
    launcher has for it), and how it has ended."""
    if "ZEROBERT_OUTCOME" in os.environ:
        place = Path(os.environ["ZEROBERT_OUTCOME"]) / f"place-{os.environ.get('RANK', '0')}"
        with suppress(OSError):
            place.write_text(f"{os.environ.get('ZEROBERT_HOST') or socket.gethostname()} {os.getpid()} {code}")


if __name__ == "__main__":
    try:
        main(stop=stop)
    except SystemExit as end:
        # A launcher may end every rank as soon as one has left; the first is the one that says why.
        if end.code not in (None, 0, STOPPED) and os.environ.get("RANK", "0") != "0":
            time.sleep(10)
        raise
