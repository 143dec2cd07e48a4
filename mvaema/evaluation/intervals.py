"""Uncertainty of a mean over answers that are not independent.

The answers about one micrograph share its difficulty, and micrographs of one specimen or
publication share even more. So whole clusters are resampled or exchanged, never single answers.
Treating answers as independent would make the intervals too narrow.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import permutation_test, rankdata


def cluster_bootstrap(
    values: np.ndarray, clusters: Sequence[str], n_resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Means of resampled data, (n_resamples, m). Whole clusters are drawn with replacement.

    Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for inference with clustered
    errors" (pairs cluster bootstrap).

    Args:
        values: (n, m). NaN means that an answer has no value; means leave it out.
        clusters: n cluster names.
    """
    sums, counts = _cluster_sums(values, clusters)
    weights = _drawn(len(sums), n_resamples, seed)
    with np.errstate(invalid="ignore"):  # a resample without any value has no mean
        return (weights @ sums) / (weights @ counts)


def cluster_weights(clusters: Sequence[str], n_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each answer is in each resample, (n_resamples, n); for statistics unlike a mean.

    Args:
        clusters: n cluster names.
    """
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return _drawn(len(names), n_resamples, seed)[:, index]


def mean_intervals(
    values: np.ndarray, clusters: Sequence[str], n_resamples: int = 1000, seed: int = 0
) -> list[tuple[float, float] | tuple[None, None]]:
    """95 % intervals of the means of `values` (n, m): percentiles of `cluster_bootstrap`.

    (None, None) where fewer than two clusters have a value.
    """
    draws = cluster_bootstrap(values, clusters, n_resamples, seed)
    clusters = np.asarray(clusters, dtype=str)
    return [
        tuple(np.nanpercentile(column_draws, [2.5, 97.5]).tolist())
        if len(set(clusters[~np.isnan(column)])) > 1
        else (None, None)
        for column, column_draws in zip(values.T, draws.T, strict=True)
    ]


def rank_correlation(
    first: np.ndarray,
    second: np.ndarray,
    clusters: Sequence[str],
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float | None]:
    """Spearman's `rho` of two columns (n,), and its 95 % interval `low`, `high`.

    The interval resamples clusters and keeps the ranks of the whole. All are None where a column
    does not vary, and the interval where there are fewer than two clusters.
    """
    rho = low = high = None
    if len(first) > 1 and np.ptp(first) > 0 and np.ptp(second) > 0:
        x, y = (rankdata(column) for column in (first, second))
        rho = float(np.corrcoef(x, y)[0, 1])
        if len(set(clusters)) > 1:
            columns = np.stack([x, y, x * x, y * y, x * y], axis=1)
            mx, my, xx, yy, xy = cluster_bootstrap(columns, clusters, n_resamples, seed).T
            with np.errstate(invalid="ignore", divide="ignore"):  # a resample that does not vary
                draws = (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2))
            draws = draws[np.isfinite(draws)]
            if len(draws):
                low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return {"n": len(first), "rho": rho, "low": low, "high": high}


def cluster_permutation_p_value(
    differences: np.ndarray, clusters: Sequence[str], n_resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value for paired differences (n,) having mean 0.

    Under the null hypothesis the two systems can be exchanged within a cluster, which flips the
    sign of its summed difference. Exact if 2**clusters <= n_resamples, otherwise sampled.
    """
    sums, _ = _cluster_sums(differences[:, None], clusters)
    test = permutation_test(
        (sums[:, 0],),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _drawn(n_clusters: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn, (n_resamples, n_clusters)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples)


def _cluster_sums(values: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, index, np.nan_to_num(values))
    np.add.at(counts, index, ~np.isnan(values))
    return sums, counts
