"""Measures how often the recommendation accepts a loss that is too large, and how often it finds a good dimension.

    python benchmarks/decision_coverage.py

Simulates the whole procedure of ``evaluation/utils/analysis/recommendation.py`` with a tolerance of 1 point, on normal data
with known true Spearman correlations: half the width loses ``--losses`` points, a quarter loses twice and an eighth four times
as many; int8 loses 0.02 points more, and binary exactly 1 point more, so that every row of the table has choices that lose exactly the
tolerance. These count as wrong: the rate of wrong choices should be at most 5%. The losses vary over samples somewhat more than
those of all-MiniLM-L6-v2 at 256 dimensions on STS-B and STS17.

The upper bound of a loss is first computed from the analytical standard error and the normal distribution. If it is close to the
tolerance (within one standard error with 250 pairs, 0.3 with 5,000), it is replaced by the bound that an evaluation computes
from 2,000 resamples. Further away, the two hardly ever lead to different choices; the record shows their largest difference.
The last two rows are two sets of 500 pairs that share half of their pairs. In one row a shared pair is resampled once for both
sets, as in an evaluation; in the other each set is resampled separately.
Writes coverage.json and coverage.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import signal
from collections import Counter
from multiprocessing import Pool
from typing import TYPE_CHECKING, Any

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import run

if TYPE_CHECKING:
    import numpy as np

    from evaluation.utils.scoring.pairs import PairSet
    from evaluation.utils.scoring.statistics import Estimate, Statistic

logger = logging.getLogger(__name__)

TOLERANCE = 0.01  # a point is a hundredth of the score
DIMS, PRECISIONS = (512, 256, 128, 64), ("float32", "int8", "binary")
FULL_SCORE = 0.85
MORE_LOST = {"float32": 0.0, "int8": 0.0002, "binary": TOLERANCE}  # than in float32 at the same dimension
LEAST_DOUBT = 0.3  # standard errors: closer to the tolerance, the bootstrap decides; more with few pairs
FEW_PAIRS, TIMES_AS_MANY = 1000, 4  # samples of few pairs are fast, so their rows get this many times as many
GROUPS = 50  # of the jackknife

Choice = tuple[int, str]


def true_losses(loss: float) -> dict[Choice, float]:
    """Return the true loss at each dimension and precision; half the width loses ``loss``."""
    of_dims = dict(zip(DIMS, (0.0, loss, 2 * loss, 4 * loss), strict=True))
    return {(dim, precision): of_dims[dim] + MORE_LOST[precision] for dim in DIMS for precision in PRECISIONS}


def correlation(spearman: float) -> float:
    """Pearson's correlation of normal data with this Spearman correlation."""
    import numpy as np

    return float(2 * np.sin(np.pi * spearman / 6))


def degraded(gold: np.ndarray, similarity: np.ndarray, score: float, lower: float, rng: Any) -> np.ndarray:
    """Return similarities whose true Spearman correlation with ``gold`` is ``lower``, made from ``similarity``, which has ``score``.

    The correlation of the old and new similarities is 1 - 2 × the loss: 0.98 for a loss of 1 point.
    """
    import numpy as np

    before, after, together = correlation(score), correlation(lower), 1 - 2 * (score - lower)
    share = (together - before * after) / np.sqrt(1 - before**2)
    residual = (similarity - before * gold) / np.sqrt(1 - before**2)
    noise = rng.standard_normal(gold.shape)
    return after * gold + share * residual + np.sqrt(1 - after**2 - share**2) * noise


def draw(pairs: int, loss: float, rng: Any) -> tuple[np.ndarray, dict[Choice, np.ndarray]]:
    """Gold scores, and the similarities at each dimension and precision."""
    import numpy as np

    gold, noise = rng.standard_normal((2, pairs))
    full = correlation(FULL_SCORE)
    similarity = full * gold + np.sqrt(1 - full**2) * noise
    similarities: dict[Choice, np.ndarray] = {}
    for (dim, precision), lost in true_losses(loss).items():
        start, score = (similarity, FULL_SCORE)
        if precision != "float32":
            start, score = similarities[dim, "float32"], FULL_SCORE - lost + MORE_LOST[precision]
        lower = FULL_SCORE - lost
        similarities[dim, precision] = start if lower == score else degraded(gold, start, score, lower, rng)
    return gold, similarities


def spearman_influence(gold: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """What each pair adds to Spearman's correlation, to first order and up to a constant, shape ``[n]``."""
    import numpy as np
    from scipy.stats import rankdata

    n = len(gold)
    shares = [(rankdata(values) - 0.5) / n - 0.5 for values in (gold, similarity)]

    def through_ranks(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return each pair's effect through the ranks of ``own``: it raises the rank of every pair above it."""
        order = np.argsort(-own)
        above = np.empty(n)
        above[order] = np.cumsum(other[order]) / n
        return above

    first, second = shares
    influence = 12 * (first * second + through_ranks(first, second) + through_ranks(second, first))
    return influence - influence.mean()


class Sample:
    """A sample of pairs, in one test set or in several that share pairs.

    Args:
        rows: The pairs of each set.
        joint: Resample a pair once for all sets that contain it; otherwise resample each set separately.
    """

    def __init__(self, pairs: int, loss: float, seed: int, rows: dict[str, slice], joint: bool):
        import numpy as np

        from evaluation.utils.scoring.pairs import PairSet

        rng = np.random.default_rng([seed, pairs, len(rows), round(1e4 * loss)])
        self.gold, self.similarities = draw(pairs, loss, rng)
        self.seed, self.rows, self.largest_gap = seed, rows, 0.0
        sets: list[PairSet] = []
        for name, of_set in rows.items():
            texts = [str(i) if joint else f"{name} {i}" for i in range(pairs)[of_set]]
            sets.append(PairSet(name, "", (), "spearman", texts, texts, self.gold[of_set], np.empty(0), np.empty(0)))
        self.groups = [sets] if joint else [[pair_set] for pair_set in sets]

    def loss(self, choice: Choice) -> Estimate:
        """The loss of a choice, as an evaluation estimates it."""
        from evaluation.utils.analysis.shared_pairs import joint_bootstrap, mean_over_sets
        from evaluation.utils.scoring.statistics import spearman

        columns = [self.similarities[DIMS[0], "float32"], self.similarities[choice]]

        def statistic(pair_set: PairSet) -> Statistic:
            rows = self.rows[pair_set.task]
            return spearman(self.gold[rows], [column[rows] for column in columns])

        losses: dict[tuple[str, str], Estimate] = {}
        for group in self.groups:
            for key, (full, cut) in joint_bootstrap(group, statistic, seed=self.seed, groups=GROUPS).items():
                losses[key] = full - cut
        return mean_over_sets(losses, [[pair_set.key for pair_set in group] for group in self.groups])

    def loss_and_error(self, choice: Choice) -> tuple[float, float]:
        """The loss of a choice and its standard error, without resampling."""
        import numpy as np
        from scipy.stats import spearmanr

        full, cut = self.similarities[DIMS[0], "float32"], self.similarities[choice]
        losses: list[float] = []
        variance = 0.0
        for group in self.groups:
            influence = np.zeros(len(self.gold))
            for pair_set in group:
                rows = self.rows[pair_set.task]
                of_full, of_cut = (spearman_influence(self.gold[rows], column[rows]) for column in (full, cut))
                influence[rows] += (of_full - of_cut) / len(of_cut) / len(self.rows)
                losses.append(spearmanr(self.gold[rows], full[rows])[0] - spearmanr(self.gold[rows], cut[rows])[0])
            variance += float((influence**2).sum())
        return float(np.mean(losses)), variance**0.5

    def choose(self) -> Choice:
        """Return the procedure's choice for one model."""
        from scipy.special import ndtri

        from evaluation.utils.analysis.recommendation import error_of_step, most_lost, smallest_accepted

        def bound(dim: int, precision: str) -> float:
            if (dim, precision) == (DIMS[0], "float32"):
                return 0.0
            loss, error = self.loss_and_error((dim, precision))
            normal = loss - float(ndtri(error_of_step(models=1))) * error
            if abs(normal - TOLERANCE) > max(LEAST_DOUBT, 16 / len(self.gold) ** 0.5) * error:
                return normal
            exact = most_lost(self.loss((dim, precision)), error_of_step(models=1))
            self.largest_gap = max(self.largest_gap, abs(exact - normal) / error)
            return exact

        choice = smallest_accepted(DIMS, PRECISIONS, bound, TOLERANCE)
        assert choice is not None  # the full width loses nothing compared with itself
        return choice


KINDS = {"one set": True, "two sets, resampled together": True, "two sets, resampled separately": False}


def sample_of(kind: str, pairs: int, loss: float, seed: int) -> Sample:
    if kind == "one set":
        return Sample(pairs, loss, seed, {"one": slice(0, pairs)}, joint=True)
    rows = {"first": slice(0, pairs), "second": slice(pairs // 2, None)}
    return Sample(pairs * 3 // 2, loss, seed, rows, joint=KINDS[kind])


def simulate(kind: str, pairs: int, loss: float, runs: int) -> dict[str, Any]:
    """Return the results of a row (kind of sample, pairs, loss): how often each choice was made, and the share of wrong choices."""
    from scipy.stats import binomtest

    runs *= TIMES_AS_MANY if pairs <= FEW_PAIRS else 1
    counts: Counter[Choice] = Counter()
    largest_gap = 0.0
    for seed in range(runs):
        sample = sample_of(kind, pairs, loss, seed)
        counts[sample.choose()] += 1
        largest_gap = max(largest_gap, sample.largest_gap)
    lost = true_losses(loss)
    wrong = sum(count for choice, count in counts.items() if lost[choice] > TOLERANCE - 1e-9)
    interval = binomtest(wrong, runs).proportion_ci(method="wilson")
    good_dims = [dim for dim in DIMS[1:] if lost[dim, "float32"] < TOLERANCE - 1e-9]
    logger.info("%s, %d pairs, loss %.1f: %d of %d accept too much", kind, pairs, 100 * loss, wrong, runs)
    return {
        "kind": kind,
        "pairs": pairs,
        "loss": 100 * loss,
        "runs": runs,
        "wrong": wrong / runs,
        "wrong_interval": [float(interval.low), float(interval.high)],
        "good_dimension_exists": bool(good_dims),
        "finds_good_dimension": sum(count for (dim, _), count in counts.items() if dim in good_dims) / runs,
        "largest_gap_of_bounds": largest_gap,
        "choices": {f"{dim} {precision}": count for (dim, precision), count in sorted(counts.items(), reverse=True)},
    }


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--runs",
        type=int,
        default=2000,
        help="samples per row; four times as many with up to 1,000 pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[250, 1000, 5000], help="pairs in a sample (default: %(default)s)"
    )
    parser.add_argument(
        "--losses",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0],
        help="true losses of half the width, in points (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="rows simulated in parallel (default: %(default)s)")
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    settings = [("one set", pairs, loss / 100) for pairs in options.pairs for loss in options.losses]
    settings += [(kind, 500, 0.01) for kind in list(KINDS)[1:]]
    longest_first = sorted(settings, key=lambda setting: -setting[1])
    with Pool(options.jobs, initializer=_leave_signals_to_parent) as pool:  # terminates its processes on exit
        simulated = pool.starmap(simulate, [(*setting, options.runs) for setting in longest_first], chunksize=1)
    by_setting = dict(zip(longest_first, simulated, strict=True))
    results = [by_setting[setting] for setting in settings]
    finish(record, report(results), results=results)


def report(results: list[dict[str, Any]]) -> str:
    """Return the table in Markdown, with a caption."""
    head = [
        "test sets",
        "pairs per set",
        "true loss at half the width, points",
        "decisions",
        "accepted a loss of the tolerance or more, %",
        "95% interval",
        "chose a smaller dimension within the tolerance, %",
    ]
    rows = [
        [
            r["kind"],
            f"{r['pairs']:,}",
            f"{r['loss']:.1f}",
            f"{r['runs']:,}",
            f"{100 * r['wrong']:.2f}",
            " to ".join(f"{100 * end:.2f}" for end in r["wrong_interval"]),
            f"{100 * r['finds_good_dimension']:.1f}" if r["good_dimension_exists"] else "–",
        ]
        for r in results
    ]
    return markdown_table(head, rows) + (
        f"\nTolerance: {100 * TOLERANCE:g} point. A loss of the tolerance or more should be accepted in at most 5% of decisions. "
        "–: every smaller dimension loses the tolerance or more.\n"
    )


if __name__ == "__main__":
    run(main)
