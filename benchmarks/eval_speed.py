"""Times one encode for all dimensions against the plain way: a model and an mteb run for each dimension.

    python benchmarks/eval_speed.py --model_name sentence-transformers/all-MiniLM-L6-v2

Plain: for each dimension a SentenceTransformer(truncate_dim=d) and mteb.evaluate with cache=None over the same tasks. Ours:
what evaluate_mteb.py does to score the same, from an empty output folder. Imports and the loading of data are not counted,
the loading of models is. The two alternate; texts that reach a forward pass are counted, and the scores must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import mteb
from sentence_transformers import SentenceTransformer

from common.config import default
from common.models import identify, load_model
from common.packing import pack
from common.records import hardware, versions, write_atomically
from common.script import set_up_logging
from evaluation.utils.analysis.model_analysis import pair_estimates
from evaluation.utils.scoring.embeddings import EmbeddingStore, cache_folder
from evaluation.utils.scoring.mteb_run import MTEBRun
from evaluation.utils.scoring.rows import ScoredModel
from evaluation.utils.scoring.task_data import pair_sets
from evaluation.utils.scoring.tasks import choose_tasks, load_task_data


class Counter:
    """Counts the texts that reach a forward pass."""

    def __init__(self):
        self.texts = 0
        self.forward = SentenceTransformer.forward

    def __enter__(self):
        counter = self

        def counted(model, features, *args, **kwargs):
            counter.texts += (
                len(features["attention_mask"]) if "attention_mask" in features else len(features["offsets"])
            )
            return counter.forward(model, features, *args, **kwargs)

        SentenceTransformer.forward = counted
        return self

    def __exit__(self, *_):
        SentenceTransformer.forward = self.forward


def ours(name, tasks, dims, batch_size, with_intervals):
    identity = identify(name)
    with tempfile.TemporaryDirectory() as folder, Counter() as counter:
        start = time.perf_counter()
        model = pack(load_model(name, identity))
        counter.texts = 0  # packing tried itself out
        scored_model = ScoredModel(identity)
        store = EmbeddingStore(model, cache_folder(Path(folder), scored_model), batch_size)
        scorer = MTEBRun(store, scored_model, dims, Path(folder), batch_size)
        rows = scorer.score(tasks)
        if with_intervals:
            for task in tasks:
                for pairs in pair_sets(task, scorer.encoder()):
                    for estimate in pair_estimates(pairs, dims, None).values():
                        estimate.interval()
        seconds = time.perf_counter() - start
    return seconds, counter.texts, {(r.task, r.subset, r.dim): r.score for r in rows}


def plain(name, tasks, dims, batch_size):
    scores = {}
    with Counter() as counter:
        start = time.perf_counter()
        for dim in dims:
            model = SentenceTransformer(name, truncate_dim=dim)
            for result in mteb.evaluate(model, tasks, cache=None, show_progress_bar=False, co2_tracker=False,
                                        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False}).task_results:  # fmt: skip
                for entry in next(iter(result.scores.values())):
                    scores[result.task_name, entry["hf_subset"], dim] = entry["main_score"]
        seconds = time.perf_counter() - start
    return seconds, counter.texts, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", default=["STS17", "STS22", "STS22.v2"])
    parser.add_argument("--subsets", nargs="+", default=default("eval_config.json", "subsets"))
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 256, 128, 64, 32])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    set_up_logging()

    dims = sorted(arguments.dims, reverse=True)
    tasks = choose_tasks(arguments.tasks, None, [], arguments.subsets, arguments.subsets)
    distinct: set[str] = set()
    for task in tasks:
        load_task_data(task)
        for subset in task.hf_subsets:
            data = (task.dataset[subset] if task.metadata.is_multilingual else task.dataset)[task.eval_splits[0]]
            distinct |= {text for column in task.column_names for text in data[column]}
    arguments_of = (arguments.model_name, tasks, dims, arguments.batch_size)
    runs = []
    for _ in range(arguments.repeats):
        slow, texts_slow, expected = plain(*arguments_of)
        fast, texts_fast, found = ours(*arguments_of, with_intervals=False)
        sure, texts_sure, _ = ours(*arguments_of, with_intervals=True)
        assert expected.keys() == found.keys() and all(abs(expected[key] - found[key]) <= 1e-5 for key in found)
        assert texts_fast == texts_sure == len(distinct), (texts_fast, len(distinct))
        runs.append(
            {
                "plain_s": slow,
                "ours_s": fast,
                "ours_with_intervals_s": sure,
                "plain_texts": texts_slow,
                "ours_texts": texts_fast,
            }
        )
        print(" ".join(f"{key} {value:.6g}" for key, value in runs[-1].items()), f"ratio {slow / fast:.2f}", flush=True)
    ratios = [run["plain_s"] / run["ours_s"] for run in runs]
    sure = [run["plain_s"] / run["ours_with_intervals_s"] for run in runs]
    print(f"median: {statistics.median(ratios):.2f} times faster, {statistics.median(sure):.2f} with intervals; "
          f"{runs[0]['plain_texts']} texts encoded against {runs[0]['ours_texts']}; scores equal to within 1e-5")  # fmt: skip
    if arguments.output:
        record = {"model": arguments.model_name, "tasks": arguments.tasks, "subsets": arguments.subsets, "dims": dims,
                  "distinct_texts": len(distinct), "median_ratio": statistics.median(ratios), "median_ratio_with_intervals":
                  statistics.median(sure), "runs": runs, "hardware": hardware(), "versions": versions()}  # fmt: skip
        write_atomically(arguments.output, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
