"""The captioning task on tiny scenes: what learns, what stays, what a checkpoint carries, what mistakes say."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules.captions.tokenizer import Tokenizer, train_tokenizer
from datamodules.demos.scene_language import check_caption
from datamodules.demos.scenes import ScenesDataModule, load_scenes, render_scenes
from lookupvit import create_model, save_weights
from lookupvit.cli.main import main
from lookupvit.tasks import CaptioningTask, ClassificationTask

warnings.filterwarnings("ignore", module="lightning")
NAME = "lookupvit_tiny_patch4_32"
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
TEXT = {"depth": 1, "num_heads": 2, "context_length": 32}
SCENES = {"train_images": 12, "val_images": 4, "size": 32}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    render_scenes(root, **SCENES)
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint as `lookupvit fit` writes one, of random weights."""
    torch.manual_seed(5)
    own = ClassificationTask(NAME, num_classes=3, img_size=32, compressed_size=(2, 2), args=TINY)
    path = tmp_path_factory.mktemp("classifier") / "classifier.ckpt"
    torch.save({"state_dict": own.state_dict(), "hyper_parameters": dict(own.hparams)}, path)
    return str(path)


def data(scenes: Path, **options) -> ScenesDataModule:
    return ScenesDataModule(str(scenes), **SCENES, **{"img_size": 32, "batch_size": 4, "num_workers": 0, **options})


def task(**options) -> CaptioningTask:
    given = {"img_size": 32, "compressed_size": (2, 2), "args": TINY, "decoder": TEXT, "freeze_encoder": False}
    given |= {"generation": {"beams": 2, "max_length": 8}, "val_generation": {"method": "greedy", "max_length": 8}}
    return CaptioningTask(**{"name": NAME, **given, **options})


def fit(model: CaptioningTask, module: ScenesDataModule, **options) -> Trainer:
    seed_everything(0)
    own = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(**{"accelerator": "cpu", "enable_model_summary": False, **own, **options})
    trainer.fit(model, module)
    return trainer


def encoder_of(model: CaptioningTask) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.model.encoder.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": "both"},
        {"memory": "lookup"},
        {"compressed_size": None, "compressed_sizes": [[2, 2], [3, 3]]},
        {"name": "vit_tiny_patch4_32", "compressed_size": None},
        {"decoder": {**TEXT, "tied": False}},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(scenes: Path, options: dict) -> None:
    model, module = task(**options), data(scenes)
    model.use_tokenizer(module.tokenizer)
    images, tokens, lengths = next(iter(module.train_dataloader()))
    model.loss(model.memory(images), tokens, lengths).backward()
    assert [name for name, p in model.model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_frozen_encoder_stays_bit_identical(scenes: Path, classifier: str) -> None:
    model = task(freeze_encoder=True, encoder_ckpt=classifier)
    fit(model, data(scenes), max_steps=3, limit_val_batches=1)
    saved = torch.load(classifier, weights_only=True)["state_dict"]
    now = encoder_of(model)
    assert now and all(torch.equal(value, saved[f"model.{name}"]) for name, value in now.items())
    assert not model.train().model.encoder.training
    assert {group["name"].split("_")[0] for group in model.optimizers().param_groups} == {"decoder"}


def test_padding_does_not_count() -> None:
    model = task(label_smoothing=0.0)
    model.use_tokenizer(train_tokenizer(["a red dog", "two cats sleep on a sofa"] * 3, 40))
    model.eval()
    tokens, lengths = model.tokenizer.batch(["a red dog", "two cats sleep"])
    memory = model.memory(torch.randn(2, 3, 32, 32))
    both = model.loss(memory, tokens, lengths)
    one = [
        model.loss(memory[i : i + 1], tokens[i : i + 1, :n], lengths[i : i + 1]) * (n - 1)
        for i, n in enumerate(lengths.tolist())
    ]
    torch.testing.assert_close(both, sum(one) / (lengths - 1).sum())


def test_cached_features_train_the_same_decoder(scenes: Path, classifier: str, tmp_path: Path) -> None:
    found = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        seed_everything(1)
        model = task(freeze_encoder=True, encoder_ckpt=classifier, feature_cache=cache)
        fit(model, data(scenes, augment=False), max_steps=3, limit_val_batches=0)
        found.append({name: value.clone() for name, value in model.model.decoder.state_dict().items()})
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, msg=name)
    assert len(list((tmp_path / "cache").glob("features_*.npy"))) == 1


def test_a_checkpoint_alone_captions(scenes: Path, tmp_path: Path) -> None:
    model = task()
    trainer = fit(model, data(scenes), limit_val_batches=1)
    assert {"val/cider", "val/bleu4", "val/rouge_l", "val/loss"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = CaptioningTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).eval()
    images = torch.randn(3, 3, 32, 32)
    assert again.caption(images) == model.eval().caption(images)
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert Tokenizer.from_base64(saved["tokenizer"]) == again.tokenizer
    (tmp_path / "other.model").write_bytes(train_tokenizer(["something else"] * 3).proto)
    with pytest.raises(ValueError, match="is not that of the checkpoint") as error:
        CaptioningTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True, vocab_size=None)
        data(scenes, tokenizer=str(tmp_path / "other.model")).tokenizer = again.tokenizer
    assert "\n" not in str(error.value)


def test_through_the_command_line(scenes: Path, classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = f"{{name: {NAME}, compressed_size: [2, 2], encoder_ckpt: {classifier}, args: {json.dumps(TINY)}, "
    model += f"decoder: {json.dumps(TEXT)}, generation: {{beams: 2, num_return: 2, max_length: 6}}}}"
    size = {f"--data.{name}": str(value) for name, value in SCENES.items()}
    options = [part for pair in size.items() for part in pair]
    common = ["--output_dir", str(tmp_path / "out"), "--trainer.accelerator", "cpu", "--name", "cap"]
    monitor = Path(__file__).parents[2] / "configs/base/checkpointing_cider.yaml"
    start = ["--config", str(monitor), "--model", "CaptioningTask", "--model.init_args", model]
    start += ["--data", "ScenesDataModule", *options]
    start += ["--data.root", str(scenes), "--data.img_size", "32", "--data.batch_size", "4", "--data.num_workers", "0"]
    assert main(["fit", *start, *common, "--trainer.max_epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "decoder reads" in printed and "val/cider" in printed and "M (frozen)" in printed
    checkpoint = next((tmp_path / "out").rglob("last.ckpt"))
    assert main(["test", "--ckpt_path", str(checkpoint), *common]) == 0
    printed = capsys.readouterr().out
    assert "test/cider" in printed and "test/true_captions" in printed
    predict = ["predict", "--ckpt_path", str(checkpoint), *common, "--data.predict_path", str(scenes / "val2017")]
    assert main([*predict, "--data.root", str(tmp_path / "nothing")]) == 0
    assert not (tmp_path / "nothing").exists()  # nothing is rendered to caption other images
    written = next((tmp_path / "out").rglob("captions.json"))
    results = json.loads(written.read_text())
    assert [sorted(result) for result in results] == [["caption", "image_id"]] * 4
    assert [result["image_id"] for result in results] == [13, 14, 15, 16]
    alone = CaptioningTask.load_from_checkpoint(checkpoint, weights_only=True).eval()
    assert len(alone.caption(torch.randn(2, 3, 32, 32))) == 2
    lines = written.with_suffix(".txt").read_text().splitlines()
    assert len(lines) == 12 and lines[0].endswith("000000000013.jpg")


def test_scenes_of_two_objects(tmp_path: Path) -> None:
    render_scenes(tmp_path / "pairs", train_images=12, val_images=1, size=32, max_objects=2)
    assert {len(scene["objects"]) for scene in load_scenes(tmp_path / "pairs", "train").values()} == {2}
    render_scenes(tmp_path / "all", train_images=12, val_images=1, size=32)
    assert {len(scene["objects"]) for scene in load_scenes(tmp_path / "all", "train").values()} == {2, 3, 4}
    said = json.loads((tmp_path / "all" / "scenes.json").read_text())
    assert not {"max_objects", "wordings"} & said.keys()  # as before there were such arguments
    render_scenes(tmp_path / "one", train_images=3, val_images=1, size=32, max_objects=2, wordings=1)
    captions = [
        json.loads((tmp_path / name / "annotations/captions_train2017.json").read_text())["annotations"]
        for name in ("one", "pairs")
    ]
    assert [c["caption"] for c in captions[0]] == [c["caption"] for c in captions[1][:15:5]]  # the same scenes
    with pytest.raises(ValueError, match="max_objects from 2 to 4 and wordings from 1 to 5"):
        render_scenes(tmp_path / "none", train_images=1, val_images=1, max_objects=1)


def test_every_caption_of_a_scene_is_true_of_it(scenes: Path) -> None:
    items = load_scenes(scenes)
    content = json.loads((scenes / "annotations/captions_val2017.json").read_text())
    assert [check_caption(a["caption"], items[a["image_id"]]) for a in content["annotations"]] == [""] * 20
    first = content["annotations"][0]
    other = {"red": "green", "green": "blue", "blue": "yellow", "yellow": "purple", "purple": "white", "white": "red"}
    colour = next(word for word in first["caption"].split() if word in other)
    wrong = first["caption"].replace(colour, other[colour], 1)
    assert check_caption(wrong, items[first["image_id"]]) != ""
    assert check_caption("a dog", items[first["image_id"]]).startswith("cannot be read from")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_encoder": True}, "the encoder is frozen and has random weights: give --model.encoder_ckpt"),
        ({"encoder_ckpt": "/none.ckpt"}, "'/none.ckpt' is neither a file of weights nor a model of timm's"),
        ({"decoder": {**TEXT, "context_length": 10}}, "up to 32 tokens, the decoder's context 10"),
        ({"vocab_size": 7}, "tokens, the decoder 7: give the tokenizer that it was trained with"),
    ],
)
def test_a_fit_that_cannot_begin_says_why(scenes: Path, options: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        fit(task(**options), data(scenes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 is not in \[0, 1\)"),
        ({"freeze_encoder": True, "encoder_lr": 1e-3}, "encoder_lr is set, but the encoder is frozen"),
        ({"feature_cache": "x"}, "feature_cache needs a frozen encoder"),
        ({"size_weights": [1.0]}, "size_weights needs compressed_sizes"),
        ({"compressed_sizes": [[9, 9]], "compressed_size": None}, "9"),
        ({"generation": {"max_length": 40}}, "do not fit a context of 32 tokens"),
        ({"metrics": ["spice"]}, "unknown caption metric 'spice'"),
        ({"decoder": {"depht": 2}}, "the decoder takes no argument 'depht'"),
        ({"memory": "all"}, "memory='all'"),
        ({"name": "vit_tiny_patch4_32"}, "has no compressed tokens"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        task(**options)
    assert "\n" not in str(error.value)


def test_weights_of_a_file_start_the_encoder(scenes: Path, tmp_path: Path) -> None:
    first = create_model(NAME, num_classes=3, img_size=32, compressed_size=(2, 2), **TINY)
    save_weights(first, tmp_path / "w.safetensors")
    model = task(freeze_encoder=True, encoder_ckpt=str(tmp_path / "w.safetensors"))
    fit(model, data(scenes), max_steps=1, limit_val_batches=0)
    given = first.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in encoder_of(model).items())
    # a test takes its weights from its checkpoint: the file is not read again
    model = task(encoder_ckpt=str(tmp_path / "w.safetensors"))
    before = {name: value.clone() for name, value in encoder_of(model).items()}
    model._trainer = SimpleNamespace(datamodule=None, is_global_zero=True)
    model.setup("test")
    assert all(torch.equal(value, before[name]) for name, value in encoder_of(model).items())


def test_another_classifier_does_not_fit(classifier: str, scenes: Path) -> None:
    with pytest.raises(ValueError, match="have 2 blocks, this model 3: build it with depth=2"):
        fit(task(encoder_ckpt=classifier, args={**TINY, "depth": 3}), data(scenes))
