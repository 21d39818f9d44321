"""How training grows: time per triplet with the rows of the data set, and memory with the batch under GradCache.

    python benchmarks/train_growth.py sentence-transformers/all-MiniLM-L6-v2

Time: 50 steps of batch 128 at 1,000, 30,000 and 557,850 rows (the data repeated), with the seconds from the start of training to
the end of the first step. Memory: the peak at batch 512 and at 4,096 with --mini_batch_size 64. Results go to --output_dir as
growth.json and growth.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import subprocess

ROWS = (1_000, 30_000, 557_850)
BATCHES = (512, 4_096)


def measure(model: str, **options: int) -> dict:
    """A run of train_throughput.py's ``ours``, in a process of its own."""
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    script = Path(__file__).with_name("train_throughput.py")
    command = [sys.executable, str(script), model, *flags, "--run", "ours", "--seed", "1"]
    print(" ".join(command[1:]), file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument(
        "--output_dir", type=Path, default=Path("results/growth"), help="folder of the results (default: %(default)s)"
    )
    options = parser.parse_args()

    from common.records import RunRecord, write_atomically

    record = RunRecord(options.output_dir / "growth.json", vars(options))
    lines = ["| rows | s per 1,000 triplets | start of training to the end of the first step, s |", "|---:|---:|---:|"]
    by_rows = {}
    for rows in ROWS:
        found = by_rows[rows] = measure(options.model_name, rows=rows, steps=options.steps)
        lines.append(f"| {rows:,} | {1000 / found['triplets_per_s']:.2f} | {found['first_step_after_s']:.1f} |")
        record.write(by_rows=by_rows)
    lines += ["", "| batch, in mini-batches of 64 | peak memory, GiB | × batch 512 |", "|---:|---:|---:|"]
    by_batch = {}
    for batch in BATCHES:
        found = by_batch[batch] = measure(
            options.model_name, rows=30_000, batch_size=batch, mini_batch_size=64, steps=options.memory_steps
        )
        lines.append(
            f"| {batch:,} | {found['peak_memory_gib']:.2f} | {found['peak_memory_gib'] / by_batch[BATCHES[0]]['peak_memory_gib']:.2f} |"
        )
        record.write(by_batch=by_batch)
    text = "\n".join(lines) + "\n"
    write_atomically(options.output_dir / "growth.md", text)
    record.finish()
    print(text)


if __name__ == "__main__":
    main()
