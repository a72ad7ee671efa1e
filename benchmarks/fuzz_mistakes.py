"""Mistakes in names, sizes, classes, run folders and files: each is refused in one line or answered right.

Every case is drawn from its seed, and every answer is compared with what is known: the folder that a name stands for,
the size that was asked for, the classes of the checkpoint, the predictions of the same weights by their own path, a row
for each file. `benchmarks/fuzz.py` runs them, each in a process of its own.
"""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

TINY = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
NAMES = ("a b", "ä", "a/b", "../up", "..", ".", "/", "", ".hidden", "-x", "x" * 300, "a\nb", "version_0", "last", "%s",
         "$HOME")  # fmt: skip
SIZES = ([2, 2], [4, 4], [1, 4], [5, 5], [0, 2], [-1, 2], [2], [2, 2, 2], [2.5, 2], "2x2", "abc", 2, [[2, 2]],
         [1000, 1000])  # fmt: skip
PIXELS = (32, 40, 8, 31, 0, -32, [32, 48], [32], [32, 32, 32], "32", "big", 32.0)


def run(argv: list[str]) -> tuple[int, str]:
    """Exit code, and everything printed, of `lookupvit` in this process."""
    from lookupvit.cli.main import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(argv)
    return code, text.getvalue()


def refused(code: int, text: str) -> str:
    """Judges what was answered to something wrong."""
    lines = [line for line in text.splitlines() if line.startswith("lookupvit ")]
    if code != 2 or len(lines) != 1 or len(lines[0]) < 30 or "Traceback" in text:
        return f"wrong: exit code {code}, {lines}"
    return "refused"


def judged_classes(text: str, own: list[str], here: list[str]) -> str:
    """Judges a `test` that ran: the one line of its output that compares classes must say where they differ first.

    Args:
        text: Everything that was printed.
        own: The folders that the checkpoint was trained on, sorted.
        here: Those that it was tested on, sorted.
    """
    from datamodules.images.names import readable_names

    named = [readable_names(names) for names in (own, here)]
    said = [line for line in text.splitlines() if line.startswith("Warning: the classes are not those of ")]
    if named[0] == named[1]:
        return f"wrong: a warning of the same classes: {said}" if said else "ran"
    if len(own) != len(here):
        wanted = f"{len(own)} classes in the checkpoint, {len(here)} in the data"
    else:
        place, old, new = next((i, a, b) for i, (a, b) in enumerate(zip(*named, strict=True)) if a != b)
        wanted = f"class {place} is {old!r} in the checkpoint and {new!r} in the data"
    return "ran" if len(said) == 1 and wanted in said[0] else f"wrong: not said that {wanted}: {said}"


def rows_of(folder: Path) -> dict[str, list]:
    """The classes that `predict` wrote for each file, the most likely first; an empty list for an error."""
    (path,) = folder.rglob("predictions.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Path(line["file"]).name: [p["class"] for p in line["predictions"]] for line in lines}


class Mistakes:
    """The kinds of mistakes, over one trained run.

    Args:
        tree: Images in class folders that the run was trained on.
        checkpoint: Its `last.ckpt`.
        config: Its configuration, as `fit --config` takes it.
        folder: Scratch.
    """

    def __init__(self, tree: Path, checkpoint: Path, config: dict, folder: Path) -> None:
        self.tree, self.checkpoint, self.folder = tree, checkpoint, folder
        self.config = folder / "mistakes.yaml"
        self.config.write_text(json.dumps(config))  # JSON is YAML
        self.pictures = folder / "pictures"
        for at, file in enumerate(sorted((tree / "val").rglob("*.JPEG"))):
            self.pictures.mkdir(exist_ok=True)
            shutil.copy(file, self.pictures / f"{at}.jpg")
        code, text = self.predict(checkpoint, self.pictures, folder / "right")
        if code:
            raise SystemExit(f"the undamaged run does not predict: {text}")
        self.right = rows_of(folder / "right")

    def predict(self, checkpoint: Path, pictures: Path, output: Path) -> tuple[int, str]:
        """Predictions into a folder."""
        argv = ["predict", "--ckpt_path", str(checkpoint), "--data.predict_path", str(pictures), *TINY]
        return run([*argv, "--output_dir", str(output), "--data.num_workers", "0"])

    def one(self, seed: int) -> str:
        """Makes one mistake and judges the answer."""
        chance = random.Random(seed)
        kinds: list[Callable[[random.Random, Path], str]]
        kinds = [self.names, self.sizes, self.classes, self.run_folders, self.files]
        here = self.folder / f"mistake{seed}"
        here.mkdir()
        os.chdir(here)
        return kinds[seed % len(kinds)](chance, here)

    def names(self, chance: random.Random, here: Path) -> str:
        """`--name`: the run lies in OUTPUT_DIR/NAME, and nothing lies elsewhere."""
        name = chance.choice(NAMES)
        argv = ["fit", "--config", str(self.config), *TINY, "--output_dir", "out", f"--name={name}"]
        code, text = run([*argv, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"])
        if code:
            return refused(code, text)
        found = [path.resolve() for path in here.rglob("last.ckpt")]
        wanted = (here / "out").resolve()
        if len(found) != 1 or wanted not in found[0].parents:
            return f"wrong: --name {name!r} went to {found}"
        code, text = run(["predict", "--config", str(self.config), "--output_dir", "out", f"--name={name}", *TINY,
                          "--ckpt_path", "last", "--data.predict_path", str(self.pictures)])  # fmt: skip
        return "ran" if code == 0 else f"wrong: the run of --name {name!r} is not found again: {text[-300:]}"

    def sizes(self, chance: random.Random, here: Path) -> str:
        """Sizes of images and compressed tokens: the model is trained at the sizes that were asked for."""
        import torch

        size, pixels = chance.choice(SIZES), chance.choice(PIXELS) if chance.random() < 0.5 else 32
        argv = ["fit", "--config", str(self.config), *TINY, "--output_dir", "out", "--trainer.max_steps", "1"]
        argv += [f"--model.compressed_size={json.dumps(size)}", f"--data.img_size={json.dumps(pixels)}"]
        code, text = run(argv)
        if code:
            return refused(code, text)
        saved = torch.load(next(here.rglob("last.ckpt")), weights_only=True)["hyper_parameters"]
        trained = [list(saved["compressed_size"]), saved["img_size"]]
        trained[1] = list(trained[1]) if isinstance(trained[1], list | tuple) else [trained[1]] * 2
        number = int(pixels) if isinstance(pixels, str | float) else pixels
        asked = [size, [number] * 2 if isinstance(number, int) else number]
        return "ran" if trained == asked else f"wrong: asked for {asked}, trained {trained}"

    def classes(self, chance: random.Random, here: Path) -> str:
        """`test` on other classes is refused, or a warning names the difference."""
        tree = here / "tree"
        shutil.copytree(self.tree, tree)
        names = sorted(path.name for path in (tree / "train").iterdir())
        kind = chance.choice(("renamed", "fewer", "more", "the same"))
        changed = chance.choice(names)
        for split in ("train", "val"):
            if kind == "renamed":
                (tree / split / changed).rename(tree / split / f"n0{chance.randrange(10**7)}")
            elif kind == "fewer":
                shutil.rmtree(tree / split / changed)
            elif kind == "more":
                shutil.copytree(tree / split / changed, tree / split / f"another_{changed}")
        code, text = run(["test", "--ckpt_path", str(self.checkpoint), *TINY, f"--data.root={tree}"])
        if code:
            return "wrong: refused its own classes" if kind == "the same" else refused(code, text)
        return judged_classes(text, names, sorted(path.name for path in (tree / "val").iterdir()))

    def run_folders(self, chance: random.Random, here: Path) -> str:
        """A folder for `--ckpt_path`: its newest whole checkpoint, or one line."""
        run_folder = self.checkpoint.parents[1]
        copy = here / "runs" / run_folder.name
        shutil.copytree(run_folder, copy)
        last = copy / "checkpoints" / "last.ckpt"
        kind = chance.choice(("run", "experiment", "checkpoints", "empty", "cut", "noise", "cut, one before"))
        if kind == "empty":
            shutil.rmtree(copy / "checkpoints")
        elif kind != "run":
            content = last.read_bytes()
            for older in last.parent.glob("last.previous*"):  # their predictions would rightly differ
                older.unlink()
            if kind == "cut, one before":
                shutil.copy(last, last.with_name("last.previous.ckpt"))
            if "cut" in kind or kind == "noise":
                last.write_bytes(
                    chance.randbytes(999) if kind == "noise" else content[: chance.randrange(len(content))]
                )
        given = {"experiment": here / "runs", "checkpoints": copy / "checkpoints"}.get(kind, copy)
        code, text = self.predict(given, self.pictures, here / "out")
        if code:
            return refused(code, text) if kind in ("empty", "cut", "noise") else f"wrong: {kind}: {text[-300:]}"
        return "ran" if rows_of(here / "out") == self.right else f"wrong: other predictions from the {kind} folder"

    def files(self, chance: random.Random, here: Path) -> str:
        """Damaged, empty and hidden files: each image has its row, and the rows of undamaged images do not change."""
        shutil.copytree(self.pictures, here / "in")
        names = sorted(self.right)
        bad = chance.sample(names, chance.randint(1, len(names)))
        for name in bad:
            (here / "in" / name).write_bytes(chance.choice((b"", b"text", chance.randbytes(300))))
        (here / "in" / "._0.jpg").write_bytes(b"of a file manager")
        code, text = self.predict(self.checkpoint, here / "in", here / "out")
        if code and len(bad) < len(names):
            return f"wrong: exit code {code}: {text[-300:]}"
        expected = {name: [] if name in bad else self.right[name] for name in names}
        return "ran" if rows_of(here / "out") == expected else "wrong: not one row for each file"
