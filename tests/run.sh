#!/usr/bin/env bash
# Everything that must hold before a commit: set-up, lint, types, tests.
#
#   bash tests/run.sh                       all of it
#   bash tests/run.sh -m "not slow"         the fast part; arguments go to pytest
#   bash tests/run.sh tests/test_launch.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --full
bin=.venv/bin

# Ranks share the cores with each other; nothing may be fetched; a GPU is for the tests that ask for one.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu

$bin/ruff check .
$bin/ruff format --check .
$bin/mypy
# Two at a time, a file on one worker: files share what they have prepared. tests/conftest.py says in which order.
unset PYTHONDONTWRITEBYTECODE # a hundred processes that tests start would compile the same modules
exec $bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
