"""GPU memory of the ip-adapter models, counted on the meta device from the bases' configs: nothing is downloaded or run.

    python jobs/count_adapter_memory.py            # Markdown table of GiB: fp16, batch 1 and 4, 512 and 1024 pixels, k = 4

Not counted: the CUDA context, convolution workspaces and the allocator's fragmentation, together 1 to 2 GiB.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.generation.ip_adapter import count_pipeline  # noqa: E402
from tests.test_adapter_layouts import BASES, PUBLISHED, layout  # noqa: E402


def main() -> None:
    print("| adapter | pixels | batch 1 | batch 4 |\n|---|---|---|---|")
    for file, (base, dim, widths, _) in PUBLISHED.items():
        shapes = layout(base, dim, widths)
        for side in (512, 1024):
            counts = [count_pipeline(BASES / base, shapes, "fp16", batch, (side, side), 4) / 2**30 for batch in (1, 4)]
            print(f"| {file} | {side} | {counts[0]:.1f} | {counts[1]:.1f} |")


if __name__ == "__main__":
    main()
