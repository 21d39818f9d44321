"""Whether a long run grows: memory, open files and threads of a training script, step by step.

    python benchmarks/train_memory.py                              # 2,000 steps of configs/static.json, 200 of all-MiniLM-L6-v2
    python benchmarks/train_memory.py --runs static --steps 500
    python benchmarks/train_memory.py --runs minilm --in_use
    python benchmarks/train_memory.py --runs static -- --train_data my_triplets.csv

Each run is the real script in a process of its own, looked at from outside after each step. Memory is what only
this process has and the system cannot take back (anonymous PSS), with what the C library keeps of freed memory; with
--in_use, without that: glibc then gives every freed piece of a MiB and more back at once, which takes longer. The first fifth
of the steps is warm-up; growth is from the first to the last quarter of the rest, in medians. Flags after -- go to the script.
Results go to --output_dir as memory.json and memory.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import re
import subprocess
import tempfile
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "static": (2000, ("--config", str(ROOT / "configs/static.json"))),
    "minilm": (200, ("sentence-transformers/all-MiniLM-L6-v2",)),
}
WARM_UP = 0.2
IN_USE = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # of the environment


def sample(pid: int, step: int) -> dict[str, float]:
    """Anonymous memory in MiB, open files and threads of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "step": step,
        "mib": int(fields["Pss_Anon"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def measure(flags: tuple[str, ...], steps: int, in_use: bool = False) -> list[dict[str, float]]:
    """A sample for each step of a training run, which reports its loss then."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "training/matryoshka_nli.py"), *flags, "--max_steps", str(steps)]
        command += ["--logging_steps", "1", "--output_dir", folder]
        print(" ".join(command[1:]), file=sys.stderr)
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
                if found := re.search(r"step (\d+) of \d+, loss", line):
                    samples.append(sample(process.pid, int(found[1])))
                    print(samples[-1], file=sys.stderr)
        if process.returncode:
            raise SystemExit(f"the run failed:\n{''.join(log[-20:])}")
    return samples


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """From the first to the last quarter of the samples after the warm-up: MiB, and their growth in percent; files; threads."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which runs (default: all)")
    parser.add_argument("--steps", type=int, help="steps of each run (default: 2,000 and 200)")
    parser.add_argument("--in_use", action="store_true", help="without what the C library keeps of freed memory")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("results/memory"), help="folder of the results (default: %(default)s)"
    )
    given, flags = sys.argv[1:], []
    if "--" in given:
        given, flags = given[: given.index("--")], given[given.index("--") + 1 :]
    options = parser.parse_args(given)

    from common.records import RunRecord, write_atomically

    record = RunRecord(options.output_dir / "memory.json", vars(options) | {"flags": flags})
    lines = ["| run | steps | MiB after warm-up | MiB at the end | growth | open files | threads |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    runs = {}
    for name in options.runs:
        steps, arguments = RUNS[name]
        samples = measure((*arguments, *flags), options.steps or steps, options.in_use)
        found = growth(samples)
        runs[name] = found | {"steps": options.steps or steps, "samples": samples}
        record.write(runs=runs)
        lines.append(
            f"| {name}{', in use' if options.in_use else ''} | {runs[name]['steps']:,} | {found['mib']:.1f} | {found['mib_at_the_end']:.1f} | {found['growth_percent']:+.2f}% "
            f"| {found['files']:g} to {found['files_at_the_end']:g} | {found['threads']:g} to {found['threads_at_the_end']:g} |"
        )
    text = "\n".join(lines) + "\n"
    record.finish(runs=runs)
    write_atomically(options.output_dir / "memory.md", text)
    print(text)


if __name__ == "__main__":
    main()
