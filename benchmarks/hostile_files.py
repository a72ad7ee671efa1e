"""The hostile files of `hostile.py`: each case writes one into the present folder and says what is to read it."""

import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CASES: dict[str, Callable] = {}
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
CPU += ["--output_dir", "out", "--trainer.limit_test_batches", "1"]
_NAME = "lookupvit_tiny_patch16_224"
_ARGS = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings, which are not judged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base(folder: Path) -> Path:
    """A checkpoint, a folder of `save_pretrained` and an image tree, all undamaged."""
    import torch
    from conftest import TREE_CLASSES, write_tree

    from lookupvit import create_model
    from lookupvit.weights.file import save_weights

    write_tree(folder / "tree", TREE_CLASSES, {"train": 1, "val": 1})
    model = create_model(_NAME, num_classes=3, img_size=32, compressed_size=(2, 2), **_ARGS)
    save_weights(model, folder / "good.ckpt")
    checkpoint = torch.load(folder / "good.ckpt", weights_only=True)
    data = {"root": str(folder / "tree"), "img_size": 32, "num_workers": 0, "batch_size": 2}
    checkpoint["data_config"] = {"class_path": "ImageFolderDataModule", "init_args": data}
    torch.save(checkpoint, folder / "good.ckpt")
    model.set_preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model.save_pretrained(folder / "hub")
    return folder


def good() -> Path:
    """Where `base` wrote."""
    return Path(os.environ["HOSTILE_BASE"])


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoint(name: str, change: Callable[[dict], Any], command: str = "test") -> None:
    """A case of one changed entry of a good checkpoint."""

    def make() -> list[str]:
        import torch

        content = torch.load(good() / "good.ckpt", weights_only=True)
        torch.save(change(content) or content, "evil.ckpt")
        if command in ("test", "fit"):
            steps = ["--trainer.max_steps", "1"] if command == "fit" else []
            return [command, "--ckpt_path", "evil.ckpt", *CPU, *steps]
        return [*command.split(), "evil.ckpt", *(["--output", "out/x"] if "export" in command else [])]

    CASES[f"checkpoint {name} ({command})"] = make


def data(**given: Any) -> Callable[[dict], None]:
    return lambda c: c["data_config"]["init_args"].update(given)


def of_class(name: str, **given: Any) -> Callable[[dict], None]:
    return lambda c: c.update(data_config={"class_path": name, "init_args": given})


def task(**given: Any) -> Callable[[dict], None]:
    return lambda c: c["hyper_parameters"].update(given)


def args(**given: Any) -> Callable[[dict], None]:
    return lambda c: c["hyper_parameters"]["args"].update(given)


def _laughs(c: dict) -> None:
    rows: Any = ["ha"]
    for _ in range(14):
        rows = [rows] * 14
    c["hyper_parameters"]["args"]["depth"] = rows


def _circle(c: dict) -> None:
    c["hyper_parameters"]["args"]["args"] = c["hyper_parameters"]


_SHARDS = {"img_size": 32, "num_classes": 3}
for command in ("test", "fit", "knn", "export --format torch-export"):
    checkpoint("pipe", of_class("WebDatasetDataModule", root="pipe:touch ran; cat {}", **_SHARDS), command)
    checkpoint("class outside", of_class("evil.Data", root="x"), command)
for name, root in {
    "http": "http://127.0.0.1:9/x", "s3": "s3://bucket/x", "file url": "file:///etc", "memory": "memory://x",
    "blank pipe": " pipe:touch ran", "chained": "simplecache::http://127.0.0.1:9/x", "new line": "a\nb",
    "escape": "\x1b[2J\x1b]0;x\x07", "environment": "/nowhere/${oc.env:SECRET}", "resolver": "${oc.decode:SECRET}",
    "mark": "\ue000pipe:touch ran",
}.items():  # fmt: skip
    checkpoint(f"root {name}", of_class("WebDatasetDataModule", root=root, **_SHARDS))
checkpoint("root of a device", data(root="/dev"))
checkpoint("predict_path address", data(predict_path="http://127.0.0.1:9/a.jpg"))
checkpoint("demo writes", of_class("DemoDataModule", root="written", train_per_class=1, val_per_class=1))
checkpoint("motion writes", of_class("MotionDataModule", root="written"))
checkpoint("scenes write", of_class("ScenesDataModule", root="written"))
checkpoint("corruptions write", of_class("CIFAR10CDataModule", root="tree", corrupted="written"))
checkpoint("archive unpacks", of_class("CIFAR10DataModule", root="written", archive="victim"))
for name, path in {"os": "os.system", "ours": "lookupvit.cli.main.main", "builtin": "builtins.eval", "number": 7,
                   "nested": "datamodules.shards.datamodule.gopen", "up": "../evil.Data"}.items():  # fmt: skip
    checkpoint(f"class {name}", of_class(path, root="x"))
checkpoint("task outside", lambda c: c.update(task="evil.Task"))
checkpoint("task inner", lambda c: c["hyper_parameters"].update(_class_path="evil.Task"))
checkpoint("instantiator", task(_instantiator="os.system"))
checkpoint("class in args", args(norm={"class_path": "evil.Data", "init_args": {}}))
checkpoint("class in data", data(rand_augment={"class_path": "evil.Data"}))
checkpoint("teacher fetched", task(teacher="vit_tiny_patch16_224"), "fit")
checkpoint("teacher hub", task(teacher="hf-hub:evil/model"), "fit")
checkpoint("init_from fetched", task(init_from="vit_tiny_patch16_224"), "fit")
checkpoint("name up", task(name="../../victim"))
checkpoint("depth", args(depth=10**9))
checkpoint("width", args(embed_dim=2**15, num_heads=1))
checkpoint("hidden", args(mlp_ratio=1e9))
checkpoint("classes", task(num_classes=10**9))
checkpoint("image size", data(img_size=10**6))
checkpoint("workers", data(num_workers=10**6))
checkpoint("laughs", _laughs)
checkpoint("circle", _circle)
checkpoint("hyper-parameters of a list", lambda c: c.update(hyper_parameters=["name"]))
checkpoint("data of a text", lambda c: c.update(data_config="data.yaml"))
checkpoint(
    "init_args of a path", lambda c: c.update(data_config={"class_path": "DemoDataModule", "init_args": "victim"})
)
checkpoint("class names", lambda c: c.update(class_names=["[/b]", "\x1b[2J", "=cmd|' /C calc'!A0"]))
checkpoint("pickle", lambda c: c.update(extra=Bomb()))
checkpoint("pickle alone", lambda c: Bomb())
checkpoint("pickle", lambda c: c.update(extra=Bomb()), "attend --path x")
checkpoint("pickle", lambda c: c.update(extra=Bomb()), "cost --ckpt_path")
checkpoint("good", lambda c: None)


def case(name: str) -> Callable[[Callable], Callable]:
    """Enters a function as a case."""
    return lambda make: CASES.setdefault(name, make)


def attempt(work: Callable[[], Any]) -> Callable[[], str]:
    """A function that runs `work` and says whether it was refused in one line or did no harm."""

    def judged() -> str:
        try:
            work()
        except (ValueError, FileNotFoundError) as error:
            return "refused" if "\n" not in str(error) and len(str(error)) > 20 else f"wrong: {error!r}"
        return "harmless"

    return judged


@case("checkpoint zip bomb")
def _zip_bomb() -> list[str]:
    with zipfile.ZipFile("evil.ckpt", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as part:
        for _ in range(256):
            part.write(bytes(2**22))
    return ["test", "--ckpt_path", "evil.ckpt", *CPU]


@case("checkpoint old pickle")
def _old_pickle() -> list[str]:
    Path("evil.ckpt").write_bytes(pickle.dumps(Bomb()))
    return ["test", "--ckpt_path", "evil.ckpt", *CPU]


@case("checkpoint sharded index")
def _sharded_index() -> list[str]:
    import torch

    Path("evil").mkdir()
    torch.save(torch.load(good() / "good.ckpt", weights_only=True), "evil/meta.pt")
    Path("evil/.metadata").write_bytes(pickle.dumps(Bomb()))
    return ["test", "--ckpt_path", "evil", *CPU]


@case("checkpoint sharded part")
def _sharded_part() -> list[str]:
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

    Path("evil").mkdir()
    torch.save(torch.load(good() / "good.ckpt", weights_only=True), "evil/meta.pt")
    torch.save(Bomb(), "evil/__0_0.distcp")
    where = _StorageInfo("__0_0.distcp", 0, Path("evil/__0_0.distcp").stat().st_size)
    index = Metadata({"lr": BytesStorageMetadata()}, None, {MetadataIndex("lr"): where})
    Path("evil/.metadata").write_bytes(pickle.dumps(index))
    return ["test", "--ckpt_path", "evil", *CPU]


@case("checkpoint removes")
def _removes() -> Callable[[], str]:
    import torch

    from lookupvit.checkpoints.atomic import AtomicCheckpointIO

    path = f"{Path.cwd()}/run/../victim"
    for folder in ({}, {"dirpath": f"{Path.cwd()}/run"}):
        state = {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path, **folder}
        torch.save({"callbacks": {"ModelCheckpoint": {**state, "best_k_models": {path: 0.0}}}}, "evil.ckpt")
        kept = AtomicCheckpointIO().load_checkpoint("evil.ckpt")["callbacks"]["ModelCheckpoint"]
        if ".." in repr(kept):
            return lambda k=kept: f"wrong: {k}"
    return lambda: "harmless"
