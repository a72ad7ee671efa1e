"""Runs many mutated configurations and damaged files: none may hang, end in a traceback, or silently go wrong.

Every case runs in a forked process with a time limit. A configuration must end with exit code 0, or 2 and one line, and
after 0 the run must have saved finite weights after the steps that were asked for. A damaged file must be refused in
one line that names it, or, where what it holds can be compared, give what the undamaged one gives.

    python benchmarks/fuzz.py --configs 300 --mistakes 300 --files 200
"""

import argparse
import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("image", "video", "json", "csv", "checkpoint", "shard")


def apart(work: Callable[[], str], limit: float) -> str:
    """What ``work`` returns, in a forked process; or "hang", "crash (code)", "traceback: ..."."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        faulthandler.disable()
        try:
            answer = work()
        except BaseException:
            answer = "traceback: " + " / ".join(traceback.format_exc().strip().splitlines()[-3:])
        theirs.send(answer)

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        answer = ours.recv() if ours.poll(limit) else "hang"
    except EOFError:
        process.join()
        answer = f"crash ({process.exitcode})"
    if answer == "hang":
        process.kill()
    process.join()
    return answer


def run(argv: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and the error lines of `lookupvit`, in this process."""
    from lookupvit.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), "\n".join(line for line in err.getvalue().splitlines() if line.startswith("lookupvit"))


def refused(code: int, errors: str) -> str:
    """Judges what was answered to something wrong."""
    if code != 2 or len(errors.splitlines()) != 1 or len(errors) < 30:
        return f"wrong: exit code {code}, {errors!r}"
    return "refused"


def one_config(seed: int, tree: Path) -> str:
    """One mutated configuration: a training of two steps."""
    import test_fuzz
    import torch

    folder = Path(tempfile.mkdtemp(dir=tree.parent))
    os.chdir(folder)
    text = test_fuzz.mutate(test_fuzz.config(tree), random.Random(seed))
    Path("mutant.yaml").write_text(text, encoding="utf-8")
    argv = ["fit", "--config", "mutant.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    argv += ["--trainer.enable_progress_bar", "false", "--output_dir", "out", "--trainer.limit_val_batches", "1"]
    code, _, errors = run([*argv, "--trainer.max_epochs", "1", "--trainer.max_steps", "2"])
    if code:
        return refused(code, errors)
    saved = sorted(folder.glob("out/**/last.ckpt"))
    if not saved:
        return "wrong: exit code 0 and no checkpoint"
    checkpoint = torch.load(saved[0], weights_only=True)
    if not all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values()):
        return "wrong: exit code 0 and weights that are not finite"
    return "ran" if 1 <= checkpoint["global_step"] <= 2 else f"wrong: {checkpoint['global_step']} steps"


def one_image(damaged: bytes, source: Path, path: Path) -> str:
    """The image is decoded, or refused with its name. The pixels of a damaged JPEG cannot be judged."""
    from datamodules.images.folder import CorruptImageError, decode_rgb

    path.write_bytes(damaged)
    try:
        image = decode_rgb(path)
    except CorruptImageError as error:
        return "refused" if str(path) in str(error) and "\n" not in str(error) else f"wrong: {error!r}"
    return "read" if str(image.dtype) == "torch.uint8" and len(image) == 3 else f"wrong: {image.shape}"


def one_video(damaged: bytes, source: Path, path: Path) -> str:
    """Frames are decoded, or the file is refused with its name. Damage inside a frame may show in its pixels."""
    from datamodules.video.decode import open_video
    from datamodules.video.index import CorruptVideoError

    path.write_bytes(damaged)
    try:
        with open_video(str(path)) as video:
            frames = video.frames([0, len(video) // 2, len(video) - 1])
    except CorruptVideoError as error:
        return "refused" if str(path) in str(error) and "\n" not in str(error) else f"wrong: {error!r}"
    return "read" if frames.ndim == 4 and len(frames) == 3 else f"wrong: {frames.shape}"


def one_json(damaged: bytes, source: Path, path: Path) -> str:
    """COCO's annotations are read for every image, or refused in one line."""
    from datamodules.captions.index import read_captions

    good = set(read_captions(source))
    path.write_bytes(damaged)
    try:
        captions = read_captions(path)
    except (ValueError, FileNotFoundError) as error:
        return "refused" if str(path) in str(error) and "\n" not in str(error) else f"wrong: {error!r}"
    # A changed letter makes another caption, which nobody can notice. A missing caption must not pass.
    return "read" if len(captions) >= len(good) else f"wrong: {len(captions)} captions of {len(good)}"


def one_csv(damaged: bytes, source: Path, path: Path) -> str:
    """Kinetics' list is read, or refused in one line."""
    from datamodules import KineticsDataModule

    root = path.parent / f"root_{path.stem}"
    shutil.copytree(source.parent, root)
    (root / source.name).write_bytes(damaged)
    try:
        data = KineticsDataModule(str(root), num_frames=2, batch_size=1)
        data.setup("fit")
    except (ValueError, FileNotFoundError) as error:
        return "refused" if "\n" not in str(error) else f"wrong: {error!r}"
    finally:
        shutil.rmtree(root)
    return "read"


def one_checkpoint(damaged: bytes, source: Path, path: Path) -> str:
    """The weights are read bit for bit, or the file is refused with its name."""
    import torch

    from lookupvit.checkpoints.find import load

    path.write_bytes(damaged)
    good = torch.load(source, weights_only=True)["state_dict"]
    try:
        got = load(path)
    except (ValueError, FileNotFoundError) as error:
        return "refused" if str(path) in str(error) and "\n" not in str(error) else f"wrong: {error!r}"
    same = all(torch.equal(value, got["state_dict"][name]) for name, value in good.items())
    return "read" if same else "wrong: other weights"


def one_shard(damaged: bytes, source: Path, path: Path) -> str:
    """Every sample of a shard is read, or the shard is refused with its name."""
    from datamodules import WebDatasetDataModule

    root = path.parent / f"root_{path.stem}"
    shutil.copytree(source.parent, root)
    (root / source.name).write_bytes(damaged)
    data = WebDatasetDataModule(str(root), img_size=32, batch_size=2, num_workers=0)
    try:
        batches = list(data.val_dataloader())
    except ValueError as error:
        return "refused" if source.name in str(error) and "\n" not in str(error) else f"wrong: {error!r}"
    finally:
        shutil.rmtree(root)
    count = sum(len(images) for images, _ in batches)
    return "read" if count == len(data._shards["val"]) else f"wrong: {count} samples"


def sources(folder: Path) -> dict[str, list[Path]]:
    """Undamaged files of every kind."""
    from conftest import TREE_CLASSES, write_image, write_tree
    from video_files import write

    tree = write_tree(folder / "tree", TREE_CLASSES, {"train": 4, "val": 2})
    images = [write_image(folder / f"image.{end}", 40, 50, 3) for end in ("jpg", "png", "webp", "gif", "bmp", "tiff")]
    videos = [write(folder / "video.mp4", 12), write(folder / "video.webm", 12, codec="libvpx-vp9")]
    captions = [{"image_id": at, "id": at, "caption": f"a picture of {at} things"} for at in range(20)]
    listed = {"images": [{"id": at, "file_name": f"{at}.jpg"} for at in range(20)], "annotations": captions}
    (folder / "captions_train2017.json").write_text(json.dumps(listed))
    from datamodules.demos.motion import render_motion

    render_motion(folder / "motion", train_per_class=1, val_per_class=1, frames=4)
    argv = ["fit", "--config", json.dumps(__import__("test_fuzz").config(tree)), "--output_dir", str(folder / "out")]
    code, _, errors = run(
        [*argv, "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    )
    if code:
        raise SystemExit(f"the undamaged configuration does not train: {errors}")
    code, _, errors = run(["make-shards", str(tree), str(folder / "shards"), "--split", "val"])
    return {
        "image": images,
        "video": videos,
        "json": [folder / "captions_train2017.json"],
        "csv": [folder / "motion" / "train.csv"],
        "checkpoint": [next((folder / "out").glob("**/last.ckpt"))],
        "shard": [folder / "shards" / "val-00000.tar"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=300)
    parser.add_argument("--mistakes", type=int, default=300, help="mistakes of benchmarks/fuzz_mistakes.py")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case; case n has seed + n")
    parser.add_argument("--limit", type=float, default=60, help="seconds of one case")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    import fuzz_mistakes
    import test_fuzz
    import torch

    torch.set_num_threads(1)
    begun, counts, bad = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sources(folder)
        judges = {kind: globals()[f"one_{kind}"] for kind in KINDS}

        def note(kind: str, seed: int, answer: str) -> None:
            counts.setdefault(kind, Counter())[answer.split(":")[0].split(" (")[0]] += 1
            if answer not in ("ran", "read", "refused"):
                bad.append(f"{kind} {seed}: {answer}")
                print(bad[-1], flush=True)

        for kind, undamaged in files.items():  # otherwise a reader that refuses everything would pass
            for source in undamaged:
                path = folder / f"undamaged{source.suffix}"
                if (answer := judges[kind](source.read_bytes(), source, path)) != "read":
                    raise SystemExit(f"the undamaged {source.name} is not read: {answer}")
        for seed in range(args.seed, args.seed + args.files):
            kind, chance = KINDS[seed % len(KINDS)], random.Random(seed)
            source = chance.choice(files[kind])
            data = test_fuzz.damaged(source.read_bytes(), chance)
            path = folder / f"damaged{seed}{source.suffix}"
            work: Callable[[], Any] = lambda k=kind, d=data, s=source, p=path: judges[k](d, s, p)  # noqa: E731
            note(kind, seed, apart(work, args.limit))
        for seed in range(args.seed, args.seed + args.configs):
            note("config", seed, apart(lambda s=seed: one_config(s, folder / "tree"), args.limit))
        if args.mistakes:
            tree, config = folder / "tree", test_fuzz.config(folder / "tree")
            mistakes = fuzz_mistakes.Mistakes(tree, files["checkpoint"][0], config, folder)
            for seed in range(args.seed, args.seed + args.mistakes):
                note("mistake", seed, apart(lambda s=seed: mistakes.one(s), args.limit))
    print("\n| what | cases | answers |\n|---|---|---|")
    for kind, answers in counts.items():
        print(f"| {kind} | {answers.total()} | {', '.join(f'{n} {answer}' for answer, n in sorted(answers.items()))} |")
    print(f"\n{len(bad)} bad answers, {time.monotonic() - begun:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
