"""Measures how training scales: time per triplet as the data set grows, and memory under GradCache as the batch grows.

    python benchmarks/train_growth.py sentence-transformers/all-MiniLM-L6-v2

Time: 50 steps of batch 128 at 1,000, 30,000 and 557,850 rows (the data repeated), and the seconds from the start of training to the
end of the first step. Memory: the peak at batch 512 and at batch 4,096, both with mini-batches of 64. Writes growth.json and growth.md to
--output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging

from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from benchmarks.train_throughput import OURS, train_once
from common.errors import run

ROWS = (1_000, 30_000, 557_850)
BATCHES = (512, 4_096)
MINI_BATCH = 64

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("model_name", help="the model to start from")
    parser.add_argument(
        "--steps", type=int, default=50, help="steps to time at each number of rows (default: %(default)s)"
    )
    parser.add_argument(
        "--memory_steps",
        type=int,
        default=1,
        help="steps at each batch size, after two to warm up (default: %(default)s)",
    )
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    ours = {"model_name": options.model_name, "kind": OURS}
    by_rows, by_batch = {}, {}
    for rows in ROWS:
        logger.info("%d rows", rows)
        by_rows[rows] = measure_in_new_process(train_once, **ours, rows=rows, steps=options.steps)
        record.write(by_rows=by_rows)
    for batch in BATCHES:
        logger.info("batch %d in mini-batches of %d", batch, MINI_BATCH)
        flags = {"rows": ROWS[1], "batch_size": batch, "mini_batch_size": MINI_BATCH, "steps": options.memory_steps}
        by_batch[batch] = measure_in_new_process(train_once, **ours, **flags)
        record.write(by_batch=by_batch)

    times = [
        [f"{rows:,}", f"{1000 / result['triplets_per_s']:.2f}", f"{result['first_step_after_s']:.1f}"]
        for rows, result in by_rows.items()
    ]
    smallest = by_batch[BATCHES[0]]["peak_memory_gib"]
    peaks = [
        [f"{batch:,}", f"{result['peak_memory_gib']:.2f}", f"{result['peak_memory_gib'] / smallest:.2f}"]
        for batch, result in by_batch.items()
    ]
    head = ["rows", "s per 1,000 triplets", "from the start of training to the end of the first step, s"]
    text = markdown_table(head, times, text_columns=0)
    head = [f"batch size, in mini-batches of {MINI_BATCH}", "peak memory, GiB", f"relative to batch size {BATCHES[0]}"]
    text += "\n" + markdown_table(head, peaks, text_columns=0)
    finish(record, text)


if __name__ == "__main__":
    run(main)
