"""What a classifier starts from, which of its layers learn, and what a teacher adds to the loss."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from lookupvit import LookupViT, ViT, create_model, load_model, save_weights
from lookupvit.cli.main import main
from lookupvit.tasks import ClassificationTask, VideoTask

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
LOOKUP = {"name": "lookupvit_tiny_patch16_224", "num_classes": 3, "img_size": 32, "compressed_size": (2, 2)}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def make(**options) -> ClassificationTask:
    seed_everything(0, verbose=False)
    return ClassificationTask(**{**LOOKUP, "args": dict(TINY), "lr": 1e-2, **options})


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(3, (8,), generator=generator)), batch_size=4)


def fit(task: ClassificationTask, path: Path, **options) -> Trainer:
    trainer = Trainer(accelerator="cpu", default_root_dir=path, **{**QUIET, "max_steps": 2, **options})
    trainer.fit(task, loader())
    return trainer


def save_vit(path: Path, **options) -> ViT:
    torch.manual_seed(5)
    vit = ViT(img_size=32, num_classes=3, **TINY, **options).eval()
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_weights(vit, path)
    return vit


def test_training_starts_from_a_vit_and_the_checkpoint_forgets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    vit = save_vit(tmp_path / "vit.ckpt")
    task = make(init_from=str(tmp_path / "vit.ckpt"), lr=1e-12)
    trainer = fit(task, tmp_path, max_steps=1)
    assert "of the ViT's attention" in capsys.readouterr().out
    torch.testing.assert_close(task.model.blocks[1].mlp.fc2.weight, vit.vit.blocks[1].mlp.fc2.weight)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "vit.ckpt").unlink()
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["init_from"] is None and saved["name"] == LOOKUP["name"]
    again = ClassificationTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    images = loader().dataset.tensors[0]
    torch.testing.assert_close(again.eval()(images), task.eval()(images))
    torch.testing.assert_close(load_model(tmp_path / "x.ckpt")(images), task(images))


@pytest.mark.parametrize("img_size", [48, (32, 64)])
def test_a_checkpoint_trains_on_and_is_scored_at_another_image_size(img_size, tmp_path: Path) -> None:
    task = make()
    fit(task, tmp_path).save_checkpoint(tmp_path / "32.ckpt")
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    images = torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(2))
    data = DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 0])), batch_size=4)
    other = make(img_size=img_size)
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    trainer.test(other, data, ckpt_path=tmp_path / "32.ckpt", weights_only=True, verbose=False)
    torch.testing.assert_close(other.eval()(images), task.eval()(images), rtol=1e-4, atol=1e-5)
    tuned = make(img_size=img_size, init_from=str(tmp_path / "32.ckpt"))
    Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=1, **QUIET).fit(tuned, data)
    assert tuned.model.embed.grid_size == (height // 8, width // 8)


@pytest.mark.parametrize(("freeze", "learns"), [(0, 4), (1, 3), (3, 1), ("backbone", "heads")])
def test_frozen_layers_stay_as_they_are(freeze, learns, tmp_path: Path) -> None:
    task = make(freeze=freeze)
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    fit(task, tmp_path)
    for name, p in task.model.named_parameters():
        free = name.startswith("heads.") if learns == "heads" else task.model.layer_id(name) >= 4 - learns
        assert torch.equal(p, before[name]) == (not free), name


def test_freezing_everything_is_an_error() -> None:
    with pytest.raises(ValueError, match="freeze 4 leaves nothing to learn of 4 layers"):
        make(freeze=4)
    with pytest.raises(ValueError, match="freeze 'all' is neither a number of layers"):
        make(freeze="all")


def test_the_teachers_share_of_the_loss_by_hand(tmp_path: Path) -> None:
    vit = save_vit(tmp_path / "vit.ckpt")
    teacher = {"teacher": str(tmp_path / "vit.ckpt"), "teacher_weight": 0.3, "teacher_feature_weight": 2.0}
    task = make(**teacher)
    task.setup("fit")
    images, targets = next(iter(loader()))
    tokens = task.model.forward_features(images)
    want = []
    with torch.no_grad():
        theirs = vit(images).softmax(1)
        pooled = vit.forward_features(images).lookup.mean(1)
    mine = tokens.compressed.mean(1)
    cosine = (mine * pooled).sum(1) / mine.norm(dim=1) / pooled.norm(dim=1)
    for logits in task.model.forward_logits(tokens).values():
        taught = -(theirs * logits.log_softmax(1)).sum(1).mean()
        want.append(0.7 * F.cross_entropy(logits, targets) + 0.3 * taught + 2 * (1 - cosine).mean())
    torch.testing.assert_close(task.training_step((images, targets), 0), (want[0] + want[1]) / 2)
    assert not any("teacher" in name for name in task.state_dict())
    fit(make(**teacher, compressed_sizes=[[1, 1], [2, 2]], sandwich=True), tmp_path)


def test_teachers_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit.ckpt")
    wide = ViT(img_size=32, num_classes=3, **{**TINY, "embed_dim": 48})
    save_weights(wide, tmp_path / "wide.ckpt")
    for options, message in (
        ({"teacher": "nowhere"}, "'nowhere' is neither a checkpoint of lookupvit fit nor a model of timm's"),
        ({"teacher": str(tmp_path / "vit.ckpt"), "num_classes": 4}, "has 3 classes, the data 4: fine-tune it"),
        ({"teacher": str(tmp_path / "wide.ckpt"), "teacher_feature_weight": 1.0}, "has width 48, the model 32"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            make(**options).setup("fit")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"teacher_weight 2 is not in \[0, 1\]"):
        make(teacher_weight=2)


def test_load_model_builds_what_a_file_or_folder_holds(tmp_path: Path) -> None:
    images = loader().dataset.tensors[0]
    model = LookupViT(img_size=32, num_classes=3, compressed_size=(2, 2), **TINY).eval()
    model.class_names = ["a", "b", "c"]
    model.save_pretrained(tmp_path / "folder")
    save_weights(model, tmp_path / "x.ckpt")
    save_weights(model, tmp_path / "x.safetensors")
    for source in ("folder", "x.ckpt", "x.safetensors"):
        again = load_model(tmp_path / source)
        torch.testing.assert_close(again(images), model(images))
        assert again.class_names == ["a", "b", "c"] and not again.training
        assert load_model(tmp_path / source, img_size=48).embed.grid_size == (6, 6)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="does not say which model it holds: build one with create_model"):
        load_model(tmp_path / "bare.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no folder of save_pretrained"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize("name", ["lookupvivit_tiny_factorised_patch8x2_32", "vivit_tiny_joint_patch8x2_32"])
def test_video_models_as_files_and_from_image_weights(name: str, tmp_path: Path) -> None:
    small = {"embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3, "num_frames": 4, "img_size": 16}
    model = create_model(name, **small).eval()
    clip = torch.randn(1, 3, 4, 16, 16)
    model.save_pretrained(tmp_path / "folder")
    save_weights(model, tmp_path / "x.ckpt")
    for source in ("folder", "x.ckpt"):
        torch.testing.assert_close(load_model(tmp_path / source)(clip), model(clip))
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert saved["task"] == "lookupvit.tasks.video.VideoTask"
    task = VideoTask(**saved["hyper_parameters"])
    task.load_state_dict(saved["state_dict"])
    torch.testing.assert_close(task.model.eval()(clip), model(clip))
    options = {"img_size": 32, "patch_size": 8, "num_classes": 3, "embed_dim": 12, "depth": 2, "num_heads": 2}
    image = LookupViT(**options, compressed_size=2) if name.startswith("lookup") else ViT(**options)
    save_weights(image, tmp_path / "image.ckpt")
    start = VideoTask(**{**saved["hyper_parameters"], "init_from": str(tmp_path / "image.ckpt"), "teacher": None})
    start.setup("fit")
    with pytest.raises(ValueError, match="a teacher works for image models only"):
        VideoTask(**saved["hyper_parameters"], teacher=str(tmp_path / "x.ckpt")).setup("fit")


def test_the_command_line_resumes_without_the_first_weights(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_vit(tmp_path / "vit.ckpt")
    argv = [
        "fit",
        "--trainer.accelerator",
        "cpu",
        "--trainer.logger",
        "false",
        "--trainer.enable_progress_bar",
        "false",
    ]
    argv += ["--data", "ImageFolderDataModule", "--data.root", str(image_tree), "--data.img_size", "32"]
    argv += ["--data.batch_size", "4", "--data.num_workers", "0", "--output_dir", str(tmp_path / "out"), "--name", "a"]
    argv += ["--model", "ClassificationTask", "--model.name", LOOKUP["name"], "--model.compressed_size", "[2,2]"]
    argv += ["--model.args", "{embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}"]
    start = ["--model.init_from", str(tmp_path / "vit.ckpt"), "--model.freeze", "1"]
    assert main([*argv, *start, "--trainer.max_epochs", "1"]) == 0
    assert "times 0" in capsys.readouterr().out
    (tmp_path / "vit.ckpt").unlink()
    assert main([*argv, *start, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    assert "weights from" not in capsys.readouterr().out
    assert main([*argv, *start, "--trainer.max_epochs", "1"]) == 2
    assert "is neither a file of weights nor a model of timm's" in capsys.readouterr().err
