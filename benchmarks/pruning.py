"""What pruning the vocabulary costs and saves: size, memory, time of a training step, and scores before and after.

    python benchmarks/pruning.py                              # the recipe "multilingual" of benchmarks/recipes.json
    python benchmarks/pruning.py --row multilingual-all --steps 0

The model of the recipe is pruned on the recipe's training texts, and not trained. Both models score STS17 and search texts from outside
the training data. For the time and the memory, the training script runs on the recipe's data without its teachers, with and
without --prune_vocabulary in turn. Writes pruning.json and pruning.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
import re
import subprocess
import tempfile
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.recipes import DIMS, ROOT, ROWS, SUBSETS, load_pairs, resolve
from benchmarks.recipes import score as score_sts
from benchmarks.retrieval import Search, load_searches
from benchmarks.retrieval import score as score_search
from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from common.errors import RunError, run

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SEARCHES = ("translations, news", "questions")  # whose texts no recipe of the row's kind trains on
WARM_UP = 2  # steps that are not timed


def load_config(row: str):
    """The configuration of a row of benchmarks/recipes.json, as the training script reads it."""
    from common.config import load_config as load
    from training.utils.options import HybridConfig

    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(resolve(rows[row], rows)["config"]), encoding="utf-8")
        return load(HybridConfig, "", ["--config", str(file)], positional="model_name")


def prune(row: str, folder: str) -> dict[str, Any]:
    """Save the row's model as it comes to ``folder``/before and pruned to ``folder``/after.

    Returns:
        Rows of the embedding table and parameters before and after, and what became of texts that were not trained on.
    """
    from common.models import load_model
    from training.utils.crosslingual import with_translations
    from training.utils.data_loading import load_training_data
    from training.utils.dev_data import load_development_data
    from training.utils.leaks import drop_leaks
    from training.utils.model_utils import texts_of
    from training.utils.prune_vocabulary import prune_vocabulary

    config = load_config(row)
    entries = {
        name: (entry, with_translations(load_training_data(entry), entry)) for name, entry in config.datasets.items()
    }
    dev_sets, test_sets, _ = load_development_data(config, "en")
    kept, _ = drop_leaks(entries, dev_sets | test_sets, config.keep_leaks)
    model = load_model(config.model_name)
    model.save(f"{folder}/before")
    outside = outside_texts()
    before = {name: segmentations(model, texts) for name, texts in outside.items()}
    sizes = prune_vocabulary(model, texts_of(tuple(kept.values()))).as_dict()
    model.save(f"{folder}/after")
    changes = {
        name: segmentation_changes(before[name], segmentations(model, texts), model) for name, texts in outside.items()
    }
    return sizes | {"texts": changes}


def outside_texts() -> dict[str, list[str]]:
    """Distinct texts that no training set has, by the search they are from."""
    searches = load_searches()
    return {
        name: list(dict.fromkeys(text for s in searches[name] for text in [*s.queries, *s.corpus])) for name in SEARCHES
    }


def segmentations(model: SentenceTransformer, texts: list[str]) -> list[list[str]]:
    """The pieces of each text."""
    return [encoding.tokens for encoding in model.tokenizer.backend_tokenizer.encode_batch(texts)]


def segmentation_changes(before: list[list[str]], after: list[list[str]], model: SentenceTransformer) -> dict[str, Any]:
    """How the pieces of texts changed: texts, the share of them that are as before, the growth in pieces, and unknown pieces."""
    unknown = model.tokenizer.unk_token
    pieces = [sum(map(len, side)) for side in (before, after)]
    return {
        "texts": len(before),
        "unchanged": sum(a == b for a, b in zip(before, after, strict=True)) / len(before),
        "growth": pieces[1] / pieces[0] - 1,
        "unknown": [sum(tokens.count(unknown) for tokens in side) for side in (before, after)],
    }


def time_steps(row: str, pruned: bool, steps: int) -> dict[str, float]:
    """Median seconds of a step and peak memory in MiB of a training run without teachers, in a process of its own."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    whole = resolve(rows[row], rows)
    sets = {name: entry for name, entry in whole["config"]["datasets"].items() if entry["loss"] != "distill"}
    changes = {"datasets": sets, "prune_vocabulary": pruned, "start_share": 0, "prefix_map": False}
    changes |= {"max_steps": WARM_UP + steps, "logging_steps": 1, "dev_data": ["none"], "dev_datasets": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(whole["config"] | changes), encoding="utf-8")
        command = [sys.executable, whole["script"], "--config", str(file), "--output_dir", f"{folder}/run"]
        times: list[float] = []
        log: list[str] = []
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT) as child:
            for line in child.stderr:
                log.append(line)
                if re.search(r"step \d+ of \d+, loss", line):
                    times.append(time.perf_counter())
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RunError(f"{' '.join(command[1:])} ended with exit code {child.returncode}: {''.join(log[-3:])}")
    seconds = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    return {"step_s": median(seconds[WARM_UP - 1 :]), "peak_mib": usage.ru_maxrss / 1024}


def measure_scores(folder: str) -> dict[str, dict[str, float]]:
    """STS17 and search scores × 100 of a saved model, by set and dimension."""
    from common.models import load_model
    from common.packing import pack

    sts, _ = score_sts([folder], False, load_pairs(), {})
    searches: dict[str, list[Search]] = {name: of for name, of in load_searches().items() if name in SEARCHES}
    found = {f"STS17 {subset}": sts[subset] for subset in SUBSETS} | score_search(pack(load_model(folder)), searches)
    return {
        name: {str(dim): 100 * estimate.value for dim, estimate in zip(DIMS, of, strict=True)}
        for name, of in found.items()
    }


def folder_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--row", default="multilingual", help="row of benchmarks/recipes.json (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=8, help="steps to time in each run; 0: none (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each kind, in turn (default: %(default)s)")
    options = parser.parse_args(argv)
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    if options.row not in rows or "model" in rows[options.row]:
        parser.error(
            f"--row {options.row}: not a recipe; there are {', '.join(n for n in rows if 'model' not in rows[n])}"
        )

    record = start_record(__file__, options)
    timings: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for _ in range(options.runs if options.steps else 0):
        for state in timings:
            timings[state].append(time_steps(options.row, state == "after", options.steps))
            record.write(timings=timings)
    with tempfile.TemporaryDirectory() as folder:
        pruning = measure_in_new_process(prune, row=options.row, folder=folder)
        sizes = {state: folder_mib(Path(folder, state)) for state in timings}
        record.write(pruning=pruning, folder_mib=sizes)
        scores = {state: measure_in_new_process(measure_scores, folder=f"{folder}/{state}") for state in timings}
    finish(record, describe(pruning, sizes, timings, scores), pruning=pruning, folder_mib=sizes, scores=scores)


def describe(pruning: dict, sizes: dict, timings: dict, scores: dict) -> str:
    """A table of what pruning saves, one of the scores, and one of the texts."""
    states = ("before", "after")
    lines = [
        ["pieces", *(f"{pruning[f'pieces_{state}']:,}" for state in states)],
        ["parameters, millions", *(f"{pruning[f'parameters_{state}'] / 1e6:.1f}" for state in states)],
        ["folder of the model, MiB", *(f"{sizes[state]:.0f}" for state in states)],
    ]
    if timings["before"]:
        for label, key, digits in (("training step, s", "step_s", 2), ("peak memory of training, MiB", "peak_mib", 0)):
            lines.append([label, *(f"{median(r[key] for r in timings[state]):,.{digits}f}" for state in states)])
    text = markdown_table(["", "before", "after"], lines)
    cells = [
        [name, *(f"{of[str(dim)]:.1f} → {scores['after'][name][str(dim)]:.1f}" for dim in DIMS)]
        for name, of in scores["before"].items()
    ]
    text += "\nScores × 100 before → after, without training:\n\n" + markdown_table(["set", *map(str, DIMS)], cells)
    cells = [
        [
            name,
            f"{change['texts']:,}",
            f"{change['unchanged']:.0%}",
            f"{change['growth']:+.1%}",
            " → ".join(f"{count:,}" for count in change["unknown"]),
        ]
        for name, change in pruning["texts"].items()
    ]
    head = ["texts from outside the training data", "texts", "segmented as before", "pieces", "unknown pieces"]
    return text + "\n" + markdown_table(head, cells)


if __name__ == "__main__":
    run(main)
