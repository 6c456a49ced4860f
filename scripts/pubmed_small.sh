#!/usr/bin/env bash
# Pre-trains a 4-layer, d=256 model on real PubMed abstracts: dense, static 75 % and RigL 75 %, and compares them.
#   scripts/pubmed_small.sh pubmed/xml
# Any folders of PubMed XML will do. About 15 minutes on two cores; killed, the same command goes on.
set -euo pipefail
[ $# -gt 0 ] || { echo "error: name one or more folders of PubMed XML, for example pubmed/xml" >&2; exit 2; }
PYTHON=${PYTHON:-python}
$PYTHON -m data_preprocessing pubmed --input "$@" --output data/pubmed_small --tokenizer train --vocab_size 16384 --msl 256 --val_fraction 0.05
for name in dense static75 rigl75; do
    $PYTHON run.py -p "configs/pubmed/$name.yaml" -m train_and_eval -o "runs/pubmed/$name"
done
$PYTHON run.py compare runs/pubmed/{dense,static75,rigl75} -o runs/pubmed/comparison.svg
