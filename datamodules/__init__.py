"""LightningDataModules, and the data sets and transforms below them; they know nothing of the models."""

from datamodules.captions.coco import COCOCaptionsDataModule
from datamodules.demos.dense_scenes import DenseScenesDataModule, DenseScenesInstancesDataModule
from datamodules.demos.motion import MotionDataModule
from datamodules.demos.scenes import ScenesDataModule
from datamodules.demos.shapes import DemoDataModule
from datamodules.dense.benchmarks import ADE20KDataModule, CityscapesDataModule, VOCSegmentationDataModule
from datamodules.dense.coco_instances import COCOInstancesDataModule
from datamodules.dense.coco_semantic import COCOPanopticDataModule, COCOStuffDataModule
from datamodules.dense.mask_folder import MaskFolderDataModule
from datamodules.dense.yolo import YOLODataModule
from datamodules.images.cifar10 import CIFAR10DataModule
from datamodules.images.imagenet import ImageFolderDataModule, ImageNetDataModule
from datamodules.images.imagenet21k import ImageNet21kDataModule
from datamodules.robustness.cifar10c import CIFAR10CDataModule
from datamodules.robustness.imagenet import ImageNetRobustnessDataModule
from datamodules.shards.datamodule import WebDatasetDataModule
from datamodules.video.kinetics import KineticsDataModule
from datamodules.video.ssv2 import SSv2DataModule

__all__ = [
    "ADE20KDataModule",
    "CIFAR10CDataModule",
    "CIFAR10DataModule",
    "COCOCaptionsDataModule",
    "COCOInstancesDataModule",
    "COCOPanopticDataModule",
    "COCOStuffDataModule",
    "CityscapesDataModule",
    "DemoDataModule",
    "DenseScenesDataModule",
    "DenseScenesInstancesDataModule",
    "ImageFolderDataModule",
    "ImageNet21kDataModule",
    "ImageNetDataModule",
    "ImageNetRobustnessDataModule",
    "KineticsDataModule",
    "MaskFolderDataModule",
    "MotionDataModule",
    "SSv2DataModule",
    "ScenesDataModule",
    "VOCSegmentationDataModule",
    "WebDatasetDataModule",
    "YOLODataModule",
]
