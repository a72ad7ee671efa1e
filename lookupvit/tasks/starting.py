"""What a classifier starts from, which of its layers learn, and what it learns from besides the targets."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from lookupvit.checkpoints.pixels import Pixels
from lookupvit.grid import Tokens
from lookupvit.interop.warm_start import initialise
from lookupvit.tasks.base import Task, check
from lookupvit.tasks.losses import distillation_loss
from lookupvit.tasks.optim import check_freeze, freeze_layers
from lookupvit.tasks.teacher import Lesson, Teacher, feature_loss, pooled
from lookupvit.weights.file import Weights, facts, with_facts
from lookupvit.weights.resize import resize_positions

_POSITIONS = ("model.embed.pos_embed", "model.vit.pos_embed")


class StartingTask(Task):
    """A task whose model starts from other weights, may be frozen in part, and may have a teacher.

    None of this is in the paper. Logged with a teacher: ``train/loss_teacher``, ``train/loss_features``.

    Args:
        init_from: Where the first weights come from: a checkpoint, a safetensors file, a folder of
            ``save_pretrained``, or the name of a timm ViT such as ``"vit_base_patch16_224.augreg_in21k"``. Image size,
            patch and classes may differ; a LookupViT takes a plain ViT's weights as ``lookupvit.warm_start`` does.
        freeze: Layers that do not learn, from below: 1 the embedding, 2 the first block too, and so on;
            ``"backbone"``: all but the linear classifiers (a linear probe).
        teacher: A frozen image classifier to learn from: a checkpoint of ``lookupvit fit``, a folder of
            ``save_pretrained``, or the name of a timm ViT. It has the same classes.
        teacher_weight: Share of the loss that compares logits with the teacher's, in [0, 1].
        teacher_feature_weight: Weight of one minus the cosine between the pooled tokens and the teacher's, which need
            the same width; 0 leaves it out.
        **options: Of ``Task``.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        init_from: str | None = None,
        freeze: int | str = 0,
        teacher: str | None = None,
        teacher_weight: float = 0.5,
        teacher_feature_weight: float = 0.0,
        **options,
    ) -> None:
        super().__init__(**options)
        check(0 <= teacher_weight <= 1, f"teacher_weight {teacher_weight} is not in [0, 1]")
        check(teacher_feature_weight >= 0, f"teacher_feature_weight {teacher_feature_weight} is negative: 0 is none")
        check_freeze(freeze)
        self.init_from, self.freeze_below, self.teacher_name = init_from, freeze, teacher
        self.teacher_weight, self.teacher_feature_weight = teacher_weight, teacher_feature_weight
        self.teacher: Teacher | None = None

    def _prepare(self) -> None:
        freeze_layers(self.model, self.freeze_below)
        super()._prepare()

    def setup(self, stage: str) -> None:
        """Reads the first weights and the teacher, where training starts."""
        if stage != "fit":
            return
        if self.init_from is not None:
            initialise(self.model, self.init_from, verbose=rank_zero_only.rank == 0)
        if self.teacher_name is not None and self.teacher is None:
            check(not hasattr(self.model, "num_frames"), "teacher is of image models: set --model.teacher null")
            pixels = Pixels.of_data(getattr(self._trainer, "datamodule", None))
            self.teacher = Teacher(self.teacher_name, self.model.num_classes, self.model.img_size, pixels)
            check(
                not self.teacher_feature_weight or self.teacher.width == self.model.embed_dim,
                f"teacher {self.teacher_name} is of width {self.teacher.width}, the model of {self.model.embed_dim}: "
                "set --model.teacher_feature_weight 0",
            )

    def on_fit_start(self) -> None:
        """Moves the teacher to where the model is."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def lesson(self, images: torch.Tensor) -> Lesson | None:
        """What the teacher says about images ``(B, 3, H, W)``; None without one."""
        return None if self.teacher is None else self.teacher(images)

    def learn(
        self, losses: dict[str, torch.Tensor], logits: dict[str, torch.Tensor], tokens: Tokens, lesson: Lesson | None
    ) -> dict[str, torch.Tensor]:
        """Each head's loss with the teacher's share in it.

        Args:
            losses: Each head's loss against the targets.
            logits: ``(B, C)`` by head.
            tokens: The normalised tokens that the logits were read from.
            lesson: Of the teacher; None leaves the losses as they are.
        """
        if lesson is None:
            return losses
        share = self.teacher_weight
        taught = {head: distillation_loss(z.float(), lesson.logits.float(), self.loss) for head, z in logits.items()}
        self.log("train/loss_teacher", torch.stack(list(taught.values())).mean().detach())
        losses = {head: (1 - share) * losses[head] + share * taught[head] for head in losses}
        if self.teacher_feature_weight:
            features = feature_loss(pooled(tokens), lesson.pooled)
            self.log("train/loss_features", features.detach())
            losses = {head: value + self.teacher_feature_weight * features for head, value in losses.items()}
        return losses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Forgets where the first weights came from: those of the checkpoint take their place."""
        super().on_save_checkpoint(checkpoint)
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "init_from": None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resizes positions of another image size, to score a checkpoint there; training starts with ``init_from``."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            return
        own, state = self.state_dict(), checkpoint.get("state_dict", {})  # sharded weights are read by their strategy
        for name in _POSITIONS:
            if name in own and name in state and state[name].shape != own[name].shape:
                weights = with_facts(Weights({}), checkpoint.get("hyper_parameters"))
                grid = tuple(facts(self.model)["grid"])
                if weights.grid is not None and state[name].shape[2] == own[name].shape[2]:
                    checkpoint["state_dict"] = {**state, name: resize_positions(state[name], weights.grid, grid)}
