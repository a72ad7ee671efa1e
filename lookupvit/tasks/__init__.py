"""LightningModules: what is trained, with which loss, metrics and schedule."""

from lookupvit.tasks.captioning import CaptioningTask
from lookupvit.tasks.classification import ClassificationTask
from lookupvit.tasks.detection import DetectionTask
from lookupvit.tasks.segmentation import SegmentationTask
from lookupvit.tasks.video import VideoTask

__all__ = ["CaptioningTask", "ClassificationTask", "DetectionTask", "SegmentationTask", "VideoTask"]
