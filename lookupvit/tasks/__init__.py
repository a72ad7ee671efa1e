"""LightningModules: what is trained, with which loss, metrics and schedule."""

from lookupvit.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
