#!/usr/bin/env bash
# What docs/gpu.md claims, measured on one GPU in at most nine minutes, the most important first.
#
#   bash benchmarks/gpu.sh OUT              on a machine with a GPU
#   bash benchmarks/gpu.sh OUT --tiny       each script once on a CPU, with a small model: that none fails for a typo
#
# Uses .venv (launch/setup.sh), or python3 with what .gpu_kit/ brings along (benchmarks/gpu_kit.sh). OUT/results.jsonl has
# a line for each benchmark as soon as it is done, OUT/log.txt all that they say, OUT/summary.txt how each ended. A part
# that fails or takes too long costs its own result only; what no longer fits into BUDGET seconds (530) is left out.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
[[ $# -ge 1 && $1 != -* ]] || { sed -nE '1d; /^#/!q; s/^# ?//p' benchmarks/gpu.sh >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd)
[[ ${2-} != --tiny ]] || tiny=1
budget=${BUDGET:-530}
: > "$out/summary.txt"; : > "$out/log.txt"; : > "$out/results.jsonl"

python=python3
if [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
elif [[ -d .gpu_kit ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .gpu_kit/*.whl >> "$out/log.txt" 2>&1
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH
fi
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# part NAME SECONDS COMMAND...: its last line of JSON goes to results.jsonl.
part() {
    local name=$1 limit=$2 left=$((budget - SECONDS)) start=$SECONDS code=0
    shift 2
    if ((left < limit / 3)); then echo "$name: left out, $left s left" | tee -a "$out/summary.txt"; return; fi
    echo "== $name: $*" >> "$out/log.txt"
    timeout -k 5 $((limit < left ? limit : left)) "$@" > "$out/part.txt" 2>&1 || code=$?
    cat "$out/part.txt" >> "$out/log.txt"
    grep -a '^{"name"' "$out/part.txt" | tail -n 1 >> "$out/results.jsonl"
    echo "$name: exit code $code, $((SECONDS - start)) s$(grep -aE '^[0-9]+ (passed|failed)|, [0-9]+ passed' "$out/part.txt" |
        tail -n 1 | sed 's/^/, /')" | tee -a "$out/summary.txt"
    ((code == 0)) || tail -n 5 "$out/part.txt"
    rm -f "$out/part.txt"
}

if [[ ${tiny-} ]]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
    large="--layers 3 --hidden 128 --vocab_size 9000 --seq_len 128 --batch 16 --rounds 2" memory=$large base=$large
    optimizer="--model bert-tiny --vocab_size 2000 --rounds 2 --accumulation 0"
    run="--model bert-tiny --seq_len 32 --global_batch 4 --micro_batch 4 --vocab_size 500 --documents 60 --precision fp32"
else
    base="--layers 12 --hidden 768 --seq_len 128 --batch 256" large="--layers 24 --hidden 1024 --seq_len 512 --batch 64"
    memory="$large --rounds 2" optimizer="--model bert-large --micro_batch 128"
    run="--model bert-large --seq_len 512 --global_batch 256 --micro_batch 64 --compile"
fi

# real COMMAND...: left out of --tiny, which calls each script once.
real() { [[ ${tiny-} ]] || "$@"; }

# shellcheck disable=SC2086  # settings are several words each
{
    part versions 60 "$python" -c "
import json, torch, transformers, deepspeed, sys
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
print(json.dumps({'name': 'versions', 'python': sys.version.split()[0], 'torch': torch.__version__,
    'transformers': transformers.__version__, 'deepspeed': deepspeed.__version__, 'gpu': gpu}))"
    real part test_gpu 200 "$python" -m pytest -q -p no:cacheprovider -n 6 tests/test_gpu.py
    part step_time_large_512 120 "$python" benchmarks/step_time.py $large
    real part step_time_large_512_compiled 120 "$python" benchmarks/step_time.py $large --compile
    real part step_time_base_128 90 "$python" benchmarks/step_time.py $base
    real part step_time_base_128_compiled 120 "$python" benchmarks/step_time.py $base --compile
    part optimizer_step 90 "$python" benchmarks/optimizer_step.py $optimizer
    part killed_run_bf16 150 "$python" benchmarks/killed_run.py $run
    part step_memory 90 "$python" benchmarks/step_memory.py $memory
    real part killed_run_fp16 150 "$python" benchmarks/killed_run.py $run --precision fp16 --zero 2
    real part fast_tests 240 env OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider -n 14 \
        -m "not slow" --dist loadfile
}
! grep -qE 'exit code [1-9]' "$out/summary.txt"
