"""The video task: views averaged by video, each video once on any number of devices, training as for images."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lookupvit.metrics.multiview import MultiViewAccuracy
from lookupvit.tasks import VideoTask

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "temporal_depth": 1}
BASE = {"num_classes": 7, "img_size": 16, "num_frames": 4}
SIZES = {"joint": (2, 2, 1), "factorised": (2, 1)}
VIDEOS, VIEWS = 5, 3


def make(model: str = "joint", family: str = "lookupvivit", **options) -> VideoTask:
    seed_everything(0, verbose=False)
    if family == "lookupvivit" and "compressed_sizes" not in options:
        options["compressed_size"] = SIZES[model]
    return VideoTask(f"{family}_tiny_{model}_patch8x2_32", **{**BASE, "args": TINY, **options})


def clips(count: int = 6) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(count, 3, 4, 16, 16, generator=generator), torch.randint(7, (count,), generator=generator)
    return DataLoader(TensorDataset(*data), batch_size=2)


def views() -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    shape = (VIDEOS, VIEWS, 3, 4, 16, 16)
    data = torch.randn(*shape, generator=generator), torch.randint(7, (VIDEOS,), generator=generator)
    return DataLoader(TensorDataset(*data, torch.arange(VIDEOS)), batch_size=2)


def trainer(path: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=path, **{**quiet, "enable_checkpointing": False, **options})


def by_hand(logits: torch.Tensor, targets: torch.Tensor, k: int) -> float:
    right = [int(t) in sorted(range(7), key=lambda c: -row[c])[:k] for row, t in zip(logits, targets, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("family", ["lookupvivit", "vivit"])
def test_test_averages_the_logits_of_each_videos_views(tmp_path: Path, family: str, model: str) -> None:
    task = make(model, family, view_batch=2)
    result = trainer(tmp_path).test(task, views(), verbose=False)[0]
    videos, targets, _ = views().dataset.tensors
    with torch.no_grad():  # a view at a time, through the model itself
        heads = [
            [task.model.eval().forward_logits(task.model.forward_features(view[None])) for view in video]
            for video in videos
        ]
    by_head = {
        name: torch.stack([sum(view[name][0] for view in video) / VIEWS for video in heads]) for name in heads[0][0]
    }
    mean = sum(by_head.values()) / len(by_head)
    for k in (1, 5):
        assert result[f"test/top{k}"] == pytest.approx(by_hand(mean, targets, k))
        if len(by_head) > 1:
            for name, logits in by_head.items():
                assert result[f"test/top{k}_{name}"] == pytest.approx(by_hand(logits, targets, k))
    losses = [-logits.log_softmax(1)[range(VIDEOS), targets].mean() for logits in by_head.values()]
    assert result["test/loss"] == pytest.approx(float(sum(losses) / len(losses)), rel=1e-5)
    assert ("test/top1_compressed" in result) == (family == "lookupvivit" and model == "joint")


def test_every_size_is_tested_on_the_averaged_views_and_drawn_in_training(tmp_path: Path) -> None:
    task = make(compressed_sizes=[[2, 2, 2], [1, 1, 1]])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, clips(), clips())
    assert {"val/top1", "val/top1@1x1x1", "val/top1@2x2x2"} <= set(run.callback_metrics)
    result = run.test(task, views(), verbose=False)[0]
    assert result["test/top1"] == result["test/top1@2x2x2"]
    videos, targets, _ = views().dataset.tensors
    with torch.no_grad():
        small = torch.stack([task.model.eval()(video, (1, 1, 1)).mean(dim=0) for video in videos])
    assert result["test/top1@1x1x1"] == pytest.approx(by_hand(small, targets, 1))
    assert task.training_sizes(0)[0] in [(2, 2, 2), (1, 1, 1)]


def test_clips_without_views_are_tested_as_they_are_validated(tmp_path: Path) -> None:
    task = make()
    tested = trainer(tmp_path).test(task, clips(), verbose=False)[0]
    validated = trainer(tmp_path).validate(task, clips(), verbose=False)[0]
    assert {name.replace("test/", "val/"): value for name, value in tested.items()} == pytest.approx(validated)


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("family", ["lookupvivit", "vivit"])
def test_every_parameter_gets_a_gradient(family: str, model: str) -> None:
    task = make(model, family)
    task.training_step(next(iter(clips())), 0).backward()
    assert [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_sgd_trains_and_the_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    task = make("factorised", optimizer="sgd", lr=1e-2, layer_decay=0.9)
    run = trainer(tmp_path, max_steps=2, enable_checkpointing=True)
    run.fit(task, clips())
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert saved["task"] == "lookupvit.tasks.video.VideoTask"
    assert saved["hyper_parameters"]["num_frames"] == 4 and saved["hyper_parameters"]["args"] == TINY
    again = VideoTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    batch = views().dataset.tensors[0]
    assert task.eval()(batch).shape == (VIDEOS, 7)
    torch.testing.assert_close(again.eval()(batch), task(batch))


def test_predictions_of_views_are_of_their_mean() -> None:
    task = make().eval()
    batch = views().dataset.tensors[0]
    got = task.predict_step((batch, list("abcde")), 0)
    mean = torch.stack([task.model(video).mean(dim=0) for video in batch]).softmax(dim=1)
    torch.testing.assert_close(got["probabilities"], mean.topk(5).values)
    assert got["files"] == list("abcde")


# -- the metric --------------------------------------------------------------------------------------------------------

# 4 videos of 2 views, 3 classes; by hand: video 7 -> mean (1.5, 1, 0), 3 -> (0, 2, 1), 5 -> (1, 0, 4), 9 -> (0.5, 1, 0)
LOGITS = [[3, 0, 0], [0, 2, 0], [0, 4, 0], [0, 0, 2], [0, 0, 4], [2, 0, 4], [1, 0, 0], [0, 2, 0]]
OF_VIDEO, OF_VIEW, TARGETS = [7, 7, 3, 3, 5, 5, 9, 9], [0, 1] * 4, [0, 0, 2, 2, 2, 2, 0, 0]


def states(rows: list[int]) -> tuple[torch.Tensor, ...]:
    return (
        torch.tensor(LOGITS, dtype=torch.float32)[rows],
        torch.tensor(TARGETS)[rows],
        torch.tensor(OF_VIDEO)[rows],
        torch.tensor(OF_VIEW)[rows],
    )


def check_by_hand(metric: MultiViewAccuracy) -> None:
    videos = metric.grouped()
    assert videos.index.tolist() == [3, 5, 7, 9] and videos.targets.tolist() == [2, 2, 0, 0]
    assert videos.logits.tolist() == [[0, 2, 1], [1, 0, 4], [1.5, 1, 0], [0.5, 1, 0]]
    result = metric.compute()
    assert {name: float(value) for name, value in result.items()} == {"top1": 0.5, "top2": 1.0, "top5": 1.0}


def test_views_as_samples_of_their_own_in_any_order_and_repeated() -> None:
    metric = MultiViewAccuracy(3, (1, 2, 5))
    for rows in ([6, 0, 3], [4, 5, 2, 1], [7, 6, 3]):  # the last two are repeats
        metric.update(*states(rows))
    check_by_hand(metric)
    metric.reset()
    with pytest.raises(ValueError, match="no video was evaluated"):
        metric.grouped()


def test_what_does_not_fit_is_told() -> None:
    metric = MultiViewAccuracy(3)
    with pytest.raises(ValueError, match=r"logits \(2, 4\).*expected \(n, 3\)"):
        metric.update(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"videos \(2,\) do not fit"):
        metric.update(torch.zeros(3, 3), torch.zeros(3), torch.zeros(2))
    metric.update(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([4, 4]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="views of video 4 have different targets"):
        metric.grouped()


def one_rank(rank: int, file: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    metric = MultiViewAccuracy(3, (1, 2, 5))
    # views of one video on two ranks, one of them twice, and a rank without any
    for rows in {0: [[0, 2, 3], [6]], 1: [[1, 4, 5, 7], [6, 2]], 2: []}[rank]:
        metric.update(*states(rows))
    check_by_hand(metric)
    torch.distributed.destroy_process_group()


def test_views_on_several_ranks_count_once(tmp_path: Path) -> None:
    # forked: a spawned process would import everything once more, which takes longer than the test
    mp.start_processes(one_rank, args=(str(tmp_path / "store"),), nprocs=3, start_method="fork")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lookupvit_tiny_patch4_32"}, "lookupvit_tiny_patch4_32 is a model of images"),
        ({"budget_gmacs": 1.0}, "budget_gmacs is for image models only"),
        ({"view_batch": 0}, "view_batch 0 is not positive"),
        ({"num_frames": 5}, r"clip size \(5, 16, 16\) is not a multiple of the patch size \(2, 8, 8\)"),
        ({"compressed_size": (3, 2, 2)}, r"\(3, 2, 2\) does not fit the lookup grid \(2, 2, 2\)"),
        (
            {"name": "lookupvivit_tiny_factorised_patch8x2_32", "compressed_size": (1, 2, 2)},
            "its first entry must be 2",
        ),
        (
            {"name": "lookupvivit_tiny_factorised_patch8x2_32", "compressed_sizes": [[1, 2, 2], [2, 1, 1]]},
            "its first entry must be 2",
        ),
        ({"name": "lookupvivit_tiny_factorised_patch8x2_32", "args": {"head": "both"}}, "head='both' does not go with"),
    ],
)
def test_wrong_options_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VideoTask(**{"name": "lookupvivit_tiny_joint_patch8x2_32", **BASE, **options})
    assert "\n" not in str(error.value)
