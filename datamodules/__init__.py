"""LightningDataModules, and the data sets and transforms below them; they know nothing of the models."""

from datamodules.cifar10 import CIFAR10DataModule
from datamodules.cifar10c import CIFAR10CDataModule
from datamodules.coco import COCOCaptionsDataModule
from datamodules.demo import DemoDataModule
from datamodules.imagenet import ImageFolderDataModule, ImageNetDataModule
from datamodules.imagenet_robustness import ImageNetRobustnessDataModule
from datamodules.kinetics import KineticsDataModule
from datamodules.motion import MotionDataModule
from datamodules.scenes import ScenesDataModule
from datamodules.ssv2 import SSv2DataModule

__all__ = [
    "CIFAR10CDataModule",
    "CIFAR10DataModule",
    "COCOCaptionsDataModule",
    "DemoDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImageNetRobustnessDataModule",
    "KineticsDataModule",
    "MotionDataModule",
    "SSv2DataModule",
    "ScenesDataModule",
]
