"""Measures how often the 95% interval of a Spearman correlation covers the true value, on data with a known one.

    python benchmarks/eval_coverage.py --trials 2000

Bivariate normal data with correlation r has the Spearman correlation 6/pi * asin(r/2). The table compares the interval that the
evaluation uses with the plain percentile interval, which resamples the ranks of the full data and covers too rarely.
Writes coverage.json and coverage.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
from typing import TYPE_CHECKING

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import run

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)


def fixed_ranks(gold: np.ndarray, similarity: np.ndarray):
    """Pearson's correlation of the full data's ranks, not recomputed for each resample: the usual shortcut."""
    import numpy as np
    from scipy.stats import rankdata

    a, b = rankdata(gold), rankdata(similarity)

    def statistic(weights: np.ndarray) -> np.ndarray:
        n = weights.sum(axis=0)
        mean_a, mean_b = a @ weights / n, b @ weights / n
        spread = np.sqrt(((a * a) @ weights / n - mean_a**2) * ((b * b) @ weights / n - mean_b**2))
        return (((a * b) @ weights / n - mean_a * mean_b) / spread)[None]

    return statistic


def coverage(correlation: float, trials: int, pairs: int, seed: int) -> dict[str, float]:
    """Return the percentages of ``trials`` data sets whose interval covers, is below, or is above the true Spearman correlation."""
    import numpy as np

    from evaluation.utils.scoring.statistics import bootstrap, spearman

    rng = np.random.default_rng(seed)
    true = 6 / np.pi * np.arcsin(correlation / 2)
    covered = below = above = covered_by_shortcut = 0
    for trial in range(trials):
        x, noise = rng.standard_normal((2, pairs))
        y = correlation * x + np.sqrt(1 - correlation**2) * noise
        low, high = bootstrap(spearman(x, [y]), pairs, seed=trial)[0].interval()
        covered, below, above = covered + (low <= true <= high), below + (high < true), above + (low > true)
        replicates = bootstrap(fixed_ranks(x, y), pairs, seed=trial)[0].replicates
        low, high = np.quantile(replicates, [0.025, 0.975])
        covered_by_shortcut += low <= true <= high
    counts = {"coverage": covered, "below": below, "above": above, "percentile_fixed_ranks": covered_by_shortcut}
    shares = {name: 100 * float(count) / trials for name, count in counts.items()}
    return shares | {"correlation": correlation, "spearman": float(true)}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--trials", type=int, default=2000, help="data sets per correlation (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=250, help="pairs in a data set (default: %(default)s)")
    parser.add_argument(
        "--correlations",
        type=float,
        nargs="+",
        default=[0.0, 0.5, 0.85, 0.95],
        help="correlations of the normal data (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the data (default: %(default)s)")
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    results = []
    for correlation in options.correlations:
        results.append(coverage(correlation, options.trials, options.pairs, options.seed))
        logger.info("correlation %s: the interval covers in %.2f%% of the trials", correlation, results[-1]["coverage"])
        record.write(results=results)
    head = ["correlation", "true Spearman", "coverage %", "below %", "above %", "percentile, fixed ranks %"]
    shown = ("coverage", "below", "above", "percentile_fixed_ranks")
    rows = [
        [str(row["correlation"]), f"{row['spearman']:.4f}", *(f"{row[key]:.2f}" for key in shown)] for row in results
    ]
    finish(record, markdown_table(head, rows, text_columns=0))


if __name__ == "__main__":
    run(main)
