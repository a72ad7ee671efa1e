"""LightningDataModules, and the data sets and transforms below them; they know nothing of the models."""

from datamodules.cifar10 import CIFAR10DataModule
from datamodules.demo import DemoDataModule
from datamodules.imagenet import ImageFolderDataModule, ImageNetDataModule

__all__ = ["CIFAR10DataModule", "DemoDataModule", "ImageFolderDataModule", "ImageNetDataModule"]
