"""How far a measure of the images has drifted since the earlier version of the dataset."""

from collections.abc import Iterator, Mapping

import numpy as np

from diffusion_core.data.report.measures import Values

BINS = 10
# Instead of a share of 0, which has no logarithm.
FLOOR = 1e-4
# What is compared between two versions.
MEASURES = ("size", "brightness", "contrast", "red", "green", "blue", "features")


def population_stability_index(earlier: Values, now: Values) -> float:
    """Return the population stability index of `now` against `earlier`.

        PSI = sum_i (q_i - p_i) ln(q_i / p_i)

    p_i is the share of the earlier values in bin i, q_i that of the new ones, and both are at least `FLOOR`. The edges
    are the nine inner deciles of the earlier values. Values equal to an edge have a bin of their own, because sizes are
    often all equal. Credit scoring uses it (Siddiqi 2006, "Credit Risk Scorecards"): below 0.1 little has changed, and
    above 0.25 much. It is the divergence of Jeffreys (Kullback and Leibler 1951, "On Information and Sufficiency").

    Raises:
        ValueError: there are no values.
    """
    if not len(earlier) or not len(now):
        raise ValueError("drift needs values of both versions")
    edges = _edges(earlier)
    p, q = (_shares(values, edges) for values in (earlier, now))
    return float(np.sum((q - p) * np.log(q / p)))


def by_chance(earlier: Values, now: Values, shared: int) -> float:
    """Return the mean of the index for as many values of one distribution, of which both have `shared`.

        (k - 1) (1/n + 1/m - 2 s/(n m))

    k is the number of bins that have earlier values, n and m are the numbers of values, s is `shared`. A bin's share p
    differs between the two with the variance p (1 - p) (1/n + 1/m - 2 s/(n m)). For large n and m the index is the sum
    over the bins of the squared difference by p.
    """
    bins = np.count_nonzero(_shares(earlier, _edges(earlier)) > FLOOR)
    n, m = len(earlier), len(now)
    return (bins - 1) * (1 / n + 1 / m - 2 * shared / (n * m))


def _edges(earlier: Values) -> Values:
    # Hazen's quantiles lie between two values, or on values that are equal, but for odd numbers.
    return np.unique(np.quantile(earlier, np.arange(1, BINS) / BINS, method="hazen"))


def _shares(values: Values, edges: Values) -> Values:
    """Return the share of the values below, at and between the edges, at least `FLOOR`."""
    # Even numbers lie between two edges, odd ones on one.
    bins = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
    return np.maximum(np.bincount(bins, minlength=2 * len(edges) + 1) / len(values), FLOOR)


def drift(earlier: Mapping[str, Values], now: Mapping[str, Values], shared: int) -> dict[str, float]:
    """Return the population stability index of each measure that both versions have, less what chance gives.

    Few images would otherwise seem to drift. Of a measure with several columns, as features are, it is their mean.

    Args:
        earlier: the values of the images that are measured, by measure: (n,), or (n, columns).
        now: likewise.
        shared: how many of these images both versions have.
    """
    return {
        name: max(float(np.mean([_beyond_chance(*pair, shared) for pair in _columns(earlier[name], now[name])])), 0.0)
        for name in MEASURES
        if len(earlier.get(name, ())) and len(now.get(name, ()))
    }


def _columns(earlier: Values, now: Values) -> Iterator[tuple[Values, Values]]:
    return zip(earlier.reshape(len(earlier), -1).T, now.reshape(len(now), -1).T, strict=True)


def _beyond_chance(earlier: Values, now: Values, shared: int) -> float:
    return population_stability_index(earlier, now) - by_chance(earlier, now, shared)
