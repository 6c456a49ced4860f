#!/usr/bin/env bash
# What a GPU can show, in one command of under eight minutes: the tests that need one, then benchmarks/gpu.py.
#
#   scripts/gpu_check.sh OUT                    # writes OUT/*.json, OUT/tests.txt and OUT/gpu.md
#   scripts/gpu_check.sh OUT --nanogpt ../nanoGPT
#   scripts/gpu_check.sh OUT --only dense-XL sparse      # these parts alone: tests, dense-XL, ...
#   scripts/gpu_check.sh OUT --tiny             # a rehearsal on a machine without a GPU, in a few minutes
#
# For a bare machine with PyTorch: PYTHON names its interpreter (python3), WHEELS a folder of wheels that it lacks
# (pydantic and what that needs). Each part has a limit of its own, and all of them SECONDS_IN_ALL (470), so that a
# failure or a hang costs only itself; OUT/gpu.md is made anew after each, from what was measured until then.
set -u
case "${1:-}" in ""|-h|--help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
out=$1 tiny="" clone="" only="" all=${SECONDS_IN_ALL:-470}
shift
while [ $# -gt 0 ]; do
    case "$1" in
        --tiny) tiny="--tiny --rounds 2 --steps 1" ;;
        --nanogpt) clone=${2:?--nanogpt needs a folder}; shift ;;
        --only) only=" "; while [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; do only="$only$2 "; shift; done ;;
        *) echo "error: $1: unknown; try --help" >&2; exit 2 ;;
    esac
    shift
done
parts=" tests dense-XL sparse dense-Large dense-Med dense-Base products nanogpt-XL "
for name in $only; do
    [ "${parts#* "$name" }" != "$parts" ] || { echo "error: --only $name: there are$parts" >&2; exit 2; }
done
[ "$only" != " " ] || { echo "error: --only needs names:$parts" >&2; exit 2; }
case "$only" in *" nanogpt-XL "*) [ -n "$clone" ] || { echo "error: nanogpt-XL needs --nanogpt" >&2; exit 2; } ;; esac
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
[ -z "$clone" ] || clone=$(cd "$clone" && pwd) || exit 2
[ -z "$clone" ] || [ -f "$clone/model.py" ] || { echo "error: $clone has no model.py: not a clone of nanoGPT" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
site=""
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 2
fi
export PYTHONPATH="$site${site:+:}$PWD" PYTHONUNBUFFERED=1
"$python" -c 'import torch, pydantic' || { echo "error: $python lacks what the lines above name; set PYTHON or WHEELS" >&2; exit 2; }
[ -z "$tiny" ] || export MEDISWIFT_TEST_GPU=cpu

part() {  # NAME SECONDS COMMAND...: its output goes to OUT/NAME.txt, the end of it to the terminal
    local name=$1 limit=$2 left=$((all - SECONDS)) begin=$SECONDS code=0 how
    shift 2
    [ -z "$only" ] || [ "${only#* "$name" }" != "$only" ] || return 0
    [ "$left" -ge "$limit" ] || limit=$left
    [ "$limit" -ge 15 ] || { echo "== $name: not begun, $left s of $all are left"; return 0; }
    timeout -k 5 "$limit" "$@" > "$out/$name.txt" 2>&1 || code=$?
    tail -n 15 "$out/$name.txt"
    case $code in 0) how="done" ;; 124|137) how="stopped after $limit s" ;; *) how="failed with exit code $code" ;; esac
    echo "== $name: $how ($((SECONDS - begin)) s)"
    "$python" benchmarks/gpu_page.py "$out" > "$out/gpu.md.new" && mv "$out/gpu.md.new" "$out/gpu.md"
}
bench() {  # NAME SECONDS FLAGS...
    # shellcheck disable=SC2086  tiny is several words, or none
    part "$1" "$2" "$python" benchmarks/gpu.py --json "$out/$1.json" "${@:3}" $tiny ${clone:+--nanogpt "$clone"}
}

# Half of the cores take turns at tests, the other half compile for them. No test begins in the last half minute: a run
# that is killed has no summary, and of failures only what OUT/failures.txt has.
workers=$(($(nproc) / 2))
[ "$workers" -le 8 ] || workers=8
[ "$workers" -gt 1 ] && "$python" -c 'import xdist' 2>/dev/null && spread="-n $workers --dist worksteal" || spread=""
rm -f "$out/failures.txt"
# shellcheck disable=SC2086  several words, or none
TORCHINDUCTOR_COMPILE_THREADS=2 MEDISWIFT_TEST_UNTIL=$(($(date +%s) + 120)) MEDISWIFT_TEST_FAILURES=$out/failures.txt \
    part tests 150 "$python" -m pytest tests/gpu $spread -vv --durations=10 -rP -p no:warnings -o faulthandler_timeout=60
compiled=${clone:+nanoGPT, its layers compiled}
plain="ours, without CUDA graphs"
bench dense-XL 115 --part dense --rounds 4
bench sparse 130 --part sparse --rounds 4 --only "75 % 128x128" "75 % 64x64" "75 % shared inputs (4)" "75 % masked, unstructured"
for model in Large Med; do
    bench "dense-$model" 55 --part dense --model "$model" --rounds 4 --only "$plain" "Hugging Face" ${compiled:+"$compiled"}
done
bench dense-Base 45 --part dense --model Base --batch 8 --length 512 --rounds 4 --only "$plain" "Hugging Face" \
    ${compiled:+"$compiled"}
bench products 35 --part products --rounds 5 --steps 20
# What its train.py does took more than 45 s to compile on an H200: with what is left, and after all else.
[ -z "$clone" ] || bench nanogpt-XL 150 --part dense --rounds 4 --only "nanoGPT, compiled whole"
echo "made       $out/gpu.md, a section for docs/performance.md"
