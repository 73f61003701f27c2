#!/usr/bin/env bash
# From a fresh clone to a fine-tuned model on one CPU, in a few minutes, from the sample text beside this file.
#
#   bash launch/quickstart.sh [OUT]        default OUT: runs/quickstart
#
#   OUT/vocab       tokenizer                        OUT/hf              pretrained model, for transformers
#   OUT/store       token store                      OUT/finetuned       fine-tuned from it, with results.json
#   OUT/run         pretraining run
#
# Every stage is one command of the project, shown before it runs: a tour as much as a test. Run it again and finished
# work is kept or made again, alike. The text is tiny, so is the model: it learns which words are frequent and not much
# more, and a model fine-tuned from random weights (--from_scratch) does as well or better. Expect a working line.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # sh launch/quickstart.sh
set -euo pipefail
self=$(readlink -f "$0") # of a link: what it points to
case "${1-}" in -*) sed -nE '1d; /^#/!q; s/^# ?//p' "$self" >&2; exit 2 ;; esac
out=$(realpath -m "${1:-$(dirname "$self")/../runs/quickstart}")
cd "$(dirname "$self")/.."
[[ $out != "$PWD"/* ]] || out=${out#"$PWD"/} # shorter to read, and to type
sample=launch/sample
python=.venv/bin/python

stage() { printf '\n== %s\n' "$1" >&2; }
show() { # the command as one would type it, then what it does
    local word line=
    for word in "$@"; do [[ $word == *[[:space:]]* ]] && line+=" \"$word\"" || line+=" $word"; done
    printf '   $%s\n' "$line" >&2
    "$@"
}
look() { printf '   -> %s\n' "$*" >&2; }

stage "Set-up: .venv, from the pins in constraints.txt (minutes the first time)"
bash launch/setup.sh
export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 # enough for so small a model, and alike everywhere
start=$SECONDS

stage "1/6 Vocabulary: which pieces of words occur in the text"
show $python data_prep/vocab.py --corpus $sample/corpus.txt --out "$out/vocab" --size 2048
look "$out/vocab, a tokenizer that transformers' AutoTokenizer opens"

stage "2/6 Shards: the text as token ids in a memory-mapped store"
show $python data_prep/shard.py --corpus $sample/corpus.txt --vocab "$out/vocab" --out "$out/store" \
    --workers 2 --holdout 0.2
show $python data_prep/show.py "$out/store" --samples 2 --seq_len 64
look "$out/store; above: what it holds, and two training samples with their masks"

stage "3/6 Pretraining: BERT with 2 layers of 128 units, two ranks, ZeRO stage 1"
show env RANKS=2 bash launch/pretrain.sh --data "$out/store" --out "$out/run" --model bert-tiny --seq_len 64 \
    --steps 800 --global_batch 64 --micro_batch 32 --lr 2e-3 --warmup 80 --zero 1 \
    --eval_every 200 --save_every 400 --log_every 50
look "$out/run: metrics.jsonl, log.txt, tensorboard/, checkpoints/"

stage "4/6 Export: the newest checkpoint as a Hugging Face folder, its logits compared with the trainer's"
show $python -m pretrain.export "$out/run" "$out/hf"
look "$out/hf, a model that transformers' AutoModel opens"

stage "5/6 Fill-mask: what the model expects in a gap"
show $python -m pretrain.predict "$out/hf" --fill "It is a truth [MASK] acknowledged." "She was [MASK] sister."

stage "6/6 Fine-tuning: is a sentence of a president from before 1860 or after 1945?"
show $python -m pretrain.finetune "$out/hf" --task classify --train $sample/era_train.tsv \
    --eval $sample/era_dev.tsv --out "$out/finetuned" --seeds 3 --epochs 5 --lr 1e-3 --seq_len 64
look "$out/finetuned: the model, and results.json with the score of each seed"
show $python -m pretrain.predict "$out/finetuned" "We must win the cold war and keep the peace of the world." \
    "The Indian tribes on our frontier have received the sums which the treaty stipulates."

score=$($python -c '
import json, sys
r = json.load(open(sys.argv[1]))
print("%s %.3f +- %.3f over %d seeds" % (r["metric"], r["mean"], r["std"], len(r["seeds"])))' "$out/finetuned/results.json")
cat << SUMMARY

Done in $((SECONDS - start)) seconds after set-up.
  fine-tuned on 600 sentences: $score (always the same answer: 0.500)
To look at:
  .venv/bin/tensorboard --logdir $out/run/tensorboard
  .venv/bin/python data_prep/show.py $out/store --samples 3 --seq_len 64
  .venv/bin/python -m pretrain.predict $out/finetuned "your own sentence"
  .venv/bin/python -m pretrain.predict $out/hf --fill "your own [MASK] sentence"
Then your own text, in the same six commands: README.md.
SUMMARY
