"""The contact sheet of the atelier: a row for each of sixteen subjects, a column for each style.

    python jobs/atelier_sheet.py [jobs/pictures/atelier.png] [--size 128] [--seed 21] [--subjects cat,owl] [--styles mosaic]

Each row is one content in every style. Writes one PNG; the same arguments give the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from pipeline.atelier import STYLES, metadata, picture
from pipeline.atelier.pictures import SUBJECTS

SHOWN = (
    "lighthouse", "sailing boat", "cat", "hot-air balloon", "windmill", "owl", "vase of flowers", "horse",
    "train", "tulip", "flamingo", "castle", "fish", "teapot", "woman", "snowman",
)  # fmt: skip


def first_of(subject: str, seed: int, start: int) -> int:
    """The first content from `start` on that shows the subject."""
    content = start
    while metadata(content, seed=seed, style=STYLES[0])["subject"] != subject:
        content += 1
    return content


def sheet(subjects: tuple[str, ...], styles: tuple[str, ...], size: int, seed: int, gap: int = 4) -> np.ndarray:
    """Rows of subjects, columns of styles, on white: (rows * (size + gap) + gap, ...) RGB uint8."""
    step = size + gap
    out = np.full((len(subjects) * step + gap, len(styles) * step + gap, 3), 255, np.uint8)
    for row, subject in enumerate(subjects):
        content = first_of(subject, seed, 100 * row)
        for column, style in enumerate(styles):
            y, x = gap + row * step, gap + column * step
            out[y : y + size, x : x + size] = picture(content, seed=seed, size=size, style=style).image
    return out


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "pictures" / "atelier.png")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--subjects", default=",".join(SHOWN), help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--styles", default=",".join(STYLES))
    parser.add_argument("--colours", type=int, default=256, help="colours in the PNG's palette, 0 for all of them")
    args = parser.parse_args()
    image = sheet(tuple(args.subjects.split(",")), tuple(args.styles.split(",")), args.size, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.colours:
        from PIL import Image

        Image.fromarray(image).quantize(args.colours, dither=Image.Dither.FLOYDSTEINBERG).save(args.out, optimize=True)
    else:
        cv2.imwrite(str(args.out), image[..., ::-1])
    print(f"{args.out}: {image.shape[1]} x {image.shape[0]}, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
