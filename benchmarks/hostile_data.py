"""More hostile files for `hostile.py`: weights, exported folders, shards, annotations, small files."""

import io
import json
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_files import CPU, Bomb, attempt, case, good

_ENDLESS = "[" * 100_000


# -- weights and exported folders --------------------------------------------------------------------------------------


def safetensors(name: str, header: bytes, length: int | None = None) -> None:
    """A safetensors file of this header."""

    @case(f"safetensors {name}")
    def make() -> Callable[[], str]:
        from lookupvit.weights.file import read_weights

        size = len(header) if length is None else length
        Path("evil.safetensors").write_bytes(struct.pack("<Q", size) + header + bytes(4))
        return attempt(lambda: read_weights("evil.safetensors"))


def _header(**about: str) -> bytes:
    return json.dumps({"__metadata__": about, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()


safetensors("huge header", b"{}", 2**62)
safetensors("nested header", b'{"a":' + _ENDLESS.encode())
safetensors("offsets", json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode())
safetensors("grid nested", _header(grid=_ENDLESS, num_heads="1"))
safetensors("grid of texts", _header(grid='["pipe:touch ran"]', num_heads="1"))
safetensors("grid huge", _header(grid="[1000000000, 1000000000]", num_heads="1"))


def folder(name: str, file: str, change: Callable[[dict], Any]) -> None:
    """A folder of `save_pretrained` with one file changed."""

    @case(f"folder {name}")
    def make() -> Callable[[], str]:
        from lookupvit import load_model

        shutil.copytree(good() / "hub", "hub")
        content = json.loads((Path("hub") / file).read_text())
        text = change(content)
        (Path("hub") / file).write_text(text if isinstance(text, str) else json.dumps(content))
        return attempt(lambda: load_model("hub"))


folder("class", "config.json", lambda c: c.update(architectures=["evil.Data"]))
folder("class of a list", "config.json", lambda c: c.update(architectures=[["LookupViT"]]))
folder("depth", "config.json", lambda c: c.update(depth=10**9))
folder("width", "config.json", lambda c: c.update(embed_dim=10**6, num_heads=1))
folder("inner class", "config.json", lambda c: c.update(reuse={"class_path": "evil.Data"}))
folder("texts", "config.json", lambda c: c.update(depth="pipe:touch ran"))
folder("names", "config.json", lambda c: c.update(id2label=["\x1b[2J"]))
folder("nested", "config.json", lambda c: _ENDLESS)
folder("processor", "preprocessor_config.json", lambda c: c.update(image_mean="${oc.env:SECRET}"))
folder("processor class", "preprocessor_config.json", lambda c: c.update(image_processor_type="evil.Data"))
folder("processor nested", "preprocessor_config.json", lambda c: _ENDLESS)


# -- shards ------------------------------------------------------------------------------------------------------------


def info(name: str, file: Any, root: str = "pipe:cat shards/{}", length: int = 1, text: str | None = None) -> None:
    """An `_info.json` that names a file."""

    @case(f"_info.json {name}")
    def make() -> list[str]:
        Path("shards").mkdir()
        splits = {"val": {"filenames": [file], "shard_lengths": [length]}}
        Path("shards/_info.json").write_text(text or json.dumps({"splits": splits, "classes": ["a", "b", "c"]}))
        data = ["--data", "WebDatasetDataModule", "--data.root", root, "--data.img_size", "32"]
        data += ["--data.num_workers", "0"]
        return ["test", "--ckpt_path", str(good() / "good.ckpt"), *data, *CPU]


for _name, _file in {
    "semicolon": "x; touch ran", "substitution": "$(touch ran)", "backticks": "`touch ran`", "quote": "'; touch ran; '",
    "bar": "x|touch ran", "new line": "x\ntouch ran", "redirect": "x>ran", "option": "-f", "up": "../victim",
    "environment": "$SECRET", "list": ["x"],
}.items():  # fmt: skip
    info(_name, _file)
for _name, _file in {"absolute": "/etc/passwd", "up": "../../victim", "pipe": "pipe:touch ran", "home": "~/x",
                     "http": "http://127.0.0.1:9/x.tar", "null": "a\0b", "inner up": "a/../../victim",
                     "drive": "C:\\x", "escape": "\x1b[2J"}.items():  # fmt: skip
    info(f"local {_name}", _file, "shards")
info("huge shard", "x.tar", "shards", 10**12)
info("nested", "x", "shards", text=_ENDLESS)


def shard(name: str, fill: Callable[[tarfile.TarFile], None], mode: str = "w") -> None:
    """A shard of hostile members, read as `fit` reads it."""

    @case(f"shard {name}")
    def make() -> Callable[[], str]:
        Path("shards").mkdir()
        with tarfile.open("shards/x.tar", mode) as tar:
            fill(tar)
        splits = {"val": {"filenames": ["x.tar"], "shard_lengths": [1]}}
        Path("shards/_info.json").write_text(json.dumps({"splits": splits, "classes": ["a", "b", "c"]}))
        from datamodules import WebDatasetDataModule

        data = WebDatasetDataModule("shards", img_size=32, batch_size=1, num_workers=0)
        return attempt(lambda: list(data.val_dataloader()))


def member(tar: tarfile.TarFile, name: str, content: bytes, **given: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in given.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(content))


def _sample(prefix: str) -> Callable[[tarfile.TarFile], None]:
    def fill(tar: tarfile.TarFile) -> None:
        picture = next((good() / "tree").rglob("*.JPEG")).read_bytes()
        member(tar, f"{prefix}.jpg", picture)
        member(tar, f"{prefix}.cls", b"1")

    return fill


def _bomb(tar: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("a.jpg")
    entry.size = 2**28 + 1
    with open("/dev/zero", "rb") as zeros:
        tar.addfile(entry, zeros)


shard("absolute name", _sample("/tmp/../victim"))
shard("name up", _sample("../../victim"))
shard("packed bomb", _bomb, "w:gz")
shard("symbolic link", lambda tar: member(tar, "a.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
shard("device", lambda tar: member(tar, "a.jpg", b"", type=tarfile.CHRTYPE))
shard("pickle", lambda tar: (member(tar, "a.pkl", pickle.dumps(Bomb())), member(tar, "a.cls", b"0")))
shard("pyd", lambda tar: (member(tar, "a.pyd", pickle.dumps(Bomb())), member(tar, "a.pth", pickle.dumps(Bomb()))))
shard("huge class", lambda tar: (_sample("a")(tar), member(tar, "b.cls", b"9" * 5000)))


# -- small files -------------------------------------------------------------------------------------------------------


def small(name: str, write: Callable[[], Any], read: Callable[[], Any]) -> None:
    """A file, and the function that reads it."""

    @case(f"file {name}")
    def make() -> Callable[[], str]:
        write()
        return attempt(read)


def _coco(name: Any) -> Callable[[], None]:
    listed = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "id": 1, "caption": "a"}]}
    return lambda: Path("captions_train2017.json").write_text(json.dumps(listed))


def _captions() -> None:
    from datamodules.captions.index import read_split

    read_split(Path(), "captions_train2017.json", "train")


def _array(header: str) -> Callable[[], None]:
    text = header.ljust(118).encode() + b"\n"
    return lambda: Path("x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64))


def _features() -> None:
    from lookupvit.tasks.feature_cache import Features

    Features("x.npy")[0]


def _cascade() -> None:
    from lookupvit.analysis.cascade.cascade import Cascade

    Cascade.load("x.json")


def _kept() -> None:
    from lookupvit.cli.runs import _trained

    _trained("x", Path("run"))


def _tokenizer() -> None:
    from datamodules.captions.tokenizer import Tokenizer

    Tokenizer.from_file("x.model")


def _done(**given: Any) -> Callable[[], None]:
    def write() -> None:
        Path("run").mkdir()
        Path("run/done.json").write_text(json.dumps({"settings": {}, "epochs": 1, "steps": 1, **given}))

    return write


for _name, _file in {
    "absolute": "/etc/passwd",
    "up": "../victim",
    "address": "http://127.0.0.1:9/x",
    "number": 7,
}.items():
    small(f"captions {_name}", _coco(_file), _captions)
small("captions nested", lambda: Path("captions_train2017.json").write_text(_ENDLESS), _captions)
small("array of objects", _array("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), _features)
small("array of code", _array("__import__('os').system('touch ran')"), _features)
small("array of 10^15", _array("{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,), }"), _features)
small("array pickle", lambda: Path("x.npy").write_bytes(pickle.dumps(Bomb())), _features)
small("cascade nested", lambda: Path("x.json").write_text(_ENDLESS), _cascade)
small(
    "cascade class",
    lambda: Path("x.json").write_text('{"sizes": ["1x1"], "thresholds": [], "class_path": "evil"}'),
    _cascade,
)
small("kept result elsewhere", _done(checkpoint="../victim"), _kept)
small("kept result absolute", _done(checkpoint="/etc/passwd"), _kept)
small("kept result of texts", _done(checkpoint="x.ckpt", epochs="\x1b[2J"), _kept)
small("tokenizer pickle", lambda: Path("x.model").write_bytes(pickle.dumps(Bomb())), _tokenizer)
small("tokenizer lengths", lambda: Path("x.model").write_bytes(b"\x0a\xff\xff\xff\xff\x0f" * 99), _tokenizer)


@case("yaml tag")
def _yaml_tag() -> list[str]:
    Path("evil.yaml").write_text("model: !!python/object/apply:os.system ['touch ran']\n")
    return ["fit", "--config", "evil.yaml", *CPU]


@case("yaml name")
def _yaml_name() -> list[str]:
    Path("evil.yaml").write_text("data: !!python/name:os.system\n")
    return ["fit", "--config", "evil.yaml", *CPU]
