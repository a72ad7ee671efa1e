"""Sharding of a task's parameters over the ranks, block by block (FSDP2)."""

from lightning.pytorch import LightningModule
from timm.models.vision_transformer import Block
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from lookupvit.model.block import LookupViTBlock

BLOCKS = (LookupViTBlock, Block)
STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def shard_blocks(task: LightningModule, mesh: DeviceMesh) -> None:
    """Shards each block by itself and the rest (embedding, norms, heads) with the task, in place.

    Args:
        task: A task that has no optimiser yet.
        mesh: The ranks that share the parameters, along one axis.
    """
    if isinstance(task, FSDPModule):  # Lightning may call configure_model more than once
        return
    for module in list(task.modules()):
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh)
    fully_shard(task, mesh=mesh)
    for name in STEPS:  # these call the forward pass too
        register_fsdp_forward_method(task, name)


def unsharded_class(task: LightningModule) -> type:
    """The task's class as it was before `fully_shard` replaced it by a subclass."""
    return next(cls for cls in type(task).__mro__ if not issubclass(cls, FSDPModule))
