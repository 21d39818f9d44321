"""Shared by the benchmarks: the command line, the record, the table, and measurements in new processes.

``benchmarks/train_cost.py`` writes ``cost.json`` (the record: command, configuration, versions, hardware, git commit, wall time,
measurements) and ``cost.md`` (the table) to ``--output_dir``, by default ``results/train_cost``. A benchmark is a script of this shape:

    def main(argv: list[str] | None = None) -> None:
        parser = make_parser(__file__, __doc__)
        parser.add_argument("--steps", type=int, default=20, help="steps to time (default: %(default)s)")
        options = parser.parse_args(argv)
        record = start_record(__file__, options)
        results = [measure_in_new_process(measure, steps=options.steps)]
        finish(record, markdown_table(["steps", "seconds"], ...), results=results)

    if __name__ == "__main__":
        run(main)
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.flags import Parser
from common.records import RunRecord, write_atomically
from common.script import set_up_logging


def make_parser(script: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that shows a benchmark's docstring, with ``--output_dir``."""
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("results", Path(script).stem),
        help="folder for the results (default: %(default)s)",
    )
    return parser


def start_record(script: str, options: argparse.Namespace, **config: Any) -> RunRecord:
    """Set up logging and start the record of ``script``, with ``options`` and ``config`` as its configuration."""
    set_up_logging()
    name = Path(script).stem.split("_")[-1]
    return RunRecord(options.output_dir / f"{name}.json", vars(options) | config)


def finish(record: RunRecord, table: str, **measurements: Any) -> None:
    """Write the table next to the record, complete the record, and print the table."""
    write_atomically(record.path.with_suffix(".md"), table)
    record.finish(**measurements)
    print(table)


def markdown_table(head: list[str], rows: Iterable[list[str]], text_columns: int = 1) -> str:
    """Return a Markdown table. The first ``text_columns`` columns are left-aligned; the others, numbers, are right-aligned."""
    rule = "|---" * text_columns + "|---:" * (len(head) - text_columns) + "|"
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def measure_in_new_process(measure: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Return ``measure(**arguments)``, called in a new process with its own peak memory, caches and threads.

    Args:
        measure: A function at the top level of a module.
        **arguments: Its arguments; they and the result are pickled.

    Raises:
        RunError: The process died, for example because it ran out of memory. Exceptions raised by ``measure`` propagate.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=set_up_logging) as pool:
        try:
            return pool.submit(measure, **arguments).result()
        except BrokenProcessPool:
            raise RunError(f"the process that measured {arguments} died; is there enough memory?") from None
