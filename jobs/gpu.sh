#!/usr/bin/env bash
# Measure this machine's GPU: sampling, training, faiss and embedding at full size, with random weights, in at most ten minutes, without a network.
#
#     bash jobs/gpu.sh [--out FOLDER] [--wheels FOLDER] [--tiny]
#
# Writes FOLDER/gpu.json and FOLDER/gpu.md (default: out/gpu). --wheels names a folder of wheels that this Python lacks (torch, diffusers and safetensors are
# enough for sampling and training; NumPy, lazy-loader and faiss-gpu for faiss; all of rdmpipe for embedding); they go into FOLDER/site and nothing else is changed.
# --tiny is a trial run on any machine. If a part lacks a package, it reports that, and the others run. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} out=out/gpu wheels="" arguments=()
while (($#)); do
    case $1 in
        --out) out=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        *) arguments+=("$1"); shift ;;
    esac
done
mkdir -p "$out"
if [[ -n $wheels ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$out/site" "$wheels"/*.whl
fi
export PYTHONPATH="$PWD:$(cd "$out" && pwd)/site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" jobs/gpu.py --out "$out" ${arguments[@]+"${arguments[@]}"}
