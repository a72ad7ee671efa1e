"""LightningDataModules, and the data sets and transforms below them; they know nothing of the models."""

from datamodules.cifar10 import CIFAR10DataModule
from datamodules.cifar10c import CIFAR10CDataModule
from datamodules.coco import COCOCaptionsDataModule
from datamodules.demo import DemoDataModule
from datamodules.imagenet import ImageFolderDataModule, ImageNetDataModule
from datamodules.imagenet21k import ImageNet21kDataModule
from datamodules.imagenet_robustness import ImageNetRobustnessDataModule
from datamodules.kinetics import KineticsDataModule
from datamodules.motion import MotionDataModule
from datamodules.scenes import ScenesDataModule
from datamodules.ssv2 import SSv2DataModule
from datamodules.webdataset import WebDatasetDataModule

__all__ = [
    "CIFAR10CDataModule",
    "CIFAR10DataModule",
    "COCOCaptionsDataModule",
    "DemoDataModule",
    "ImageFolderDataModule",
    "ImageNet21kDataModule",
    "ImageNetDataModule",
    "ImageNetRobustnessDataModule",
    "KineticsDataModule",
    "MotionDataModule",
    "SSv2DataModule",
    "ScenesDataModule",
    "WebDatasetDataModule",
]
