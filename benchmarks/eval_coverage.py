"""How often the 95% interval of a Spearman correlation covers the true one, on data where it is known.

    python benchmarks/eval_coverage.py --trials 2000

Bivariate normal data with correlation r has the Spearman correlation 6/pi * asin(r/2). Beside the interval that the
evaluation uses stands the plain percentile interval over resampled ranks of the full data, which falls short.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from scipy.stats import rankdata

from common.records import cpu_name, versions, write_atomically
from evaluation.utils.scoring.statistics import bootstrap, spearman


def fixed_ranks(gold: np.ndarray, similarity: np.ndarray):
    """Pearson's correlation of ranks that are not taken anew in each resample: the usual short cut."""
    a, b = rankdata(gold), rankdata(similarity)

    def statistic(weights: np.ndarray) -> np.ndarray:
        n = weights.sum(axis=0)
        mean_a, mean_b = a @ weights / n, b @ weights / n
        spread = np.sqrt(((a * a) @ weights / n - mean_a**2) * ((b * b) @ weights / n - mean_b**2))
        return (((a * b) @ weights / n - mean_a * mean_b) / spread)[None]

    return statistic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="data sets for each correlation")
    parser.add_argument("--pairs", type=int, default=250, help="pairs in a data set")
    parser.add_argument("--correlations", type=float, nargs="+", default=[0.0, 0.5, 0.85, 0.95])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()

    found = []
    print("| correlation | true Spearman | coverage % | below % | above % | percentile, fixed ranks % |")
    print("|---:|---:|---:|---:|---:|---:|")
    start = time.monotonic()
    for correlation in arguments.correlations:
        rng = np.random.default_rng(arguments.seed)
        true = 6 / np.pi * np.arcsin(correlation / 2)
        covered = below = above = plain = 0
        for trial in range(arguments.trials):
            x, noise = rng.standard_normal((2, arguments.pairs))
            y = correlation * x + np.sqrt(1 - correlation**2) * noise
            low, high = bootstrap(spearman(x, [y]), arguments.pairs, seed=trial)[0].interval()
            covered, below, above = covered + (low <= true <= high), below + (high < true), above + (low > true)
            short = np.quantile(bootstrap(fixed_ranks(x, y), arguments.pairs, seed=trial)[0].replicates, [0.025, 0.975])
            plain += short[0] <= true <= short[1]
        shares = [100 * count / arguments.trials for count in (covered, below, above, plain)]
        found.append(dict(zip(["coverage", "below", "above", "percentile_fixed_ranks"], shares, strict=True))
                     | {"correlation": correlation, "spearman": true})  # fmt: skip
        print(f"| {correlation} | {true:.4f} | " + " | ".join(f"{share:.2f}" for share in shares) + " |", flush=True)
    if arguments.output:
        record = {"trials": arguments.trials, "pairs": arguments.pairs, "seed": arguments.seed, "resamples": 2000,
                  "wall_time_s": round(time.monotonic() - start, 1), "cpu": cpu_name(), "versions": versions(), "results": found}  # fmt: skip
        write_atomically(arguments.output, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
