"""How often the recommendation accepts a loss that the user does not, and how often it finds a dimension that is good enough.

    python benchmarks/decision_coverage.py

Simulates the whole procedure of ``evaluation/utils/analysis/recommendation.py`` with a tolerance of 1 point, on normal data
whose true Spearman correlations are known: half the width loses ``--losses`` points, a quarter twice and an eighth four times
as many; int8 loses 0.02 points more, and binary exactly 1 point more, so that every cell holds choices that lose exactly the
tolerance. These count as wrong: the rate of wrong choices is to be 5% at most. The losses spread over samples somewhat more
than those of all-MiniLM-L6-v2 at 256 dimensions on STS-B and STS17 do.

Fewer resamples than an evaluation draws (2,000) make a bound noisier, so the rates here are no lower than with all of them.
The last rows are two sets of 500 pairs that have half of their pairs in common, with these resampled once for both, as an
evaluation does, and resampled for each set on its own.
Writes coverage.json and coverage.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import run

if TYPE_CHECKING:
    import numpy as np

    from evaluation.utils.scoring.statistics import Estimate, Statistic

logger = logging.getLogger(__name__)

TOLERANCE = 0.01  # a point is a hundredth of the score
DIMS, PRECISIONS = (512, 256, 128, 64), ("float32", "int8", "binary")
FULL_SCORE = 0.85
MORE_LOST = {"float32": 0.0, "int8": 0.0002, "binary": TOLERANCE}  # than in float32 at the same dimension
RESAMPLES = {250: 500, 500: 300, 1000: 300}  # by number of pairs, and
FEWEST_RESAMPLES = 150  # for others
GROUPS = 20  # of the jackknife

Choice = tuple[int, str]


def true_losses(loss: float) -> dict[Choice, float]:
    """The true loss of each dimension and precision, of which half the width loses ``loss``."""
    of_dims = dict(zip(DIMS, (0.0, loss, 2 * loss, 4 * loss), strict=True))
    return {(dim, precision): of_dims[dim] + MORE_LOST[precision] for dim in DIMS for precision in PRECISIONS}


def correlation(spearman: float) -> float:
    """Pearson's correlation of normal data with this Spearman correlation."""
    import numpy as np

    return float(2 * np.sin(np.pi * spearman / 6))


def degraded(gold: np.ndarray, similarity: np.ndarray, score: float, lower: float, rng: Any) -> np.ndarray:
    """Similarities with the true Spearman correlation ``lower`` to ``gold``, made from those that have ``score``.

    The two correlate to 1 - 2 × the loss: 0.98 for a point.
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


def choose(loss_of: Callable[[list[Choice]], list[Estimate]]) -> Choice:
    """What the procedure chooses, of one model, where ``loss_of`` measures the losses of some choices: no more than it takes."""
    from evaluation.utils.analysis.recommendation import error_of_step, most_lost, smallest_accepted

    losses: dict[Choice, Estimate] = {}

    def bound(dim: int, precision: str) -> float:
        if (dim, precision) not in losses:
            # the first two dimensions, and both precisions, are bootstrapped in one go
            choices = [(dim, precision)] if precision == "float32" else [(dim, "int8"), (dim, "binary")]
            choices += [(DIMS[1], precision)] if dim == DIMS[0] and precision == "float32" else []
            losses.update(zip(choices, loss_of(choices), strict=True))
        return most_lost(losses[dim, precision], error_of_step(models=1))

    choice = smallest_accepted(DIMS, PRECISIONS, bound, TOLERANCE)
    assert choice is not None  # the full width loses nothing against itself
    return choice


def of_one_set(pairs: int, loss: float, seed: int, resamples: int) -> Choice:
    """What the procedure chooses on one sample of pairs."""
    import numpy as np

    from evaluation.utils.scoring.statistics import bootstrap, spearman

    gold, similarities = draw(pairs, loss, np.random.default_rng([seed, pairs, round(1e4 * loss)]))

    def measure(choices: list[Choice]) -> list[Estimate]:
        statistic = spearman(gold, [similarities[choice] for choice in choices])
        return bootstrap(statistic, pairs, resamples, seed, groups=GROUPS)

    [full] = measure([(DIMS[0], "float32")])
    return choose(lambda choices: [full - estimate for estimate in measure(choices)])


def of_two_sets(pairs: int, loss: float, seed: int, resamples: int, joint: bool) -> Choice:
    """What it chooses on the mean of two sets that have half of their pairs in common."""
    import numpy as np

    from evaluation.utils.analysis.shared_pairs import joint_bootstrap, mean_over_sets
    from evaluation.utils.scoring.pairs import PairSet
    from evaluation.utils.scoring.statistics import spearman

    gold, similarities = draw(pairs * 3 // 2, loss, np.random.default_rng([seed, pairs, 2]))
    rows_of = {"first": slice(0, pairs), "second": slice(pairs // 2, None)}
    sets: list[PairSet] = []
    for name, rows in rows_of.items():
        texts = [str(i) if joint else f"{name} {i}" for i in range(len(gold))[rows]]
        sets.append(PairSet(name, "", (), "spearman", texts, texts, gold[rows], np.empty(0), np.empty(0)))
    groups = [sets] if joint else [[pair_set] for pair_set in sets]

    def measure(choices: list[Choice]) -> list[Estimate]:
        def statistic(pair_set: PairSet) -> Statistic:
            rows = rows_of[pair_set.task]
            return spearman(gold[rows], [similarities[choice][rows] for choice in choices])

        estimates: dict[tuple[str, str], list[Estimate]] = {}
        for group in groups:
            estimates |= joint_bootstrap(group, statistic, resamples=resamples, seed=seed, groups=GROUPS)
        keys = [[pair_set.key for pair_set in group] for group in groups]
        return [
            mean_over_sets({key: of_set[i] for key, of_set in estimates.items()}, keys) for i in range(len(choices))
        ]

    [full] = measure([(DIMS[0], "float32")])
    return choose(lambda choices: [full - estimate for estimate in measure(choices)])


def simulate(kind: str, pairs: int, loss: float, runs: int) -> dict[str, Any]:
    """A cell of the table: how often each choice was made in so many runs, and how many of them were wrong."""
    from scipy.stats import binomtest

    resamples = RESAMPLES.get(pairs, FEWEST_RESAMPLES)
    if kind == "one set":
        counts = Counter(of_one_set(pairs, loss, seed, resamples) for seed in range(runs))
    else:
        joint = kind.endswith("together")
        counts = Counter(of_two_sets(pairs, loss, seed, resamples, joint) for seed in range(runs))
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
        "resamples": resamples,
        "wrong": wrong / runs,
        "wrong_interval": [float(interval.low), float(interval.high)],
        "good_dimension_exists": bool(good_dims),
        "finds_good_dimension": sum(count for (dim, _), count in counts.items() if dim in good_dims) / runs,
        "choices": {f"{dim} {precision}": count for (dim, precision), count in sorted(counts.items(), reverse=True)},
    }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--runs", type=int, default=2000, help="samples in a cell (default: %(default)s)")
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[250, 1000, 5000], help="in a sample (default: %(default)s)"
    )
    parser.add_argument(
        "--losses",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0],
        help="true losses of half the width, in points (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells simulated at once (default: %(default)s)")
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    cells = [("one set", pairs, loss / 100, options.runs) for pairs in options.pairs for loss in options.losses]
    cells += [(f"two sets, resampled {how}", 500, 0.01, options.runs) for how in ("together", "apart")]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = {cell: pool.submit(simulate, *cell) for cell in sorted(cells, key=lambda cell: -cell[1])}
        results = [futures[cell].result() for cell in cells]
    head = ["sample", "pairs", "true loss", "accepts too much, %", "95% interval", "finds a good dimension, %"]
    rows = [
        [
            r["kind"],
            f"{r['pairs']:,}",
            f"{r['loss']:.1f}",
            f"{100 * r['wrong']:.2f}",
            " to ".join(f"{100 * end:.2f}" for end in r["wrong_interval"]),
            f"{100 * r['finds_good_dimension']:.1f}" if r["good_dimension_exists"] else "–",
        ]
        for r in results
    ]
    finish(record, markdown_table(head, rows), results=results)


if __name__ == "__main__":
    run(main)
