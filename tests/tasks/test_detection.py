"""The detection task on rendered scenes: what it learns from, what it scores, and the way through the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.ops import box_iou

from datamodules import COCOInstancesDataModule
from datamodules.demos.dense_scenes import render_dense_scenes
from lookupvit import create_model, load_model
from lookupvit.analysis.cost import model_macs
from lookupvit.callbacks.answers.detections import coco_results
from lookupvit.callbacks.pictures import draw_objects, side_by_side
from lookupvit.cli.main import main
from lookupvit.metrics.detection import at_original_size
from lookupvit.tasks import DetectionTask
from lookupvit.tasks.sampling import draw_size

NAME = "lookupvit_tiny_patch4_32"
ARGS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
HEADS = {"out_channels": 16, "box_convs": 1, "box_dim": 16, "mask_convs": 1, "strides": [4, 8, 16]}
FEW = {"rpn_post_nms_top_n_train": 40, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}


def task(name=NAME, **options):
    torch.manual_seed(0)
    size = {} if "compressed_sizes" in options or not name.startswith("lookup") else {"compressed_size": (2, 2)}
    given = {"args": ARGS, "detector_args": {**FEW, "box_score_thresh": 0.0}, **HEADS, **size, **options}
    return DetectionTask(name, 3, 64, **given)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("detection") / "scenes"
    render_dense_scenes(root, train_images=4, val_images=3, size=64)
    return root


def data(root, **options):
    given = {"img_size": 64, "batch_size": 2, "val_batch_size": 2, "num_workers": 0, "scale": (0.8, 1.2), **options}
    return COCOInstancesDataModule(str(root), train_split="train", val_split="val", **given)


def batch_of(root, training=True):
    module = data(root)
    module.prepare_data()
    module.setup("fit")
    torch.manual_seed(0)
    return next(iter(module.train_dataloader() if training else module.val_dataloader()))


def fitted(model, root, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, enable_model_summary=False, **quiet, **options)
    trainer.fit(model, datamodule=data(root))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_training_reports_each_loss_and_validation_every_size(scenes):
    sizes = [[2, 2], [4, 4]]
    logged = fitted(task(compressed_sizes=sizes, pictures=0), scenes)
    losses = {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert {f"train/loss_{name}" for name in losses} <= set(logged)
    assert logged["train/loss"] == pytest.approx(sum(logged[f"train/loss_{name}"] for name in losses), rel=1e-5)
    for at in ("", "@2x2", "@4x4"):
        assert 0 <= logged[f"val/ap{at}"] <= logged[f"val/ap50{at}"] <= 1
        assert 0 <= logged[f"val/mask_ap{at}"] <= 1 and f"val/ar{at}" in logged
    assert logged["val/ap"] == logged["val/ap@4x4"]  # the largest is the main one
    assert logged["train/compressed_tokens"] in (4, 16)


def test_step_is_torchvisions_losses_at_the_drawn_size(scenes):
    model = task(compressed_sizes=[[1, 1], [2, 2], [3, 3]])
    batch = batch_of(scenes)
    assert [model.training_sizes(step) for step in range(5)] == [
        [draw_size([(1, 1), (2, 2), (3, 3)], None, 0, step)] for step in range(5)
    ]
    torch.manual_seed(1)
    loss = model.training_step(batch, 0)
    torch.manual_seed(1)
    (size,) = model.training_sizes(0)
    expected = sum(model.model(batch["images"], size, targets=batch["targets"]).values())
    torch.testing.assert_close(loss, expected)


def test_crowds_teach_nothing(scenes):
    model = task()
    batch = batch_of(scenes)
    with_crowd = {**batch, "targets": [dict(target) for target in batch["targets"]]}
    target = with_crowd["targets"][0]
    everything = {"boxes": torch.tensor([[0.0, 0.0, 60.0, 60.0]]), "labels": torch.tensor([3])}
    everything |= {"iscrowd": torch.tensor([1]), "masks": torch.ones(1, *target["masks"].shape[1:], dtype=torch.uint8)}
    for key, value in everything.items():
        target[key] = torch.cat([target[key], value])
    losses = []
    for one in (batch, with_crowd):
        torch.manual_seed(1)
        losses.append(model.training_step(one, 0))
    assert torch.equal(*losses)


def test_it_learns_two_images(scenes):
    model = task(compressed_size=(4, 4))
    batch = batch_of(scenes, training=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_target_at_the_size_of_the_file_is_the_files(scenes):
    files = data(scenes)
    larger = data(scenes, short_side=160, max_size=160)
    for module in (files, larger):
        module.prepare_data()
        module.setup("validate")
    for own, large in zip(files.dataset("val"), larger.dataset("val"), strict=True):
        assert large[0].shape == (3, 160, 160)
        target = at_original_size(large[1], large[0])
        assert torch.equal(target["masks"], own[1]["masks"])
        torch.testing.assert_close(target["boxes"], own[1]["boxes"])
        torch.testing.assert_close(target["area"], own[1]["area"])
    assert at_original_size(own[1], own[0]) is own[1]


def test_backbone_starts_from_a_classifier_and_learns_more_slowly(scenes, tmp_path):
    backbone = create_model(NAME, num_classes=5, img_size=48, **ARGS)
    hyper = {"name": NAME, "num_classes": 5, "img_size": 48, "args": ARGS}
    state = {f"model.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, tmp_path / "classifier.ckpt")
    model = task(init_from=str(tmp_path / "classifier.ckpt"), layer_decay=0.5, lr=1.0)
    before = {name: value.clone() for name, value in model.model.backbone.state_dict().items()}
    model.setup("fit")
    loaded = model.model.backbone.state_dict()
    assert torch.equal(loaded["blocks.1.mlp.fc1.weight"], backbone.state_dict()["blocks.1.mlp.fc1.weight"])
    assert not torch.equal(before["blocks.1.mlp.fc1.weight"], loaded["blocks.1.mlp.fc1.weight"])
    rates = {id(p): group["lr"] for group in model._parameter_groups() for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.model.named_parameters()}
    features = "net.backbone.features.backbone"
    assert by_name[f"{features}.embed.proj.weight"] == 0.125 and by_name[f"{features}.blocks.1.mlp.fc1.weight"] == 0.5
    assert by_name["net.backbone.pyramid.levels.0.0.weight"] == by_name["net.rpn.head.cls_logits.weight"] == 1


def test_compressed_grid_follows_the_image():
    model = task(compressed_size={"stride": 32}, pad="batch")
    assert model.evaluated == [None] and model.model.compressed_size == (2, 2)
    seen = []
    forward = model.model.backbone.forward_tokens
    model.model.backbone.forward_tokens = lambda x, grid, size=None: seen.append((grid, size)) or forward(x, grid, size)
    model.eval()
    with torch.no_grad():
        model([torch.zeros(3, 64, 96)])
        model.model.detect_at_sizes([torch.zeros(3, 128, 64)], model.evaluated)
    assert seen == [((8, 12), (2, 3)), ((16, 8), (4, 2))]
    with pytest.raises(ValueError, match="follows the image, compressed_sizes do not"):
        task(compressed_size={"stride": 32}, compressed_sizes=[[2, 2]])


def test_frozen_backbone():
    model = task(freeze="backbone").model
    assert not any(p.requires_grad for p in model.features.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if ".features." not in name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_detections": 0}, "max_detections 0"),
        ({"compressed_sizes": [[2, 2], [9, 9]]}, "does not fit the lookup grid"),
        ({"compressed_size": (9, 9)}, "does not fit the lookup grid"),
        ({"name": "vit_tiny_patch4_32", "compressed_sizes": [[2, 2]]}, "has no compressed tokens"),
        ({"budget_gmacs": 1e-6}, "budget of 1e-06 GMACs is too small"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        task(**options)
    assert "\n" not in str(error.value)


def test_data_without_masks_are_refused(scenes):
    with pytest.raises(ValueError, match="mask_rcnn needs masks, which the data leave out"):
        Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", fast_dev_run=True).fit(
            task(), datamodule=data(scenes, masks=False)
        )


def test_drawing_leaves_the_rest_of_the_picture(scenes):
    image = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 30:40, 30:50] = True
    objects = {"boxes": torch.tensor([[30.0, 30, 50, 40]]), "labels": torch.tensor([2]), "masks": masks}
    drawn = draw_objects(image, objects, ["a", "b"])
    assert (drawn[:, 35, 40] != 100).any() and (drawn[:, 60, 5] == 100).all() and image.unique().tolist() == [100]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, 64, 64)}
    assert draw_objects(image, nothing) is image
    rows = side_by_side([(image, drawn), (image[:, :32], drawn[:, :32])], side=32, gap=2)
    assert rows.shape == (3, 34 + 18, 68) and rows.dtype == torch.uint8


def test_results_are_in_cocos_format():
    rle = pytest.importorskip("pycocotools.mask")
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 4:9, 2:12] = True
    masks[1, 10:, 20:] = True
    found = {"boxes": torch.tensor([[2.0, 4, 12, 9], [20, 10, 30, 20]]), "labels": torch.tensor([1, 2]), "masks": masks}
    entries = coco_results({**found, "scores": torch.tensor([0.9, 0.25])}, 7, [18, 44])
    assert [entry["category_id"] for entry in entries] == [18, 44] and entries[0]["image_id"] == 7
    assert entries[0]["bbox"] == [2, 4, 10, 5] and entries[1]["score"] == 0.25
    for mask, entry in zip(masks, json.loads(json.dumps(entries)), strict=True):
        assert torch.equal(torch.from_numpy(rle.decode(entry["segmentation"])).bool(), mask)


def test_from_fit_to_files_on_the_command_line(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"data.root": scenes, "data.train_split": "train", "data.val_split": "val", "data.num_workers": 0}
    options |= dict.fromkeys(("data.img_size", "data.short_side", "data.max_size"), 64) | {"data.batch_size": 2}
    options |= {"model.name": NAME, "model.compressed_sizes": [[2, 2], [4, 4]], "model.args": json.dumps(ARGS)}
    options |= {f"model.{name}": value for name, value in HEADS.items()}
    options |= {"model.detector_args": json.dumps({**FEW, "box_score_thresh": 0.0}), "trainer.accelerator": "cpu"}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    fit = ["fit", "--model", "DetectionTask", "--data", "COCOInstancesDataModule", *given, "--trainer.max_epochs", "1"]
    assert main([*fit, "--name", "scenes"]) == 0
    capsys.readouterr()
    (checkpoint,) = Path("outputs/scenes/version_0/checkpoints").glob("last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["category_ids"] == [1, 2, 3] and saved["trained_sizes"] == [[2, 2], [4, 4]]
    assert 0 <= saved["scores"]["val/ap@2x2"] <= 1
    curves = EventAccumulator("outputs/scenes/version_0").Reload()
    assert "val/detections" in curves.Tags()["images"] and "val/mask_ap@4x4" in curves.Tags()["scalars"]
    model = load_model(checkpoint)
    assert len(model.class_names) == 3 and model.trained_sizes == [(2, 2), (4, 4)]
    kept = {name.removeprefix("model."): value for name, value in saved["state_dict"].items()}
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    cheaper = sum(model_macs(model, compressed_size=(2, 2)).values()) / 1e9

    folder = tmp_path / "new"
    folder.mkdir()
    Image.open(next((scenes / "images" / "val").iterdir())).resize((90, 70)).save(folder / "a_17.png")
    (folder / "broken.png").write_bytes(b"nothing")
    predict = ["predict", "--ckpt_path", str(checkpoint), "--data.predict_path", str(folder)]
    assert (
        main([*predict, "--data.root", str(tmp_path / "gone"), "--model.budget_gmacs", str(cheaper)]) == 0
    )  # no data needed
    assert "2x2 is the largest trained compressed size" in capsys.readouterr().err
    (rows,) = Path("outputs").rglob("detections.csv")
    table = list(csv.DictReader(rows.open()))
    assert [Path(row["file"]).name for row in table] == ["a_17.png", "broken.png"]
    assert table[1]["error"] and not table[1]["overlay"] and table[0]["image_id"] == "17"
    assert (table[0]["height"], table[0]["width"]) == ("70", "90")
    entries = json.loads(rows.with_name("detections.json").read_text())
    assert entries and {entry["image_id"] for entry in entries} == {17}
    assert all(entry["segmentation"]["size"] == [70, 90] for entry in entries)
    boxes = torch.tensor([entry["bbox"] for entry in entries])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 90.01).all()
    assert Image.open(rows.parent / table[0]["overlay"]).size == (90, 70)

    assert main(["sweep", str(checkpoint), "--split", "val", "--rounds", "1", "--batch", "1"]) == 0
    points = json.loads(Path("outputs/sweep/sweep.json").read_text())["rows"]
    assert [point["compressed_size"] for point in points] == [[2, 2], [4, 4]]
    for point, at in zip(points, ("@2x2", "@4x4"), strict=True):
        assert point["ap"] == pytest.approx(100 * saved["scores"][f"val/ap{at}"], abs=1e-4)
        assert point["mask_ap"] == pytest.approx(100 * saved["scores"][f"val/mask_ap{at}"], abs=1e-4)
    capsys.readouterr()
    assert main(["export", str(checkpoint)]) == 2 and "holds a detector" in capsys.readouterr().err
    assert main(["cost", str(checkpoint), "--compressed_size", "2x2"]) == 0
    told = capsys.readouterr().out
    assert "counted at 20 proposals and 100 detections per image" in " ".join(told.split())
    assert "pyramid" in told and "yes" in told and "%" not in told.split("agrees")[-1].split("\n")[2]


def test_perfect_detections_score_one(scenes):
    model = task()
    batch = batch_of(scenes, training=False)
    found = [{**target, "scores": torch.rand(len(target["labels"])) + 0.1} for target in batch["targets"]]
    model.scores["val"][0].update(found, batch["targets"])
    scores = model.scores["val"][0].compute()
    assert float(scores["ap"]) == float(scores["mask_ap"]) == 1
    boxes = batch["targets"][0]["boxes"]
    assert torch.equal(box_iou(boxes, boxes).diagonal(), torch.ones(len(boxes)))
