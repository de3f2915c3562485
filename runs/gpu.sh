#!/usr/bin/env bash
# From raw text to a pre-trained BERT-base on the GPUs of one machine. Not run yet on a GPU.
#
#   runs/gpu.sh CORPUS [OUT]
#
#   CORPUS  text to learn from (docs/pretrain.md says what is read)
#   OUT     where everything goes (default: runs/base)
#
# Settings, as variables: SIZE=30522 KIND=uncased RECIPE=recipes/bert-base.toml GPUS=all of them.
# PRETRAIN_ARGS: further options of filbert pretrain, such as "--budget 12h", which takes the place of
# the recipe's steps. Broken off, it goes on when started again. Several machines: docs/scaling.md.
# shellcheck disable=SC2086  # the variables with options are split into words
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

if [ "$#" -lt 1 ]; then
    sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
fi
corpus=$1 out=${2:-runs/base}
filbert=${FILBERT:-filbert}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
mkdir -p "$out"

if [ ! -f "$out/vocab/vocab.txt" ]; then
    "$filbert" vocab "$corpus" --kind "${KIND:-uncased}" --size "${SIZE:-30522}" --unused 99 \
        --out "$out/vocab"
fi
"$filbert" prepare "$corpus" --vocab "$out/vocab" --out "$out/shards" ${PREPARE_ARGS:-}

if [ ! -f "$out/model/filbert.json" ]; then
    resume=
    [ -f "$out/model/recipe.toml" ] && resume=--resume
    torchrun --standalone --nproc-per-node "$gpus" -m filbert pretrain \
        "${RECIPE:-$here/recipes/bert-base.toml}" --data "$out/shards" --out "$out/model" \
        --workers 2 ${PRETRAIN_ARGS:-} $resume
fi
echo "done: $out/model; next: filbert train classify --base $out/model ..."
