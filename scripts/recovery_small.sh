#!/usr/bin/env bash
# What dense training gives back to a sparse model: the small models of configs/study/pubmed.yaml go on for 200 steps on
# text they have not seen in this order, with their masks lifted, kept, and dense from the start; a report shows both.
#   scripts/recovery_small.sh runs/study/pubmed
# Two runs at a time, one thread each; killed, the same command goes on. Shorter: STEPS=5 METHODS="dense static75".
# Of another study: RUNS="runs/study/regrow/runs/90-static-lr0.01-seed*" scripts/recovery_small.sh runs/study/regrow
set -euo pipefail
[ $# -eq 1 ] && [ -d "$1/runs" ] || { echo "error: name the folder of the finished study, for example runs/study/pubmed" >&2; exit 2; }
export STUDY=$1 OUT=${OUT:-runs/recovery} PYTHON=${PYTHON:-python} STEPS=${STEPS:-200} OMP_NUM_THREADS=1
mkdir -p "$OUT"

go_on() { # the run to go on from, what becomes of its masks
    local from=$1 how=$2 name seed states=model options=()
    name=$(basename "$from")
    seed=${name##*seed}
    if [ "$how" = kept ]; then states=model,sparsity; else options=(--set trainer.init.sparsity=null); fi
    $PYTHON run.py CPU -p "$from/config.yaml" -m train_and_eval -o "$OUT/$(echo "$name" | cut -d- -f2)-$how-seed$seed" \
        --checkpoint_path "$(ls -d "$from"/checkpoints/step_* | sort -V | tail -1)" --load_checkpoint_states "$states" "${options[@]}" --max_steps "$STEPS" \
        --set "trainer.init.seed=$((seed + 100))" --set "trainer.init.loop.eval_steps=64" \
        --set "trainer.init.loop.eval_frequency=$((STEPS / 5 > 0 ? STEPS / 5 : 1))" \
        --set "trainer.init.schedulers=[{CosineDecayLR: {initial_learning_rate: 1e-3, end_learning_rate: 1e-4, total_iters: $STEPS}}]"
}
run() {
    local log
    log="$OUT/$(basename "$1")-$2.log"
    if go_on "$@" >"$log" 2>&1; then echo "$(date +%H:%M:%S) done $*"; else echo "failed: $* (see $log)" >&2; return 1; fi
}
export -f go_on run

best() { # the peak rate that all seeds of a setting were trained with in the end
    $PYTHON -c 'import csv, sys
rows = [r for r in csv.DictReader(open(sys.argv[1])) if r["group"] == sys.argv[2]]
print(min(rows, key=lambda r: float(r["loss"]))["peak"])' "$STUDY/report_files/learning_rates.csv" "small-$1"
}

list_runs() {
    if [ -n "${RUNS:-}" ]; then printf '%s\n' $RUNS; return; fi  # not quoted: its patterns are for the shell
    for method in ${METHODS:-dense static75 static90}; do
        printf '%s\n' "$STUDY"/runs/small-"$method"-lr"$(best "$method")"-seed*
    done
}
list_runs | while read -r from; do
    case $from in */small-dense-*) echo "$from dense" ;; *) printf '%s lifted\n%s kept\n' "$from" "$from" ;; esac
done | xargs -P 2 -I{} bash -c 'run {}'
$PYTHON run.py report "$OUT"/*-seed*/ -o "$OUT/report.html"
