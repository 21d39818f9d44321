"""Counts the rows and steps of an epoch, and the rows carried over and never used, with the library's sampler and this project's.

    python benchmarks/epoch_rows.py --data sentence-transformers/all-nli --name triplet
    python benchmarks/epoch_rows.py --positives_per_anchor 10

"before" is sentence-transformers' no-duplicates sampler, run for rows / batch size steps, as the library's trainer runs it;
"after" is this project's sampler. Nothing is trained. Writes rows.json and rows.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import time
from itertools import islice

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import run

logger = logging.getLogger(__name__)

HEAD = [
    "sampler",
    "batch size",
    "rows",
    "steps",
    "rows seen",
    "seen twice",
    "never seen",
    "carried over",
    "smallest batch",
    "s",
]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--data", help="a data set on the Hub, or a file, for the loss mnrl")
    parser.add_argument("--name", help="its configuration on the Hub")
    parser.add_argument("--positives_per_anchor", type=int, default=10, help="without --data: positives per anchor")
    parser.add_argument("--rows", type=int, default=4000, help="without --data: number of rows")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[128], help="rows in a batch")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(argv)
    record = start_record(__file__, options)

    import torch
    from datasets import Dataset
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    from training.utils.data_loading import load_training_data
    from training.utils.options import DatasetEntry
    from training.utils.sampling import GlobalBatchSampler

    if options.data:
        dataset = load_training_data(DatasetEntry(options.data, "mnrl", name=options.name))
    else:
        anchors = [f"anchor {row // options.positives_per_anchor}" for row in range(options.rows)]
        dataset = Dataset.from_dict({"anchor": anchors, "positive": [f"positive {row}" for row in range(options.rows)]})

    cells = []
    for size in options.batch_size:
        for label in ("before", "after"):
            start = time.perf_counter()
            if label == "before":
                plain = NoDuplicatesBatchSampler(
                    dataset, size, False, precompute_hashes=True, generator=torch.Generator(), seed=options.seed
                )
                plain.precompute_num_proc = None
                steps, carried = list(islice(plain, len(plain))), "–"
            else:
                sampler = GlobalBatchSampler(dataset, size, seed=options.seed)
                steps, carried = list(sampler), str(sampler.first.carried)
            seconds = time.perf_counter() - start
            drawn = [row for step in steps for row in step]
            seen = len(set(drawn))
            numbers = [size, len(dataset), len(steps), seen, len(drawn) - seen, len(dataset) - seen]
            cells.append([label, *map(str, numbers), carried, str(min(map(len, steps))), f"{seconds:.1f}"])
    finish(record, markdown_table(HEAD, cells), epochs=[dict(zip(HEAD, row, strict=True)) for row in cells])


if __name__ == "__main__":
    run(main)
