"""The arithmetic of an epoch: rows, steps, rows carried over and rows never seen, before and after.

    python benchmarks/epoch_rows.py --data sentence-transformers/all-nli --name triplet
    python benchmarks/epoch_rows.py --positives_per_anchor 10

"Before" is sentence-transformers' sampler without duplicated texts, run for rows / batch size steps as its trainer does;
"after" is this project's. The table goes to standard output; nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from itertools import islice


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set on the Hub, or a file, for the loss mnrl")
    parser.add_argument("--name", help="its configuration on the Hub")
    parser.add_argument("--positives_per_anchor", type=int, default=10, help="without --data: positives of each anchor")
    parser.add_argument("--rows", type=int, default=4000, help="without --data: how many rows")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[128], help="rows of a batch")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)

    import torch
    from datasets import Dataset
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    from training.utils.data_loading import load_training_data
    from training.utils.options import DatasetEntry
    from training.utils.sampling import GlobalBatchSampler

    if args.data:
        dataset = load_training_data(DatasetEntry(args.data, "mnrl", name=args.name))
    else:
        anchors = [f"anchor {row // args.positives_per_anchor}" for row in range(args.rows)]
        dataset = Dataset.from_dict({"anchor": anchors, "positive": [f"positive {row}" for row in range(args.rows)]})

    print(
        "| batch size | sampler | rows | steps | rows seen | seen twice | never seen | carried over | smallest batch | s |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for size in args.batch_size:
        for label in ("before", "after"):
            start = time.perf_counter()
            if label == "before":
                old = NoDuplicatesBatchSampler(
                    dataset, size, False, precompute_hashes=True, generator=torch.Generator(), seed=args.seed
                )
                old.precompute_num_proc = None
                steps, carried = list(islice(old, len(old))), "-"
            else:
                sampler = GlobalBatchSampler(dataset, size, seed=args.seed)
                steps, carried = list(sampler), sampler.first.carried
            seconds = time.perf_counter() - start
            drawn = [row for step in steps for row in step]
            seen = len(set(drawn))
            print(
                f"| {size} | {label} | {len(dataset)} | {len(steps)} | {seen} | {len(drawn) - seen} | {len(dataset) - seen} | {carried} | {min(map(len, steps))} | {seconds:.1f} |"
            )


if __name__ == "__main__":
    main()
