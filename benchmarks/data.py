"""Suite (d): images per second on one core, from JPEG files to normalised batches, beside torchvision's ImageFolder.

Examples: `python benchmarks/data.py --root /data/cifar10 --img_size 32 --crop_padding 4`, and
`python benchmarks/data.py --render 500` for JPEGs of 500 x 500 px made by the demo's renderer.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from datamodules import ImageFolderDataModule
from datamodules.demos.shapes import render_demo
from lookupvit.bench.report import Report, environment
from lookupvit.bench.suites import timing_columns
from lookupvit.bench.timing import MIN_ROUNDS, interleave

BASELINE = "torchvision ImageFolder, PIL"
DECODED = "torchvision ImageFolder, decode_image"
OURS = "datamodules"
Loader = Callable[[], list[tuple[Tensor, Tensor]]]


def peer_transform(data: ImageFolderDataModule, training: bool, pil: bool) -> v2.Compose:
    """What the DataModule's "light" recipe does, in plain v2 transforms on PIL images or on uint8 tensors."""
    options, (height, width) = data.options, data.img_size
    mode = v2.InterpolationMode(options["interpolation"])
    resize = partial(v2.Resize, interpolation=mode, antialias=True)
    if not training:
        steps = [resize(round(height / options["crop_pct"])), v2.CenterCrop((height, width))]
    elif options["crop_padding"]:
        steps = [resize(height), v2.RandomCrop((height, width), padding=options["crop_padding"])]
    else:
        crop = {"scale": options["scale"], "ratio": options["ratio"], "interpolation": mode, "antialias": True}
        steps = [v2.RandomResizedCrop((height, width), **crop)]
    if training:
        steps.append(v2.RandomHorizontalFlip(options["hflip"]))
    to_tensor = [v2.PILToTensor()] if pil else []
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(options["mean"], options["std"])]
    return v2.Compose([*steps, *to_tensor, *normalise])


def loaders(data: ImageFolderDataModule, training: bool, batches: int) -> dict[str, Loader]:
    """The competitors; each call reads `batches` batches in this process and returns them."""
    folder = str(data.root / "train")

    def peer(pil: bool) -> DataLoader:
        transform = peer_transform(data, training, pil)
        reader = {} if pil else {"loader": partial(decode_image, mode="RGB")}
        files = ImageFolder(folder, transform, **reader)
        return DataLoader(files, data.batch_size, shuffle=training, num_workers=0, drop_last=training)

    def ours() -> list:
        loader = data.train_dataloader() if training else data.val_dataloader()
        return [data.on_after_batch_transfer(batch, 0) for batch in islice(loader, batches)]

    pil, decoded = peer(pil=True), peer(pil=False)
    return {BASELINE: lambda: list(islice(pil, batches)), DECODED: lambda: list(islice(decoded, batches)), OURS: ours}


def repeats_itself(load: Loader) -> bool:
    """Whether the same seed gives the same batches, bit for bit."""
    torch.manual_seed(1)
    first = load()
    torch.manual_seed(1)
    pairs = zip(first, load(), strict=True)
    return all(torch.equal(a, b) for old, new in pairs for a, b in zip(old, new, strict=True))


def measure(
    root: str,
    img_size: int,
    batch_size: int,
    batches: int,
    rounds: int,
    crop_padding: int | None = None,
    consumes: float | None = None,
    workers: int = 1,
) -> Report:
    """Times the competitors on one core.

    Args:
        root: Holds train/CLASS/*.jpg.
        img_size: Pixels of the batch.
        batch_size: Images per batch.
        batches: Batches per sample, or as many as the folder holds.
        rounds: Samples of each competitor.
        crop_padding: Pad and crop in place of the random resized crop, for small images.
        consumes: Images per second that the accelerator takes; adds the share of time that it waits.
        workers: Loading processes that feed it.

    Returns:
        The table, with a group for training and one for evaluation.
    """
    torch.set_num_threads(1)
    data = ImageFolderDataModule(
        root=root,
        img_size=img_size,
        batch_size=batch_size,
        num_workers=0,
        crop_padding=crop_padding,
        val_split="train",
        drop_last=True,
    )
    data.setup("fit")
    about = {**environment(), "workers": 0, "batch": batch_size, "px": img_size}
    report = Report("From JPEG files to batches, one core", [], about, [], ["transform"])
    for training in (True, False):
        calls = loaders(data, training, batches)
        items = {name: sum(len(images) for images, _ in load()) for name, load in calls.items()}
        timings = interleave(calls, BASELINE, rounds, 1, None, 0.0, items, "train" if training else "eval")
        for name, timing in timings.items():
            row = {"model": name, "transform": "train" if training else "eval", "images": items[name]}
            row |= timing_columns(timing) | {"same twice": "yes" if repeats_itself(calls[name]) else "NO"}
            if consumes:
                row["waits %"] = 100 * max(0.0, 1 - timing.rate * workers / consumes)
            report.rows.append(row)
    if consumes:
        report.notes.append(
            f"waits: of an accelerator that takes {consumes:.0f} images/s fed by {workers} such workers"
        )
    return report


def main(argv: list[str] | None = None) -> None:
    """Arguments, the measurement, the files."""
    parser = argparse.ArgumentParser(
        description="Images per second on one core, from JPEG files to normalised batches."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", help="folder with train/CLASS/*.jpg")
    where.add_argument("--render", type=int, metavar="PX", help="render demo JPEGs of this size and read those")
    parser.add_argument("--per_class", type=int, default=13, help="rendered images of each of the ten classes")
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--crop_padding", type=int, help="pad by so many pixels and crop, as for CIFAR-10")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=2, help="batches per sample")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--consumes", type=float, help="images/s that the accelerator takes, to see how long it waits")
    parser.add_argument("--workers", type=int, default=1, help="loading processes that feed it")
    parser.add_argument("--quick", action="store_true", help="few images and two rounds, to try the program out")
    parser.add_argument("--output", default="outputs/bench")
    parser.add_argument("--name", default="data", help="name of the files")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.batches, args.batch, args.per_class = 2, 1, 4, 1
    elif args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds {args.rounds} is too few for a median: give {MIN_ROUNDS} or more, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        if args.render:
            args.root = str(Path(folder) / "demo")
            render_demo(args.root, 0, args.per_class, 1, args.render)
        run = (args.root, args.img_size, args.batch, args.batches, args.rounds)
        report = measure(*run, args.crop_padding, args.consumes, args.workers)
    if args.render:
        report.settings["files"] = f"JPEG {args.render} x {args.render} px, rendered"
    report.show()
    for path in report.save(args.output, args.name):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
