"""What training gives the quick start's model: trained less untrained, at every dimension, over several seeds.

    python benchmarks/quickstart_lift.py

Trains configs/quickstart.json once for each seed, scores each model and its untrained twin on data/sample/sts_pairs.jsonl, and writes
lift.json and lift.md to --output_dir. Intervals are of the bootstrap over the pairs, the same pairs for all models and seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import subprocess
import tempfile

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ROOT / "data/sample/sts_pairs.jsonl"
DIMS = [768, 512, 256, 128, 64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="a training run for each (default: 1 2 3)"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("results/quickstart_lift"),
        help="folder of the results (default: %(default)s)",
    )
    options = parser.parse_args()

    from common.data_files import read_pairs
    from common.models import load_model
    from common.records import RunRecord, write_atomically
    from evaluation.utils.scoring.similarity import pairwise_similarities
    from evaluation.utils.scoring.statistics import Estimate, bootstrap, paired_mean, spearman

    record = RunRecord(options.output_dir / "lift.json", {"seeds": options.seeds, "recipe": "configs/quickstart.json"})
    subsets = read_pairs(PAIRS)
    estimates: dict[tuple[int, str, str], list[Estimate]] = {}  # seed, model, subset: one for each dimension
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            run = Path(folder, f"seed-{seed}")
            command = [
                "training/hybrid_training.py",
                "--config",
                "configs/quickstart.json",
                "--seed",
                str(seed),
                "--output_dir",
                str(run),
            ]
            subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            for name in ("final", "untrained"):
                model = load_model(str(run / name))
                for subset, pairs in subsets.items():
                    first, second = (
                        model.encode(pairs[column], show_progress_bar=False) for column in ("sentence1", "sentence2")
                    )
                    cosines = [pairwise_similarities(first[:, :dim], second[:, :dim])["cosine"] for dim in DIMS]
                    estimates[seed, name, subset] = bootstrap(
                        spearman(pairs["score"], cosines), len(pairs["score"]), sample="sts_pairs"
                    )

    lines = [
        "| subset | model | " + " | ".join(map(str, DIMS)) + " | mean |",
        "|---|---|" + "---:|" * (len(DIMS) + 1),
    ]
    lifts = {}
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
            lines.append(f"| {subset} | {label} | " + " | ".join(f"{100 * e.value:.1f}" for e in values) + " |")
        rises = [
            trained - untrained for trained, untrained in zip(over_seeds["final"], over_seeds["untrained"], strict=True)
        ]
        cells = []
        for rise in [*rises, paired_mean(rises)]:
            low, high = rise.interval()
            cells.append(f"{100 * rise.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        lines.append(f"| {subset} | **rise** | " + " | ".join(cells) + " |")
        by_seed = {
            seed: paired_mean(estimates[seed, "final", subset]).value
            - paired_mean(estimates[seed, "untrained", subset]).value
            for seed in options.seeds
        }
        lifts[subset] = {
            "mean_rise": paired_mean(rises).value,
            "interval": paired_mean(rises).interval(),
            "p": paired_mean(rises).p_value(),
            "by_seed": by_seed,
        }
    note = (
        f"Spearman × 100 on the {len(next(iter(subsets.values()))['score'])} pairs of each subset of the sample, mean over {len(options.seeds)} seeds; "
        "in brackets the 95% interval of the paired bootstrap over the pairs."
    )
    text = "\n".join(lines) + f"\n\n{note}\n"
    write_atomically(options.output_dir / "lift.md", text)
    record.finish(rises=lifts)
    print(text)


if __name__ == "__main__":
    main()
