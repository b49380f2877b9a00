"""Measure the atelier's pictures as data: the accuracy with which a small network distinguishes styles and subjects.

    python jobs/atelier_measure.py [--contents 16000] [--epochs 8] [--json]

Draws one picture of each content in a random style. Trains two small CNNs on the first half of the contents, one for the
style and one for the subject, and reports their accuracy on the other half, whose contents they have not seen. Then measures
the drawing rate of one core at 64, 256 and 1024 pixels. Writes nothing; takes about twelve minutes of processor time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from typing import Any

import cv2
import numpy as np

from pipeline.atelier import STYLES, picture
from pipeline.atelier.pictures import SUBJECTS


def draw(span: tuple[int, int, int, int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pictures of a range of contents: (images (n, size, size, 3) uint8, style numbers (n,), subject numbers (n,))."""
    start, stop, size, seed = span
    cv2.setNumThreads(1)
    made = [picture(i, seed=seed, size=size, layout="own") for i in range(start, stop)]
    styles = [STYLES.index(str(p.metadata["style"])) for p in made]
    subjects = [SUBJECTS.index(str(p.metadata["subject"])) for p in made]
    return np.stack([p.image for p in made]), np.array(styles), np.array(subjects)


def network(classes: int, width: int) -> Any:
    """A plain CNN of five 3 x 3 convolutions; the first four halve the picture."""
    from torch import nn

    layers: list[Any] = []
    last = 3
    for k, channels in enumerate((width, 2 * width, 4 * width, 6 * width)):
        layers += [nn.Conv2d(last, channels, 3, stride=2 if k == 0 else 1, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if k else []
        last = channels
    layers += [nn.Conv2d(last, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * last, classes))


def accuracy(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: int, epochs: int, width: int
) -> tuple[float, np.ndarray[Any, Any]]:
    """Train on the first half and test on the second: accuracy, and confusion (classes, classes) with true classes as rows."""
    import torch

    torch.manual_seed(0)
    half, batch = len(images) // 2, 128
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    target = torch.from_numpy(labels)
    model = network(classes, width).to(memory_format=torch.channels_last)
    steps = epochs * (half // batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(epochs):
        order = torch.randperm(half)
        for k in range(half // batch):
            pick = order[k * batch : (k + 1) * batch]
            x = pixels[pick].float().div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)
            dy, dx = torch.randint(-4, 5, (2,)).tolist()
            x = torch.roll(x, (dy, dx), (2, 3))
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            loss = loss_of(model(x), target[pick])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()
    confusion = np.zeros((classes, classes), np.int64)
    with torch.inference_mode():
        for k in range(half, len(images), 500):
            found = model(pixels[k : k + 500].float().div_(127.5).sub_(1.0)).argmax(1).numpy()
            np.add.at(confusion, (labels[k : k + 500], found), 1)
    return float(np.trace(confusion) / confusion.sum()), confusion


def rate(size: int, seconds: float, seed: int) -> float:
    """Pictures a second of one core's processor time, over all styles. A busy machine changes it little."""
    cv2.setNumThreads(1)
    for i in range(len(STYLES)):
        picture(i, seed=seed, size=size)
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds or done % len(STYLES):
        picture(done, seed=seed, size=size)
        done += 1
    return done / (time.process_time() - start)


def confused(confusion: np.ndarray[Any, Any], names: tuple[str, ...], most: int = 5) -> list[str]:
    """The most frequent confusions, as text."""
    wrong = confusion - np.diag(np.diag(confusion))
    worst = np.argsort(wrong, axis=None)[::-1][:most]
    pairs = [divmod(int(k), len(names)) for k in worst]
    return [f"{names[a]} taken for {names[b]}: {wrong[a, b]} of {confusion[a].sum()}" for a, b in pairs]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", type=int, default=16_000, help="contents drawn; half train, half test")
    parser.add_argument("--epochs", type=int, default=8, help="epochs for the subjects (a third of it for the styles)")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    rates = {str(size): round(rate(size, 6.0, args.seed), 1) for size in (64, 256, 1024)}
    spans = [(k, min(k + 500, args.contents), args.size, args.seed) for k in range(0, args.contents, 500)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        parts = pool.map(draw, spans, chunksize=1)
    images, styles, subjects = (np.concatenate([p[k] for p in parts]) for k in range(3))

    import torch

    torch.set_num_threads(args.processes)
    by_style, style_confusion = accuracy(images, styles, len(STYLES), max(2, args.epochs // 3), 16)
    by_subject, subject_confusion = accuracy(images, subjects, len(SUBJECTS), args.epochs, 32)
    result = {
        "styles": len(STYLES),
        "subjects": len(SUBJECTS),
        "contents": args.contents,
        "size": args.size,
        "seed": args.seed,
        "style_accuracy": round(by_style, 4),
        "subject_accuracy": round(by_subject, 4),
        "style_confusions": confused(style_confusion, STYLES),
        "subject_confusions": confused(subject_confusion, SUBJECTS),
        "subject_recall": {
            n: round(float(c[k] / c.sum()), 3) for k, (n, c) in enumerate(zip(SUBJECTS, subject_confusion, strict=True))
        },
        "pictures_per_second_per_core": rates,
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    half = args.contents // 2
    print(
        f"{args.contents} contents, {half} to train on and {args.contents - half} held back, {args.size} x {args.size} pixels"
    )
    print(
        f"styles distinguished:   {by_style:.4f} of {len(STYLES)} (aim 0.95)   "
        + "; ".join(confused(style_confusion, STYLES, 2))
    )
    print(
        f"subjects distinguished: {by_subject:.4f} of {len(SUBJECTS)} (aim 0.90) "
        + "; ".join(confused(subject_confusion, SUBJECTS, 3))
    )
    print("pictures a second a core: " + ", ".join(f"{v} at {k} px" for k, v in rates.items()))


if __name__ == "__main__":
    main()
