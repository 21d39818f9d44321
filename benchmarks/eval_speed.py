"""Compares the speed of encoding once for all dimensions with that of loading a model and running mteb for each dimension.

    python benchmarks/eval_speed.py --model_name sentence-transformers/all-MiniLM-L6-v2 --tasks STS17 STSBenchmark

Plain: for each dimension a SentenceTransformer(truncate_dim=d) and mteb.evaluate with cache=None on the same tasks. Ours: the code of
evaluate_mteb.py that computes the same scores, from an empty output directory, without and with intervals. Floor: load the model and
encode each distinct text once, packed, and nothing else. No evaluation of this kind can be faster than the floor, so plain divided by
floor is the largest possible ratio. The times include loading the models, but neither imports nor loading the data. The four alternate.
The benchmark fails unless the scores are equal and ours encodes each distinct text exactly once.
Writes speed.json and speed.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.config import default
from common.errors import RunError, run

TOLERANCE = 1e-5  # between scores that should be equal
METHODS = (  # name, and the keys of its seconds and of its number of texts
    ("plain", "plain_s", "plain_texts"),
    ("ours", "ours_s", "ours_texts"),
    ("ours, with intervals", "ours_with_intervals_s", "ours_texts"),
    ("floor: loading and encoding only", "floor_s", "ours_texts"),
)

logger = logging.getLogger(__name__)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Yield a counter whose ``texts`` is the number of texts that have reached a forward pass."""
    from sentence_transformers import SentenceTransformer

    counter, forward = Counter(), SentenceTransformer.forward

    def counted(model, features, *args, **kwargs):
        counter["texts"] += len(features["attention_mask" if "attention_mask" in features else "offsets"])
        return forward(model, features, *args, **kwargs)

    SentenceTransformer.forward = counted
    try:
        yield counter
    finally:
        SentenceTransformer.forward = forward


def ours(
    model_name: str, tasks: list, dims: list[int], batch_size: int, with_intervals: bool
) -> tuple[float, int, dict]:
    """Return seconds, texts encoded, and scores by task, subset and dimension."""
    from common.models import identify, load_model
    from common.packing import pack
    from evaluation.utils.analysis.model_analysis import pair_estimates, similarity_columns
    from evaluation.utils.scoring.embeddings import EmbeddingStore, cache_folder
    from evaluation.utils.scoring.mteb_run import MTEBRun
    from evaluation.utils.scoring.rows import ScoredModel
    from evaluation.utils.scoring.task_data import pair_sets

    identity = identify(model_name)
    with tempfile.TemporaryDirectory() as folder, counting() as counter:
        start = time.perf_counter()
        model = pack(load_model(model_name, identity))
        counter.clear()  # packing encodes a few texts to check itself
        scored_model = ScoredModel(identity)
        store = EmbeddingStore(model, cache_folder(Path(folder), scored_model), batch_size)
        scorer = MTEBRun(store, scored_model, dims, Path(folder), batch_size)
        rows = scorer.score(tasks)
        if with_intervals:
            for task in tasks:
                for pairs in pair_sets(task, scorer.encoder()):
                    for estimate in pair_estimates(pairs, similarity_columns(pairs, dims, None)).values():
                        estimate.interval()
        seconds = time.perf_counter() - start
    return seconds, counter["texts"], {(row.task, row.subset, row.dim): row.score for row in rows}


def plain(model_name: str, tasks: list, dims: list[int], batch_size: int) -> tuple[float, int, dict]:
    """Return seconds, texts encoded, and scores by task, subset and dimension."""
    import mteb
    from sentence_transformers import SentenceTransformer

    quiet = {"show_progress_bar": False, "co2_tracker": False}
    encode = {"batch_size": batch_size, "show_progress_bar": False}
    scores = {}
    with counting() as counter:
        start = time.perf_counter()
        for dim in dims:
            model = SentenceTransformer(model_name, truncate_dim=dim)
            for result in mteb.evaluate(model, tasks, cache=None, encode_kwargs=encode, **quiet).task_results:
                for entry in next(iter(result.scores.values())):
                    scores[result.task_name, entry["hf_subset"], dim] = entry["main_score"]
        seconds = time.perf_counter() - start
    return seconds, counter["texts"], scores


def floor(model_name: str, texts: set[str], batch_size: int) -> float:
    """Return the seconds to load the model and encode each text once, packed."""
    from common.models import identify, load_model
    from common.packing import pack

    start = time.perf_counter()
    pack(load_model(model_name, identify(model_name))).encode(sorted(texts), batch_size=batch_size)
    return time.perf_counter() - start


def check_equal(expected: dict, scores: dict) -> None:
    """Raise RunError unless both methods computed the same scores."""
    if expected.keys() != scores.keys():
        raise RunError(f"only one of the two methods has scores for {sorted(expected.keys() ^ scores.keys())}")
    if different := [key for key in scores if abs(expected[key] - scores[key]) > TOLERANCE]:
        raise RunError(
            f"the two methods disagree on {different[0]}: {expected[different[0]]} and {scores[different[0]]}"
        )


def distinct_texts(tasks: list) -> set[str]:
    """Return the distinct texts of all tasks."""
    texts: set[str] = set()
    for task in tasks:
        for subset in task.hf_subsets:
            data = (task.dataset[subset] if task.metadata.is_multilingual else task.dataset)[task.eval_splits[0]]
            texts |= {text for column in task.column_names for text in data[column]}
    return texts


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--model_name", default="sentence-transformers/all-MiniLM-L6-v2", help="model to score (default: %(default)s)"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["STS17", "STS22", "STS22.v2"], help="mteb tasks (default: %(default)s)"
    )
    parser.add_argument(
        "--subsets",
        nargs="+",
        default=default("eval_config.json", "subsets"),
        help="subsets of the tasks (default: %(default)s)",
    )
    parser.add_argument(
        "--dims",
        type=int,
        nargs="+",
        default=[384, 256, 128, 64, 32],
        help="dimensions to score (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts per forward pass (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: %(default)s)")
    options = parser.parse_args(argv)

    from evaluation.utils.scoring.tasks import choose_tasks, load_task_data

    record = start_record(__file__, options)
    dims = sorted(options.dims, reverse=True)
    tasks = choose_tasks(options.tasks, None, [], options.subsets, options.subsets)
    for task in tasks:
        load_task_data(task)
    texts = distinct_texts(tasks)
    distinct = len(texts)
    runs = []
    for _ in range(options.repeats):
        arguments = (options.model_name, tasks, dims, options.batch_size)
        plain_s, plain_texts, expected = plain(*arguments)
        ours_s, ours_texts, scores = ours(*arguments, with_intervals=False)
        intervals_s, intervals_texts, _ = ours(*arguments, with_intervals=True)
        floor_s = floor(options.model_name, texts, options.batch_size)
        check_equal(expected, scores)
        if not ours_texts == intervals_texts == distinct:
            raise RunError(f"{ours_texts} and {intervals_texts} texts were encoded; the tasks have {distinct}")
        runs.append({"plain_s": plain_s, "ours_s": ours_s, "ours_with_intervals_s": intervals_s, "floor_s": floor_s,
                     "plain_texts": plain_texts, "ours_texts": ours_texts})  # fmt: skip
        logger.info("plain %.1f s, ours %.1f s, with intervals %.1f s, floor %.1f s", *list(runs[-1].values())[:4])
        record.write(runs=runs)

    ratios = {key: statistics.median(run["plain_s"] / run[key] for run in runs) for _, key, _ in METHODS}
    finish(record, report(runs, ratios), distinct_texts=distinct, median_ratios=ratios)


def report(runs: list[dict], ratios: dict[str, float]) -> str:
    """Return the table in Markdown, with a caption: medians of the runs, and the median ratios to the plain method."""
    head = ["method", "seconds, median", "times as fast", "share of the fastest possible speed", "texts encoded"]
    rows = [
        [
            name,
            f"{statistics.median(run[key] for run in runs):.1f}",
            f"{ratios[key]:.2f}",
            f"{100 * statistics.median(run['floor_s'] / run[key] for run in runs):.0f}%",
            str(runs[0][texts_key]),
        ]
        for name, key, texts_key in METHODS
    ]
    note = (
        "Each column is a median over the rounds, so the ratios differ from those of the median times. The plain method and ours compute "
        f"the same scores to within {TOLERANCE:g}."
    )
    return f"{markdown_table(head, rows)}\n{note}\n"


if __name__ == "__main__":
    run(main)
