#!/usr/bin/env bash
# The second half of MediSwift in small: pre-train at 0, 50 and 75 % sparsity on PubMed abstracts, fine-tune each dense
# (masks lifted) and sparse (masks kept), with and without a soft prompt, on PubMedQA (fold 0) and HoC, three seeds each.
#   scripts/transfer_small.sh biomedical
# That folder holds pubmed_wrapped/, pubmed_real/, pubmedqa/ and hoc/. Two runs at a time, one thread each; killed, the
# same command goes on. Shorter, to see it work:
#   WAYS="s75 lift" SEEDS=[1] STEPS=2 TUNING_STEPS=2 EXAMPLES=16 scripts/transfer_small.sh biomedical
set -euo pipefail
[ $# -eq 1 ] || { echo "error: name the folder of the data, for example biomedical" >&2; exit 2; }
export DATA=$1 PYTHON=${PYTHON:-python} SEEDS=${SEEDS:-[1, 2, 3]} STEPS=${STEPS:-400} TUNING_STEPS=${TUNING_STEPS:-}
export EXAMPLES=${EXAMPLES:-null} OMP_NUM_THREADS=1
mkdir -p runs/transfer
$PYTHON -m data_preprocessing pubmed --input "$DATA/pubmed_wrapped" "$DATA/pubmed_real" --output data/transfer \
    --tokenizer train --vocab_size 8192 --msl 320 --val_fraction 0.03 \
    --set "filters.decontaminate=[$DATA/pubmedqa/pqal_cv_500.json, $DATA/pubmedqa/pqal_test_ids.json, $DATA/hoc/dev.tsv]"

pretrain() {
    $PYTHON run.py CPU -p "configs/transfer/$1.yaml" -m train_and_eval -o "runs/transfer/$1" --max_steps "$STEPS"
}
finetune() { # task, checkpoint, masks, soft prompt
    local prompt=null task=$1
    [ "$4" = plain ] || prompt='{tokens: 9, place: before_target, init: sample_vocab, train: all}'
    $PYTHON run.py CPU -p "configs/finetune/small_$task.yaml" -m finetune --checkpoint_path "runs/transfer/$2" \
        -o "runs/transfer/$task-$2-$3-$4" --set "trainer.finetune.masks=$3" \
        --set "trainer.init.soft_prompt=$prompt" --set "trainer.finetune.data_dir=$DATA/$task" \
        --set "trainer.finetune.seeds=$SEEDS" --set "trainer.finetune.num_examples=$EXAMPLES" \
        --set "trainer.finetune.num_dev_examples=$EXAMPLES" ${TUNING_STEPS:+--max_steps "$TUNING_STEPS"}
}
run() { # what to call, then its arguments; the log lies beside the runs
    local log="runs/transfer/$(echo "$*" | tr ' ' '-').log"
    if "$@" >"$log" 2>&1; then echo "$(date +%H:%M:%S) done $*"; else echo "failed: $* (see $log)" >&2; return 1; fi
}
export -f pretrain finetune run

WAYS=${WAYS:-s75 lift,s75 keep,dense lift,s50 lift,s50 keep} # checkpoint, masks
IFS=, read -ra ways <<<"$WAYS"
printf 'pretrain %s\n' "${ways[@]%% *}" | awk '!seen[$0]++' | xargs -P 2 -I{} bash -c 'run {}'
for task in pubmedqa hoc; do
    for prompt in plain prompt; do printf "finetune $task %s $prompt\n" "${ways[@]}"; done
done | xargs -P 2 -I{} bash -c 'run {}'
$PYTHON scripts/transfer_table.py runs/transfer
