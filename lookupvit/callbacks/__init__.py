"""What a run shows, writes and survives: summary, epoch lines, pictures, predictions; last.ckpt, signals, resume."""

from lookupvit.callbacks.answers.predictions import PredictionWriter
from lookupvit.callbacks.last import EXIT_REQUEUE, LastCheckpoint, Preempted
from lookupvit.callbacks.lines import EpochLines
from lookupvit.callbacks.monitor import MonitorCheck
from lookupvit.callbacks.nonfinite import NonFiniteError, SkipNonFinite
from lookupvit.callbacks.pictures import BatchPictures
from lookupvit.callbacks.resume import ExactResume
from lookupvit.callbacks.stability import StabilityMonitor
from lookupvit.callbacks.summary import RunSummary

__all__ = [
    "EXIT_REQUEUE",
    "BatchPictures",
    "EpochLines",
    "ExactResume",
    "LastCheckpoint",
    "MonitorCheck",
    "NonFiniteError",
    "PredictionWriter",
    "Preempted",
    "RunSummary",
    "SkipNonFinite",
    "StabilityMonitor",
]
