#!/usr/bin/env bash
# From raw text to a fine-tuned BERT-mini on two CPU cores, in about an hour.
#
#   runs/cpu.sh CORPUS TRAIN DEV [OUT]
#
#   CORPUS  text to learn from: a file, a folder, a glob in quotes (docs/pretrain.md says what is read)
#   TRAIN   labelled rows to fine-tune on (docs/finetune.md), DEV: rows to score
#   OUT     where everything goes (default: runs/mini)
#
# Settings, as variables: SIZE=16384 KIND=uncased RECIPE=recipes/bert-mini.toml EPOCHS=3
# WORDS=42m PAIRS=8m: how long words are learned alone, and then words and pairs; learned together
# from the first step both come out worse (docs/pretrain-log.md). WORDS_ARGS= and
# PAIRS_ARGS="--lr 1e-3 --warmup 0.02": their options. That is best for single texts. For pairs of texts:
#   WORDS=33m WORDS_ARGS="--schedule constant" PAIRS=17m PAIRS_ARGS="--warmup 0.01"
# PRETRAIN_ARGS and TRAIN_ARGS: further options of both parts, and of filbert train classify.
# A step that is done is not done again; one that was broken off goes on. Chinese:
#
#   KIND=chinese SIZE=12000 RECIPE=recipes/bert-mini-zh.toml runs/cpu.sh corpus_zh/ train.tsv dev.tsv
#
# Time on two cores, for 270 MB of English: vocabulary 1 minute, shards 3, pre-training 50, so
# that all is done in about an hour, fine-tuning a few minutes.
# shellcheck disable=SC2086  # the variables with options are split into words
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

if [ "$#" -lt 3 ]; then
    sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
fi
corpus=$1 train=$2 dev=$3 out=${4:-runs/mini}
filbert=${FILBERT:-filbert}
mkdir -p "$out"

if [ ! -f "$out/vocab/vocab.txt" ]; then
    "$filbert" vocab "$corpus" --kind "${KIND:-uncased}" --size "${SIZE:-16384}" --out "$out/vocab"
fi
# goes on by itself where it was broken off, and does nothing when it is whole
"$filbert" prepare "$corpus" --vocab "$out/vocab" --out "$out/shards" ${PREPARE_ARGS:-}

pretrain() {  # OUT and the options of this part
    [ -f "$1/filbert.json" ] && return
    resume=
    [ -f "$1/recipe.toml" ] && resume=--resume
    "$filbert" pretrain "${RECIPE:-$here/recipes/bert-mini.toml}" --data "$out/shards" \
        --out "$@" ${PRETRAIN_ARGS:-} $resume
}
pretrain "$out/words" --objective none --short-prob 0 --budget "${WORDS:-42m}" ${WORDS_ARGS:-}
pretrain "$out/model" --base "$out/words" --objective next_sentence --short-prob 0.1 \
    --seed 43 --budget "${PAIRS:-8m}" \
    ${PAIRS_ARGS:---lr 1e-3 --warmup 0.02}
if [ ! -f "$out/tuned/filbert.json" ]; then
    resume=
    [ -f "$out/tuned/recipe.toml" ] && resume=--resume
    "$filbert" train classify --base "$out/model" --data "$train" --dev "$dev" --out "$out/tuned" \
        --epochs "${EPOCHS:-3}" --lr 2e-4 ${TRAIN_ARGS:-} $resume
fi
echo "done: $out/model is the pre-trained BERT, $out/tuned the fine-tuned one"
