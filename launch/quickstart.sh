#!/usr/bin/env bash
# From nothing to a pretrained CAV-MAE: makes videos, turns them into shards, pretrains, evaluates, draws.
# Everything goes into one folder (first argument, default: quickstart). What is there already is kept or resumed:
# delete the folder to start afresh.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh" ""
if (($#)); then
  mkdir -p "$1"
  OUT="$(cd "$1" && pwd)"
else
  OUT=quickstart
fi
cd "$CHECKOUT"

step() { printf '\n== %s\n' "$*"; }

shards() { # of one split: train or eval
  cavmae prepare "$OUT/videos/$1.csv" --classes "$OUT/videos/classes.txt" --frame-size 96 --out "$OUT/shards/$1"
}

GPUS="$(python -c 'import torch; print(torch.cuda.device_count())')"
RANKS=$((GPUS == 1 ? 1 : 2)) # one rank a GPU; without GPUs two ranks share the CPU

step "1/5 synthetic videos (H.264 + AAC): what is seen and what is heard belong together"
[[ -f "$OUT/videos/classes.txt" ]] || cavmae synthesize --out "$OUT/videos"
step "2/5 videos to shards"
shards train
shards eval
step "3/5 pretraining on $RANKS ranks"
deepspeed --log_level error --num_gpus "$RANKS" launch/pretrain.py launch/recipes/quickstart.yaml "train.micro_batch=$((64 / RANKS))" \
  "data.train=$OUT/shards/train" "run_dir=$OUT/run"
step "4/5 retrieval on clips the model never saw"
cavmae evaluate "$OUT/run" --data "$OUT/shards/eval"
step "5/5 pictures of reconstructions"
cavmae inpaint "$OUT/run" --data "$OUT/shards/eval" --out "$OUT/run/reconstructions.png"
step "done"
cavmae report "$OUT/run"
cat <<'NEXT'
In a shell of your own, first:
  source .venv/bin/activate
Your own clips, into a folder or s3://bucket/prefix; then CAV-MAE base: what it amounts to, and go:
  cavmae prepare MY_VIDEOS/ --out shards/mine
  python launch/pretrain.py launch/recipes/base.yaml data.train=shards/mine --dry-run --ranks 8
  deepspeed launch/pretrain.py launch/recipes/base.yaml data.train=shards/mine
NEXT
