"""The tasks are readable: a training step runs through few files, and no class reads what only a subclass sets."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lookupvit import create_model, save_weights, tasks
from lookupvit.tasks import CaptioningTask, ClassificationTask, SegmentationTask, VideoTask
from lookupvit.tasks.base import Task

ROOM = Path(tasks.__file__).parent
TINY = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}


def files_of(run: Callable[[], object]) -> set[str]:
    """Names of the files of `lookupvit/tasks` with a function that `run` calls."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == ROOM:
            seen.add(path.name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return seen


@pytest.mark.parametrize("kind", ["one size", "sandwich", "sandwich and teacher", "video"])
def test_a_fit_runs_through_six_files_or_fewer(kind: str, tmp_path: Path) -> None:
    """Optimiser, schedule and steps; a teacher, and clips in place of images, each take one file more."""
    save_weights(create_model("vit_tiny_patch4_32", num_classes=3, img_size=32, **TINY), tmp_path / "vit.ckpt")
    seed_everything(0, verbose=False)
    options = {"num_classes": 3, "img_size": 32}
    if "sandwich" in kind:
        options |= {"compressed_sizes": [[1, 1], [2, 2], [3, 3]], "sandwich": True}
    if "teacher" in kind:
        options |= {"teacher": str(tmp_path / "vit.ckpt"), "teacher_feature_weight": 0.1}
    images = torch.randn(4, 3, 32, 32)
    if kind == "video":
        model = VideoTask(
            "lookupvivit_tiny_joint_patch8x2_32", num_frames=4, args={**TINY, "patch_size": 16}, **options
        )
        images = images[:, :, None].repeat(1, 1, 4, 1, 1)  # (4, 3, 32, 32) -> (4, 3, T, 32, 32)
    else:
        model = ClassificationTask("lookupvit_tiny_patch4_32", args=TINY, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    loader = DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 0])), batch_size=4)
    files = files_of(lambda: trainer.fit(model, loader))
    assert "classification.py" in files
    assert len(files) <= 6 + ("teacher" in kind) + (kind == "video"), sorted(files)


@pytest.mark.parametrize(
    ("task", "levels"), [(ClassificationTask, 3), (VideoTask, 4), (CaptioningTask, 3), (SegmentationTask, 2)]
)
def test_few_levels_of_classes(task: type[Task], levels: int) -> None:
    assert len([cls for cls in task.__mro__ if cls.__module__.startswith("lookupvit.")]) <= levels


@pytest.mark.parametrize("name", ["ClassificationTask", "VideoTask", "CaptioningTask", "SegmentationTask"])
def test_every_class_sets_the_fields_that_it_reads(name: str) -> None:
    """Itself or by a class above it, not by one below. `Task` alone asks its subclasses for one field, the model."""
    lineage = [cls for cls in getattr(tasks, name).__mro__ if cls.__module__.startswith("lookupvit.")]
    known = {"model", *dir(LightningModule())}
    for cls in reversed(lineage):
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))))
        fields = [node for node in nodes if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"]
        known |= {*vars(cls), *(field.attr for field in fields if isinstance(field.ctx, ast.Store))}
        assert {field.attr for field in fields} - known == set(), cls.__name__


def test_the_seed_is_read_in_one_place() -> None:
    assert [file.name for file in ROOM.glob("*.py") if "PL_GLOBAL_SEED" in file.read_text(encoding="utf-8")] == []
