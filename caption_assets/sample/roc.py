"""The area under the ROC curve of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def roc_auc(true: Sequence[float], false: Sequence[float]) -> float:
    """The probability that the score of a true case is higher than that of a false one; equal scores count half."""
    above = np.asarray(true)[:, None] - np.asarray(false)[None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
