"""Classification heads: a pooled linear classifier for each token set.

Letters: B batch, T tokens (N lookup or M compressed), D embed_dim, C classes.
"""

from torch import Tensor, nn

HEADS = ("both", "compressed", "lookup")


class PooledHead(nn.Module):
    """Global average pool of normalised tokens, dropout, a linear classifier.

    Args:
        dim: D.
        num_classes: C; 0 gives the pooled features themselves.
        drop_rate: dropout before the classifier.
    """

    def __init__(self, dim: int, num_classes: int, drop_rate: float = 0.0):
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, C)`."""
        return self.fc(self.drop(tokens.mean(dim=1)))
