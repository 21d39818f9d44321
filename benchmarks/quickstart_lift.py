"""Measures what training adds to the quick start's model, compared with its untrained twin, at every dimension and over several seeds.

    python benchmarks/quickstart_lift.py

Trains configs/quickstart.json once per seed and scores each model and its untrained twin on data/sample/sts_pairs.jsonl.
The intervals come from a bootstrap over the pairs, with the same resamples for all models and seeds.
Writes lift.json and lift.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import subprocess
import tempfile

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.config import ROOT
from common.errors import RunError, run

RECIPE = "configs/quickstart.json"
PAIRS = ROOT / "data/sample/sts_pairs.jsonl"
DIMS = [768, 512, 256, 128, 64]


def train(seed: int, folder: Path) -> None:
    """Train the quick start's recipe into ``folder``, hiding its standard output."""
    command = ["training/hybrid_training.py", "--config", RECIPE, "--seed", str(seed), "--output_dir", str(folder)]
    if subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise RunError(f"training with seed {seed} failed; the reason is above")


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds, one training run each (default: 1 2 3)"
    )
    options = parser.parse_args(argv)

    from common.data_files import read_pairs
    from common.models import load_model
    from evaluation.utils.scoring.similarity import pairwise_similarities
    from evaluation.utils.scoring.statistics import Estimate, bootstrap, paired_mean, spearman

    record = start_record(__file__, options, recipe=RECIPE)
    subsets = read_pairs(PAIRS)
    estimates: dict[tuple[int, str, str], list[Estimate]] = {}  # by seed, model and subset: one per dimension
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            trained = Path(folder, f"seed-{seed}")
            train(seed, trained)
            for name in ("final", "untrained"):
                model = load_model(str(trained / name))
                for subset, pairs in subsets.items():
                    first, second = (
                        model.encode(pairs[column], show_progress_bar=False) for column in ("sentence1", "sentence2")
                    )
                    cosines = [pairwise_similarities(first[:, :dim], second[:, :dim])["cosine"] for dim in DIMS]
                    estimates[seed, name, subset] = bootstrap(
                        spearman(pairs["score"], cosines), len(pairs["score"]), sample="sts_pairs"
                    )

    rows, gains = [], {}
    for subset in subsets:
        over_seeds = {
            name: [
                paired_mean([estimates[seed, name, subset][index] for seed in options.seeds])
                for index in range(len(DIMS))
            ]
            for name in ("untrained", "final")
        }
        for name, label in (("untrained", "untrained"), ("final", "trained")):
            values = [*over_seeds[name], paired_mean(over_seeds[name])]
            rows.append([subset, label, *(f"{100 * estimate.value:.1f}" for estimate in values)])
        by_dim = [after - before for after, before in zip(over_seeds["final"], over_seeds["untrained"], strict=True)]
        mean = paired_mean(by_dim)
        cells = []
        for gain in [*by_dim, mean]:
            low, high = gain.interval()
            cells.append(f"{100 * gain.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        rows.append([subset, "**gain**", *cells])
        by_seed = {
            seed: paired_mean(estimates[seed, "final", subset]).value
            - paired_mean(estimates[seed, "untrained", subset]).value
            for seed in options.seeds
        }
        gains[subset] = {"mean_gain": mean.value, "interval": mean.interval(), "p": mean.p_value(), "by_seed": by_seed}
    table = markdown_table(["subset", "model", *map(str, DIMS), "mean"], rows, text_columns=2)
    note = (
        f"Spearman × 100 on the {len(next(iter(subsets.values()))['score'])} pairs of each subset of the sample, mean over {len(options.seeds)} seeds; "
        "the 95% intervals in brackets are from a paired bootstrap over the pairs."
    )
    finish(record, f"{table}\n{note}\n", gains=gains)


if __name__ == "__main__":
    run(main)
