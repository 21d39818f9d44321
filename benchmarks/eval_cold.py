"""Measures where the time of a first evaluation goes: imports, models, test data, encoding, scores, analysis and report.

    python benchmarks/eval_cold.py --model_name sentence-transformers/all-MiniLM-L6-v2

Runs evaluation/evaluate_mteb.py on its default tasks with an empty output folder, alternating with a process that only imports
the same libraries. Imports cannot be timed within the run, because libraries load parts of themselves on first use. Therefore the
overhead is the time of the run minus the imports alone and minus encoding.
Writes cold.json and cold.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import logging
import statistics
import subprocess
import tempfile
import time

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.config import ROOT
from common.errors import RunError, run

LIBRARIES = ("sentence_transformers", "mteb", "scipy.stats", "pandas", "matplotlib.pyplot", "jinja2")
PHASES = ("test data", "models", "encoding", "scores", "analysis", "report")

logger = logging.getLogger(__name__)


def seconds_of(command: list[str]) -> float:
    """Return the wall time of a Python command in a new process.

    Raises:
        RunError: The command failed; the message contains the end of its error output.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"python {' '.join(command)} failed: {done.stderr[-500:]}")
    return time.perf_counter() - start


def measure(model_name: str) -> dict[str, float]:
    """Return the seconds of the imports alone, of a complete evaluation, and of each of its phases."""
    imports = seconds_of(["-c", f"import {', '.join(LIBRARIES)}"])
    with tempfile.TemporaryDirectory() as folder:
        total = seconds_of(["evaluation/evaluate_mteb.py", "--model_name", model_name, "--output_dir", folder])
        phases = json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))["seconds"]
    return {"total": total, "imports": imports, **phases, "overhead": total - imports - phases["encoding"]}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--model_name", default="sentence-transformers/all-MiniLM-L6-v2", help="model to score (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: %(default)s)")
    options = parser.parse_args(argv)
    record = start_record(__file__, options)
    runs = []
    for _ in range(options.repeats):
        runs.append({name: round(seconds, 2) for name, seconds in measure(options.model_name).items()})
        logger.info("%.1f s in total, %.1f s overhead", runs[-1]["total"], runs[-1]["overhead"])
        record.write(runs=runs)
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    finish(record, report(medians), medians=medians)


def report(medians: dict[str, float]) -> str:
    """Return the table in Markdown, with a caption."""
    rows = [
        ["complete run", medians["total"]],
        ["imports alone, in another process", medians["imports"]],
        ["encoding", medians["encoding"]],
        ["overhead (complete run − imports − encoding)", medians["overhead"]],
        *([f"phase: {name}", medians[name]] for name in PHASES if name != "encoding"),
    ]
    table = markdown_table(["part", "seconds, median"], [[name, f"{seconds:.1f}"] for name, seconds in rows])
    note = (
        "Each row is a median over the runs, so the rows do not add up exactly. The phases exclude encoding and the start of the program. "
        "Each includes the imports of the libraries that it is the first to use."
    )
    return f"{table}\n{note}\n"


if __name__ == "__main__":
    run(main)
