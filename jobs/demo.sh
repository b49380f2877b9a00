#!/usr/bin/env bash
# What `make demo` runs: a database of drawn pictures, a search in it, and where to go on. No download beside the packages.
set -euo pipefail
cd "$(dirname "$0")/.."
export RDMPIPE_HOME="${RDMPIPE_HOME:-$PWD/out/home}"
mkdir -p out

run() {
    printf '\n$ rdmpipe %s\n' "$*"
    rdmpipe "$@"
}

run build-index atelier --limit 2000
run search atelier "a red lighthouse on a cliff" -k 12 --sheet out/lighthouse.png
run search atelier-ukiyo_e --key 10 -k 12 --sheet out/ukiyo_e.png
run status atelier
printf '\nLook at out/lighthouse.png and out/ukiyo_e.png. The database is in %s.\n' "$RDMPIPE_HOME"
