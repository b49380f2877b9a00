#!/usr/bin/env bash
# What `make demo` runs: a database of drawn pictures, a search in it, and prompts drawn in five of its styles. No download beside
# the packages.
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
run generate jobs/demo.csv --db atelier-ukiyo_e,atelier-mosaic,atelier-stained_glass,atelier-watercolour,atelier-pixel_art \
    --sampler unipc --steps 12 --batch 16 --out out/gallery
run status atelier
printf '\nLook at out/gallery/index.html, out/lighthouse.png and out/ukiyo_e.png. The database is in %s.\n' "$RDMPIPE_HOME"
