#!/usr/bin/env bash
# Builds the CS-2 environment: cerebras_pytorch 2.10.0 with its torch 2.4.0, every version pinned in constraints-csx.txt.
# Usage: scripts/env-csx.sh [FOLDER]     (default .venv-csx beside this repository's Makefile)
# With LOCKED=1 every file is held to its SHA-256 in locks/csx.txt.
# Takes two to three minutes and 6 GB of disk; does nothing where the folder already fits the pins.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-csx}
pins=constraints-csx.txt
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3

if [ "$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')" != 3.11 ]; then
    echo "error: cerebras_pytorch 2.10.0 is built for Python 3.11 alone; set PYTHON to one" >&2
    exit 2
fi
if [ -f "$folder/.pins" ] && cmp -s "$pins" "$folder/.pins"; then
    echo "$folder fits $pins"
    exit 0
fi
room=$(df --output=avail -k "$(dirname "$folder")" | tail -1)
if [ ! -d "$folder" ] && [ "$room" -lt 8000000 ]; then
    echo "error: $folder takes 6 GB; $((room / 1000000)) GB are free here; give another folder: $0 FOLDER" >&2
    exit 2
fi
echo "env-csx    $folder: cerebras_pytorch 2.10.0 and its torch 2.4.0 (two to three minutes, 6 GB, once)"
[ -d "$folder" ] || "$python" -m venv "$folder"
# The pins are all there is, so nothing is left to resolve, and the 4 GB that torch wants of NVIDIA go in beside the rest.
# Errors alone are printed; modules are compiled when they are first imported.
install() { "$folder/bin/pip" install -qq --no-deps --no-compile --disable-pip-version-check "$@"; }
large='^(nvidia-|triton==)'
if [ -n "${LOCKED:-}" ]; then
    install --require-hashes -r locks/csx.txt
else
    install $(grep -E "$large" "$pins") &
    install $(grep -Ev "$large|^#" "$pins")
    wait $!
fi
"$folder/bin/pip" check >/dev/null || { "$folder/bin/pip" check >&2; exit 1; }
"$folder/bin/python" -c 'import cerebras.pytorch, torch; print(f"cerebras.pytorch {cerebras.pytorch.__version__}, torch {torch.__version__}")'
cp "$pins" "$folder/.pins"
