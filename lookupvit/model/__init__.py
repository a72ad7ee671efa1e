"""Pure-torch models: nothing of Lightning, nothing of data."""

from lookupvit.model.flops import register_missing_formulas

register_missing_formulas()
