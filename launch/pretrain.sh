#!/usr/bin/env bash
# Pretrain a BERT from token stores, on one machine or many. A valid bash script and a valid Python program:
#
#   RANKS=2 bash launch/pretrain.sh --data STORE --out RUN --model bert-small           local ranks
#   HOSTFILE=HOSTS bash launch/pretrain.sh --data STORE --out RUN --model bert-small    ranks on several hosts, by ssh
#   deepspeed --hostfile HOSTS launch/pretrain.sh --data STORE --out RUN --model bert-small
#
# (or started by srun, mpirun, torchrun: docs/cluster.md)
#
# It needs what to read, where to write, and what to train:
#
#   --data STORE[:WEIGHT] ...      token stores, made by data_prep/shard.py
#   --out RUN                      the run's folder: checkpoints, metrics.jsonl, tensorboard, log.txt
#   --model PRESET                 bert-tiny, bert-mini, bert-small, bert-medium, bert-base, bert-large
#   or --init_from HF              a Hugging Face folder to start from
#
# Often wanted: --steps N --seq_len 128 --global_batch 256 --lr 1e-4 --precision bf16 --zero 1 --ds_config FILE.json;
# `bash launch/pretrain.sh --help` lists everything. Running the same command again continues the run.
#
# As bash: RANKS is the number of local ranks (default: all GPUs, or 1 on CPU); DEEPSPEED_FLAGS="..." goes to the
# launcher of DeepSpeed; HOSTFILE=FILE has a line `node1 slots=8` for each host; RESTARTS=N starts a run that failed
# again. SIGTERM, SIGUSR1, Ctrl-C and a terminal that is closed save and stop.
# Exit codes: 0 finished, 2 wrong input, 75 stopped and saved (the same command continues), else failed.

# How it works: bash reads the next line as the command `:`, never comes past `exec`, and takes what follows for the
# text of an unused here-document. Python reads from there to the closing quotes as one string (so no backslash and no
# triple quote within), and goes on below it.
''':'
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # sh launch/pretrain.sh
set -euo pipefail
self=$(readlink -f "$0") # of a link: what it points to
here=$(dirname "$self")
if [[ $# -eq 0 ]]; then sed -nE '1d; /^#/!q; s/^# ?//p' "$self" >&2; exit 2; fi
if [[ ! ${RANKS:-1} =~ ^[1-9][0-9]{0,2}$ ]]; then echo "error: RANKS=$RANKS is not a number of ranks of one machine, 1 to 999" >&2; exit 2; fi

export ZEROBERT_CALL=${ZEROBERT_CALL:-$(printf 'bash %q' "$0")} # how messages name commands: data_prep/calls.py
if ! command -v deepspeed > /dev/null; then
    export PATH="$here/../.venv/bin:$PATH"
    command -v deepspeed > /dev/null || { echo "error: no deepspeed; run first: bash launch/setup.sh" >&2; exit 1; }
fi
python=$(dirname "$(command -v deepspeed)")/python
[[ -x $python ]] || python=python3
dry_run=
for argument in "$@"; do
    case $argument in
        -h | --help) exec "$python" "$self" --help ;;
        --dry_run | --dry-run) dry_run=1 ;;
    esac
done

# Where mpirun or srun has started this as one of several, it is a rank, and starts none: pretrain/placement.py.
for count in OMPI_COMM_WORLD_SIZE PMI_SIZE MV2_COMM_WORLD_SIZE SLURM_STEP_NUM_TASKS; do
    [[ ${!count:-1} == 1 || -n ${RANK-} ]] || exec "$python" "$self" "$@"
done

# What is wrong is said at once, before ranks are started to say it; on a cluster each looks at what its node has.
on_cluster= maybe_gpu= hostfile=()
[[ ! -v HOSTFILE ]] || hostfile=(--hostfile "$HOSTFILE")
[[ " ${hostfile[*]} ${DEEPSPEED_FLAGS-}" != *" --hostfile"* && " ${DEEPSPEED_FLAGS-}" != *" -H"* && ! -e /job/hostfile ]] || on_cluster=1
[[ ${DS_ACCELERATOR:-cuda} != cuda ]] || ! compgen -G "/dev/nvidia[0-9]*" /dev/kfd /dev/dxg > /dev/null || maybe_gpu=1
if [[ ! $on_cluster ]]; then
    known="-u WORLD_SIZE" # the number of ranks, or nothing
    [[ -n ${DEEPSPEED_FLAGS-} || $maybe_gpu && -z ${RANKS-} ]] || known="WORLD_SIZE=${RANKS:-1}"
    env $known "$python" "$self" --check "$@" || exit $?
fi

# Asking torch takes seconds, so it is asked only where there may be a GPU at all.
gpus=0
if [[ $maybe_gpu ]]; then
    gpus=$("$python" -c "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)")
fi

# On a cluster the hostfile decides about ranks, and the port is the one that the firewall lets through.
flags="--log_level critical" # its errors repeat our own message
if [[ ! $on_cluster ]]; then
    free_port="import socket; s = socket.socket(); s.bind((str(), 0)); print(s.getsockname()[1])"
    flags+=" --master_port $("$python" -c "$free_port")"
    if [[ $gpus -eq 0 ]]; then
        flags+=" --num_gpus ${RANKS:-1}"
        threads=$(($(nproc) / ${RANKS:-1}))
        export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads ? threads : 1))}
    elif [[ ${RANKS:-0} -gt $gpus ]]; then
        echo "error: RANKS=$RANKS, but torch sees $gpus GPU; to train without them: DS_ACCELERATOR=cpu" >&2
        exit 2
    elif [[ -n ${RANKS-} && -n ${CUDA_VISIBLE_DEVICES-} ]]; then
        # With --num_gpus DeepSpeed would forget which devices were asked for, and take the first ones.
        export CUDA_VISIBLE_DEVICES=$(cut -d, -f "1-$RANKS" <<< "$CUDA_VISIBLE_DEVICES")
    elif [[ -n ${RANKS-} ]]; then
        flags+=" --num_gpus $RANKS"
    fi
fi
if [[ $dry_run && ! $on_cluster && ! ${DEEPSPEED_FLAGS-} ]]; then
    # A plan is the first rank's, and needs no other: two launchers and the other ranks would import for 20 seconds.
    ranks=${RANKS:-$((gpus ? gpus : 1))}
    exec env WORLD_SIZE="$ranks" RANK=0 "$python" "$self" "$@"
fi
# Where a flag stands twice the last one counts: the user overrides all of ours.
exec "$python" "$here/supervise.py" ${on_cluster:+--cluster} deepspeed $flags "${hostfile[@]}" ${DEEPSPEED_FLAGS-} "$self" "$@"
: << "# end"
'''

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STOPPED = 75


def usage() -> str:
    """The comment at the head of this file."""
    lines = Path(__file__).read_text().splitlines()[1:]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[: lines.index("")])


def main() -> None:
    # The launcher puts --local_rank=N before our arguments; LOCAL_RANK says the same.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    if not arguments:
        if os.environ.get("RANK", "0") == "0":
            print(usage(), file=sys.stderr)
        sys.exit(2)
    sys.path[0] = str(ROOT)  # in place of launch/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    from data_prep.safe_output import survive_console
    from pretrain.stop import StopRequests

    survive_console()
    if arguments[0] == "--check":  # before ranks are started
        from pretrain.train import refusal

        sys.exit(refusal(arguments[1:]))
    stop = StopRequests()
    from pretrain.train import main as train

    train(arguments, stop)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:
        # The launcher ends every rank as soon as one has left; the first is the one that says why.
        if stop.code not in (None, 0, STOPPED) and os.environ.get("RANK", "0") != "0":
            time.sleep(10)
        raise
# end
