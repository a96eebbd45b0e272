"""The metrics of GLUE, in percent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

# scikit-learn and scipy take a second to import, which help and checks of settings need not wait for.


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0 where nothing is predicted or labelled so."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions)) if _vary(predictions, labels) else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if not _vary(predictions, labels):
        return 0.0
    return float(pearsonr(predictions.astype(np.float64), labels).statistic)  # float32 loses digits near a constant


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, labels).statistic) if _vary(predictions, labels) else 0.0


def pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman, pearson_spearman)
}


def compute_metrics(names: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """The named metrics in percent.

    A correlation with a constant is 0, and so is one with predictions that are not all finite: selection
    then never prefers a model that has collapsed or diverged.

    Args:
        names: Keys of METRICS.
        predictions: Classes, or scores for the correlations; one a row.
        labels: The same of the truth.

    Raises:
        ValueError: If there are no rows, or not one prediction for each label.
    """
    predicted, expected = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != expected.shape or expected.ndim != 1 or not expected.size:
        raise ValueError(f"predictions have shape {predicted.shape}, labels {expected.shape}; give one value a row")
    return {name: 100 * METRICS[name](predicted, expected) for name in names}


def _vary(predictions: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a correlation is defined: the libraries warn or give NaN where it is not.

    What varies in its twelfth digit only is rounding, and a constant too.
    """
    return all(np.isfinite(x).all() and np.ptp(x) > 1e-11 * np.abs(x).max() for x in (predictions, labels))
