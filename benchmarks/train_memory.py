"""Measures whether a long run grows: memory, open files and threads of a training script, step by step.

    python benchmarks/train_memory.py                              # 2,000 steps of configs/static.json, 200 of all-MiniLM-L6-v2
    python benchmarks/train_memory.py --runs static --steps 500
    python benchmarks/train_memory.py --runs minilm --in_use
    python benchmarks/train_memory.py --runs static -- --train_data my_triplets.csv

Each run is the real script in a new process, sampled from outside after each step. Memory is anonymous PSS, the process's
proportional share of memory that no file backs. It includes freed memory that the C library keeps. With --in_use, glibc returns every
freed block of 1 MiB or more at once, which takes longer, so nearly all that remains is in use. The first fifth of the steps is
warm-up; growth compares the medians of the first and the last quarter of the remaining steps. Flags after -- go to the training
script. Writes memory.json and memory.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import os
import re
import subprocess
import tempfile
from statistics import median

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.config import ROOT
from common.errors import RunError, run

RUNS = {
    "static": (2000, ("--config", str(ROOT / "configs/static.json"))),
    "minilm": (200, ("sentence-transformers/all-MiniLM-L6-v2",)),
}
WARM_UP = 0.2
IN_USE = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # environment variables that --in_use sets

logger = logging.getLogger(__name__)


def sample(pid: int, step: int) -> dict[str, float]:
    """Return the anonymous memory in MiB, the open files and the threads of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "step": step,
        "mib": int(fields["Pss_Anon"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def measure(flags: tuple[str, ...], steps: int, in_use: bool = False) -> list[dict[str, float]]:
    """Train, and return a sample for each step, taken when the script logs the step's loss."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "training/matryoshka_nli.py"), *flags, "--max_steps", str(steps)]
        command += ["--logging_steps", "1", "--output_dir", folder]
        logger.info(" ".join(command[1:]))
        with subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | (IN_USE if in_use else {}),
        ) as process:
            log = []
            for line in process.stderr:
                log.append(line)
                if logged_step := re.search(r"step (\d+) of \d+, loss", line):
                    samples.append(sample(process.pid, int(logged_step[1])))
                    logger.info("%s", samples[-1])
        if process.returncode:
            logger.error("".join(log[-20:]))
            raise RunError(f"the training script ended with exit code {process.returncode}; its last lines are above")
    return samples


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return memory (MiB) and its growth (%), open files and threads in the first and last quarter after the warm-up."""
    warm = [entry for entry in samples if entry["step"] > WARM_UP * samples[-1]["step"]]
    quarter = max(1, len(warm) // 4)
    first, last = (
        {key: median(e[key] for e in part) for key in samples[0]} for part in (warm[:quarter], warm[-quarter:])
    )
    return {
        "mib": round(first["mib"], 1),
        "mib_at_the_end": round(last["mib"], 1),
        "growth_percent": round(100 * (last["mib"] / first["mib"] - 1), 2),
        "files": first["files"],
        "files_at_the_end": last["files"],
        "threads": first["threads"],
        "threads_at_the_end": last["threads"],
    }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which runs (default: all)")
    parser.add_argument("--steps", type=int, help="steps of each run (default: 2,000 and 200)")
    parser.add_argument("--in_use", action="store_true", help="exclude freed memory that the C library keeps")
    own, flags = sys.argv[1:] if argv is None else argv, []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)

    record = start_record(__file__, options, flags=flags)
    head = ["run", "steps", "MiB after warm-up", "MiB at the end", "growth", "open files", "threads"]
    runs, rows = {}, []
    for name in options.runs:
        default_steps, arguments = RUNS[name]
        steps = options.steps or default_steps
        samples = measure((*arguments, *flags), steps, options.in_use)
        change = growth(samples)
        runs[name] = change | {"steps": steps, "samples": samples}
        record.write(runs=runs)
        rows.append(
            [
                f"{name}{', in use' if options.in_use else ''}",
                f"{steps:,}",
                f"{change['mib']:.1f}",
                f"{change['mib_at_the_end']:.1f}",
                f"{change['growth_percent']:+.2f}%",
                f"{change['files']:g} to {change['files_at_the_end']:g}",
                f"{change['threads']:g} to {change['threads_at_the_end']:g}",
            ]
        )
    finish(record, markdown_table(head, rows))


if __name__ == "__main__":
    run(main)
