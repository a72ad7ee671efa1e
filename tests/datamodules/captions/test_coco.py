"""Captioned images in the layouts of COCO, Karpathy and Flickr; tiny files written here."""

import json
from pathlib import Path

import pytest
import torch
from conftest import write_image

from datamodules.captions.coco import COCOCaptionsDataModule
from datamodules.captions.index import read_captions
from datamodules.captions.tokenizer import train_tokenizer
from lookupvit.cli.check_data import check_data

TEXTS = ("a red dog runs over the grass", "two cats\nsleep  on a sofa ", "a man rides a horse", "an old boat")


def texts_of(number: int) -> list[str]:
    return [f"{TEXTS[(number + i) % 4]}, picture {number}" for i in range(2 + number % 2)]


def write_coco(root: Path, year: int = 2017, train: int = 5, val: int = 3) -> Path:
    for split, numbers in (("train", range(1, train + 1)), ("val", range(50, 50 + val))):
        start = f"COCO_{split}2014_" if year == 2014 else ""
        images = [{"id": i, "file_name": f"{start}{i:012d}.jpg", "height": 40, "width": 50} for i in numbers]
        for image in images:
            write_image(root / f"{split}{year}" / image["file_name"], 40, 50, image["id"])
        pairs = [(i, text) for i in numbers for text in texts_of(i)]
        annotations = [{"image_id": i, "id": k, "caption": text} for k, (i, text) in enumerate(pairs)]
        write_json(root / f"annotations/captions_{split}{year}.json", {"images": images, "annotations": annotations})
    return root


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def karpathy(root: Path, file: str, folders: bool) -> Path:
    """Two training images, one of restval, one for each other split; Flickr's have no folder and no COCO number."""
    images = []
    for number, split in enumerate(("train", "val", "restval", "test", "train")):
        folder = "val2014" if split != "train" else "train2014"
        name = f"COCO_{folder}_{number + 70:012d}.jpg" if folders else f"{number}00_ab.jpg"
        write_image(root / (folder if folders else "images") / name, 40, 50, number)
        sentences = [{"raw": text, "tokens": [], "imgid": number, "sentid": 0} for text in texts_of(number)]
        image = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
        images.append({**image, "filepath": folder, "cocoid": number + 70} if folders else image)
    write_json(root / file, {"images": images, "dataset": "x"})
    return root


def data(root: Path, **options) -> COCOCaptionsDataModule:
    given = {"img_size": 32, "batch_size": 2, "num_workers": 0, "tokenizer_vocab_size": 60}
    return COCOCaptionsDataModule(str(root), **{**given, **options})


@pytest.mark.parametrize("year", [2014, 2017])
def test_batches_of_coco(tmp_path: Path, year: int) -> None:
    module = data(write_coco(tmp_path, year), drop_last=False)
    seen = 0
    for images, tokens, lengths in module.train_dataloader():
        assert images.shape[1:] == (3, 32, 32) and images.dtype == torch.float32
        assert tokens.shape == (len(images), lengths.max())
        for row, length in zip(tokens, lengths, strict=True):
            assert row[0] == module.tokenizer.bos_id and row[length - 1] == module.tokenizer.eos_id
            assert (row[length:] == module.tokenizer.pad_id).all()
            known = {" ".join(text.split()) for i in range(1, 6) for text in texts_of(i)}
            assert module.tokenizer.decode(row) in known
        seen += len(images)
    assert seen == 5
    batches = list(module.val_dataloader())
    assert torch.cat([ids for _, ids, _ in batches]).tolist() == [50, 51, 52]
    assert [captions for *_, rows in batches for captions in rows] == [
        [" ".join(text.split()) for text in texts_of(i)] for i in (50, 51, 52)
    ]
    assert module.test_dataloader().dataset is module.val_dataloader().dataset


@pytest.mark.parametrize("file", ["dataset_coco.json", "annotations/dataset_coco.json", "dataset_flickr8k.json"])
def test_karpathys_splits(tmp_path: Path, file: str) -> None:
    folders = "coco" in file
    module = data(karpathy(tmp_path, file, folders))
    module.setup()
    ids = {name: module.dataset(name).ids.tolist() for name in ("train", "val", "test")}
    plus = 70 if folders else 0
    assert ids == {"train": [plus, plus + 2, plus + 4], "val": [plus + 1], "test": [plus + 3]}
    if folders:  # the images of restval lie in the validation folder
        assert "val2014" in module.dataset("train").images.samples[1][0]


def test_one_caption_at_random_and_every_one_in_time(tmp_path: Path) -> None:
    module = data(write_coco(tmp_path, train=2))
    loader = module.train_dataloader()
    drawn = {module.tokenizer.decode(row) for _ in range(20) for _, tokens, _ in loader for row in tokens}
    assert drawn == {" ".join(text.split()) for i in (1, 2) for text in texts_of(i)}


def test_the_order_and_the_captions_follow_from_the_seed(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    epochs = [[tokens.tolist() for _, tokens, _ in data(root).train_dataloader()] for _ in range(2)]
    assert epochs[0] == epochs[1]


def test_a_part_is_held_out(tmp_path: Path) -> None:
    module = data(write_coco(tmp_path), val_fraction=0.4)
    module.setup("fit")
    train, val = (module.dataset(name).ids.tolist() for name in ("train", "val"))
    assert sorted(train + val) == [1, 2, 3, 4, 5] and len(val) == 2


def test_long_captions_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = data(write_coco(tmp_path), context_length=6)
    with caplog.at_level("INFO"):
        batches = list(module.train_dataloader())
    assert "captions are longer than data.context_length=6 tokens and are cut; the longest has" in caplog.text
    assert all(tokens.shape[1] == 6 and (tokens[:, -1] == module.tokenizer.eos_id).all() for _, tokens, _ in batches)


def test_features_take_the_place_of_images(tmp_path: Path) -> None:
    module = data(write_coco(tmp_path), augment=False)
    index = torch.cat([places for _, places in module.encoding_dataloader()])
    assert index.tolist() == [0, 1, 2, 3, 4]
    key = module.encoding_key
    module.use_features([torch.full((4, 8), float(i)) for i in range(5)])
    features, _, _ = next(iter(module.train_dataloader()))
    assert features.shape == (2, 4, 8)
    assert key == data(tmp_path, augment=False).encoding_key != data(tmp_path, augment=False, img_size=16).encoding_key
    for ask in (lambda: data(tmp_path).encoding_key, lambda: data(tmp_path).use_features([])):
        with pytest.raises(ValueError, match="only without augmentation"):
            ask()


def test_prediction_numbers_and_order(tmp_path: Path) -> None:
    module = data(write_coco(tmp_path), predict_path=str(tmp_path / "val2017"))
    (images, ids, paths), *_ = module.predict_dataloader()
    assert images.shape == (2, 3, 32, 32) and ids.tolist() == [50, 51]
    assert [Path(path).name for path in paths] == [f"{i:012d}.jpg" for i in (50, 51)]
    for name in "ab":
        write_image(tmp_path / "mine" / f"{name}.png", 20, 30, 1)
    module = data(tmp_path, predict_path=str(tmp_path / "mine" / "*.png"))
    assert next(iter(module.predict_dataloader()))[1].tolist() == [0, 1]


def drop_image(root: Path) -> None:
    (root / "train2017/000000000002.jpg").unlink()


def change(root: Path, how) -> None:
    file = root / "annotations/captions_train2017.json"
    content = json.loads(file.read_text())
    how(content)
    file.write_text(json.dumps(content))


def no_captions(content: dict) -> None:
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] != 3]


def stray(content: dict) -> None:
    content["annotations"].append({"image_id": 999, "id": 1, "caption": "a"})


def nameless(content: dict) -> None:
    del content["images"][0]["file_name"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_image, r"1 of the 5 images of .*captions_train2017.json' are missing, such as .*000000000002.jpg"),
        (lambda root: change(root, no_captions), r"1 of 5 images in .* have no caption, such as 3"),
        (lambda root: change(root, stray), "has a caption of image 999, which is not among its images"),
        (lambda root: change(root, nameless), "is no caption file: 'file_name' is missing"),
        (lambda root: (root / "annotations/captions_train2017.json").write_text('{"images": ['), "is not valid JSON"),
        (lambda root: (root / "annotations/captions_train2017.json").write_text("[]"), "is no caption file"),
        (lambda root: (root / "annotations/captions_train2017.json").unlink(), "no annotations .*captions_train2017"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, damage, message: str) -> None:
    damage(write_coco(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data(tmp_path).setup("fit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": "2018"}, "unknown data.annotations '2018'"),
        ({"val_split": "nothing"}, "no annotations .*captions_nothing2017.json"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"context_length": 2}, "data.context_length must be at least 3"),
        ({"val_fraction": 1.0}, "data.val_fraction must lie in"),
        ({"tokenizer_type": "word"}, "unknown data.tokenizer_type 'word'"),
        ({"tokenizer": "/no/such.model"}, "no tokenizer '/no/such.model'"),
        ({"batch_size": 9}, "do not fill one batch of 9"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict, message: str) -> None:
    write_coco(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module = data(tmp_path, **options)
        module.setup("fit")
        module.train_dataloader()


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected annotations"):
        data(tmp_path).setup("fit")


def test_corrupt_images_are_an_error_or_left_out(tmp_path: Path) -> None:
    (write_coco(tmp_path) / "val2017/000000000051.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="000000000051"):
        list(data(tmp_path).val_dataloader())
    with pytest.warns(UserWarning, match="000000000051"):
        batches = list(data(tmp_path, skip_corrupt=True, val_batch_size=3).val_dataloader())
    assert batches[0][1].tolist() == [50, 52] and len(batches[0][2]) == 2


def test_check_data_finds_the_corrupt_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_coco(tmp_path / "coco")
    (root / "val2017/000000000051.jpg").write_bytes(b"no picture")
    assert check_data([str(root), "--output", str(tmp_path / "bad.txt")]) == 1
    assert "8 files, 1 bad" in capsys.readouterr().out
    assert "000000000051.jpg" in (tmp_path / "bad.txt").read_text()


def test_the_tokenizer_beside_the_data_is_taken(tmp_path: Path) -> None:
    own = train_tokenizer(["a few words of its own", *TEXTS], 50)
    own.save(write_coco(tmp_path) / "tokenizer.model")
    assert data(tmp_path).tokenizer == own
    module = data(tmp_path, tokenizer=str(tmp_path / "tokenizer.model"))
    with pytest.raises(ValueError, match="is not that of the checkpoint"):
        module.tokenizer = train_tokenizer(TEXTS, 45)


def test_captions_of_files_alone(tmp_path: Path) -> None:
    write_coco(tmp_path / "a")
    assert len(read_captions(tmp_path / "a/annotations/captions_train2017.json")) == 2 + 2 + 3 + 3 + 3
    (tmp_path / "some.txt").write_text("a dog\n\na cat\n")
    assert read_captions(tmp_path / "some.txt") == ["a dog", "a cat"]
