"""LightningDataModules, and the data sets and transforms below them; they know nothing of the models."""

from datamodules.cifar10 import CIFAR10DataModule
from datamodules.cifar10c import CIFAR10CDataModule
from datamodules.demo import DemoDataModule
from datamodules.imagenet import ImageFolderDataModule, ImageNetDataModule
from datamodules.imagenet_robustness import ImageNetRobustnessDataModule

__all__ = [
    "CIFAR10CDataModule",
    "CIFAR10DataModule",
    "DemoDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImageNetRobustnessDataModule",
]
