"""What a run shows and writes: the summary at its start, a line an epoch, pictures of a training batch, predictions."""

from lookupvit.callbacks.lines import EpochLines
from lookupvit.callbacks.pictures import BatchPictures
from lookupvit.callbacks.predictions import PredictionWriter
from lookupvit.callbacks.summary import RunSummary

__all__ = ["BatchPictures", "EpochLines", "PredictionWriter", "RunSummary"]
