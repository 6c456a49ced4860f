#!/usr/bin/env bash
# What a GPU can show, in one command of under eight minutes: the tests that need one, then benchmarks/gpu.py.
#
#   scripts/gpu_check.sh OUT                    # writes OUT/*.json, OUT/tests.txt and OUT/gpu.md
#   scripts/gpu_check.sh OUT --nanogpt ../nanoGPT
#   scripts/gpu_check.sh OUT --tiny             # a rehearsal on a machine without a GPU, in two minutes
#
# For a bare machine with PyTorch: PYTHON names its interpreter (python3), WHEELS a folder of wheels that it lacks
# (pydantic and what that needs). Each part has a limit of its own, so that a failure costs only itself.
set -u
case "${1:-}" in ""|-h|--help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
out=$1 tiny="" clone=""
shift
while [ $# -gt 0 ]; do
    case "$1" in
        --tiny) tiny=--tiny ;;
        --nanogpt) clone=${2:?--nanogpt needs a folder}; shift ;;
        *) echo "error: $1: unknown; try --help" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
[ -z "$clone" ] || clone=$(cd "$clone" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
site=""
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 2
fi
export PYTHONPATH="$site${site:+:}$PWD" PYTHONUNBUFFERED=1
"$python" -c 'import torch, pydantic' || { echo "error: $python lacks what the lines above name; set PYTHON or WHEELS" >&2; exit 2; }
[ -z "$tiny" ] || export MEDISWIFT_TEST_GPU=cpu

part() {  # NAME SECONDS COMMAND...: its output goes to OUT/NAME.txt, the end of it to the terminal
    local name=$1 limit=$2 begin=$SECONDS code=0
    shift 2
    timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || code=$?
    tail -n 15 "$out/$name.txt"
    case $code in 0) how="done" ;; 124) how="stopped after $limit s" ;; *) how="failed with exit code $code" ;; esac
    echo "== $name: $how ($((SECONDS - begin)) s)"
}

workers=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 8" || true)
# shellcheck disable=SC2086  # two words, or none
part tests 150 "$python" -m pytest tests/gpu $workers --durations=10 -rP -p no:warnings
bench() { part "$1" "$2" "$python" benchmarks/gpu.py --json "$out/$1.json" $tiny "${@:3}"; }
bench products 40 --part products --rounds 5 --steps 20
bench sparse 110 --part sparse --batch 8 --rounds 4 --patterns "75 % 128x128" "75 % 64x64" "75 % masked, unstructured"
for model in XL Large Med; do
    bench "dense-$model" 60 --part dense --model "$model" --rounds 4
done
[ -z "$clone" ] || bench nanogpt-XL 120 --part dense --rounds 4 --nanogpt "$clone"
"$python" benchmarks/gpu_page.py "$out" > "$out/gpu.md" && echo "made       $out/gpu.md, a section for docs/performance.md"
