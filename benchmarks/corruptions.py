"""ImageNet-C's corruptions and the shifts: how long each takes, and one image under all of them.

    python benchmarks/corruptions.py /data/imagenette/val --picture docs/images/imagenette_c.jpg

Times are CPU seconds of one process, so that other work on the machine counts little; reading and resizing not counted.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from datamodules.images.folder import decode_rgb, find_images
from datamodules.images.transforms import IMAGENET_MEAN, eval_transform, transform_options
from datamodules.robustness.corruptions import CORRUPTIONS, SEVERITIES
from datamodules.robustness.folder import seed_of
from datamodules.robustness.imagenet_c import corrupt_image, prepare
from datamodules.robustness.shifts import SHIFTS, shift_image
from lookupvit.bench.report import Report, environment

COLUMNS = 5
SIDE = 224


def changed(image: torch.Tensor, kind: str, severity: int, seed: int) -> torch.Tensor:
    """Image `(3, H, W)` under a corruption or a shift; as it is for "clean"."""
    if kind == "clean":
        return image
    if kind in CORRUPTIONS:
        return corrupt_image(image, kind, severity, seed)
    return shift_image(image, kind, seed, colour=(255 * torch.tensor(IMAGENET_MEAN)).round().to(torch.uint8))


def measured(images: list[torch.Tensor]) -> list[dict]:
    """Milliseconds of CPU time an image, for each severity."""
    rows = []
    for kind in (*CORRUPTIONS, *SHIFTS):
        row: dict = {"kind": kind}
        for severity in SEVERITIES if kind in CORRUPTIONS else (0,):
            changed(images[0], kind, severity, 0)  # compiled, and its photographs read
            start = time.process_time()
            for seed, image in enumerate(images):
                changed(image, kind, severity, seed)
            row[f"severity {severity}" if severity else "ms"] = 1000 * (time.process_time() - start) / len(images)
        rows.append(row)
    return rows


def draw(image: torch.Tensor, seed: int, path: Path) -> None:
    """The image clean, under each corruption at severity 3, and under each shift."""
    kinds = ["clean", *CORRUPTIONS, *SHIFTS]
    count = -(-len(kinds) // COLUMNS)
    figure = Figure(figsize=(1.7 * COLUMNS, 1.88 * count), layout="constrained")
    for axis, kind in zip(figure.subplots(count, COLUMNS).flat, kinds, strict=False):
        axis.imshow(changed(image, kind, 3, seed).permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
        axis.set_title(kind.replace("_", " "), fontsize=8, pad=3)
    for axis in figure.axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 80})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="images")
    parser.add_argument("--count", type=int, default=20, help="images to measure with, evenly spread (20)")
    parser.add_argument("--picture", type=Path, help="write the picture of the --chosen image here")
    parser.add_argument("--chosen", type=int, default=0, help="which of the images (0)")
    parser.add_argument("--crop_pct", type=float, default=1.0, help="of the centre crop (1.0: images of 224 px)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare()
    resize = eval_transform((SIDE, SIDE), transform_options(crop_pct=args.crop_pct)).resize
    files = find_images(args.folder)
    files = [files[i * len(files) // args.count] for i in range(args.count)]
    images = [resize(decode_rgb(file)) for file in files]
    if args.picture:
        draw(images[args.chosen], seed_of(files[args.chosen]), args.picture)
        return 0
    rows = measured(images)
    total = sum(value for row in rows for name, value in row.items() if name.startswith("severity"))
    note = f"all {len(CORRUPTIONS) * len(SEVERITIES)} corrupted versions of one image: {total / 1000:.2f} s"
    print(Report("CPU milliseconds an image", rows, environment("cpu"), [note]).to_markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
