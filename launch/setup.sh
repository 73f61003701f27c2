#!/usr/bin/env bash
# Make .venv, with everything that zerobert needs, in the exact versions of constraints.txt.
#
#   bash launch/setup.sh              all of it, tests and MPI included
#   bash launch/setup.sh --minimal    without the extras [dev] and [mpi]; remembered until --full
#
# Takes a few minutes the first time and a moment when nothing has changed: .venv/setup.stamp, written last, says what
# .venv was made from, so that a set-up that was interrupted is taken up again. Everything pip says is in .venv/setup.log.
#
#   PYTHON=python3.12 bash launch/setup.sh                          another Python, 3.11 or newer
#   TORCH="torch==2.13.0 --index-url URL" bash launch/setup.sh      another build of torch (CPU only, another CUDA);
#                                                                   remembered too
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # sh launch/setup.sh
set -euo pipefail
cd -P "$(dirname "$(readlink -f "$0")")/.." # of a link: what it points to

say() { echo "set-up: $*" >&2; }
fail() { say "$*"; exit 1; }

case "${1-}" in
    --minimal) extras= ;;
    --full) extras='[dev,mpi]' ;;
    '') extras=$(cat .venv/setup.extras 2> /dev/null || echo '[dev,mpi]') ;;
    *) sed -nE '1d; /^#/!q; s/^# ?//p' launch/setup.sh >&2; exit 2 ;;
esac
torch=${TORCH:-$(cat .venv/setup.torch 2> /dev/null || sed -n '/^torch==/p' constraints.txt)}

# Two set-ups at once would trip over each other: the second waits, then finds the work done.
if command -v flock > /dev/null; then exec 9< launch/setup.sh; flock 9; fi

# What .venv is made from, in one line. Empty where its Python does not start.
made_from() {
    local version
    version=$(.venv/bin/python -VV 2> /dev/null) || return 0
    { echo "$PWD $version $torch $extras"; cat constraints.txt pyproject.toml; } | sha256sum
}
if [[ -f .venv/setup.stamp && "$(made_from)" == "$(cat .venv/setup.stamp)" ]]; then exit 0; fi

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &> /dev/null; }
# Its commands name their Python by its full path, so a .venv that was moved or copied is of no use.
usable() { new_enough .venv/bin/python && .venv/bin/python -m pip -V &> /dev/null && grep -qF "$PWD/.venv/bin/" .venv/bin/pip; }
if [[ -n ${PYTHON-} ]] || ! usable; then
    for python in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do new_enough "$python" && break || python=; done
    [[ -n $python ]] || fail "needs Python 3.11 or newer, and ${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2> /dev/null ||
        echo "none that starts"); name one with PYTHON=/path/to/python3.11"
    "$python" -c 'import ensurepip, venv' 2> /dev/null ||
        fail "$("$python" -V) cannot make virtual environments; install its venv package (on Debian python3.11-venv)"
    say "1/4 .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
else
    say "1/4 .venv is there, with $(.venv/bin/python -V)"
fi
rm -f .venv/setup.stamp
: > .venv/setup.log

# What pip says goes to the log; what takes it long also to whoever waits, with the seconds since the start: packages of
# megabytes as they are fetched, what is built, what is installed.
stages() {
    local line name
    while IFS= read -r line; do
        printf '%s\n' "$line" >> .venv/setup.log
        case $line in
            *Downloading\ *[0-9]\ [MG]B\)) name=${line#*Downloading }; name="fetching ${name##*/}" ;;
            *Using\ cached\ *[0-9]\ [MG]B\)) name=${line#*Using cached }; name="from the cache: ${name##*/}" ;;
            *Building*:\ started) name=${line#*for }; name="building ${name%% *}" ;;
            Installing\ collected\ packages:*) name=${line//[^,]/}; name="installing $((${#name} + 1)) packages" ;;
            *) continue ;;
        esac
        say "    $SECONDS s  $name"
    done
}

install() {
    echo "+ pip install $*" >> .venv/setup.log
    PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --disable-pip-version-check --no-input "$@" \
        < /dev/null 2>&1 | stages || {
        tail -n 25 .venv/setup.log >&2
        fail "pip install $* failed; the whole log is in $PWD/.venv/setup.log"
    }
}

# An exact pin: a range would fetch the newest CUDA build, gigabytes of it, whatever else is at hand.
say "2/4 $torch"
# shellcheck disable=SC2086  # options of pip may follow the version
install $torch
[[ -z ${TORCH-} ]] || printf '%s\n' "$torch" > .venv/setup.torch
printf '%s\n' "$extras" > .venv/setup.extras
# The build that was asked for stays: from here on its own version is the constraint.
constraints=.venv/constraints.txt
{
    grep -v '^torch==' constraints.txt
    .venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))'
} > $constraints

# DeepSpeed asks torch which operators it could build, so it is built where torch is; training needs none of them.
say "3/4 deepspeed"
install -c $constraints setuptools wheel numpy packaging ninja
DS_BUILD_OPS=0 install -c $constraints --no-build-isolation deepspeed

say "4/4 transformers, tokenizers and the rest"
install -c $constraints --no-build-isolation -e ".$extras"

.venv/bin/python - >&2 2>> .venv/setup.log <<'PY' || { tail -n 25 .venv/setup.log >&2; fail "the packages do not work together"; }
import os, torch
if not torch.cuda.is_available(): os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed, transformers
device = f"{torch.cuda.device_count()} GPU" if torch.cuda.is_available() else "CPU"
print(f"set-up: done: torch {torch.__version__}, deepspeed {deepspeed.__version__}, transformers {transformers.__version__}; {device}")
PY
made_from > .venv/setup.stamp
