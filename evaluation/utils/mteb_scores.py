"""Scores of one model on mteb tasks at every dimension, and what their intervals are drawn from."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from common.errors import RunError, one_line
from common.models import ModelIdentity
from common.records import quarantine, read_json_file, write_atomically
from evaluation.utils.embeddings import EmbeddingStore
from evaluation.utils.mteb_encoder import TruncatedEncoder
from evaluation.utils.mteb_tasks import encode_pairs, label_of, size_of, split_data, why_unscored
from evaluation.utils.statistics import Estimate, bootstrap, mean

logger = logging.getLogger(__name__)

PER_QUERY = {
    "ndcg_at": "ndcg_cut",
    "map_at": "map_cut",
    "recall_at": "recall",
    "precision_at": "P",
    "hit_rate_at": "success",
}
DIGITS = 6  # as in mteb's result files, so that a score read back is the same
PER_PAIR = ("cosine_", "euclidean_", "manhattan_")  # the similarities whose scores the summary keeps


class MTEBScorer:
    """Scores one model on tasks through mteb, and keeps mteb's result files.

    Args:
        store: The model's embeddings.
        output_dir: Result files go under ``mteb/``, the scores of each query of a retrieval task under ``queries/``.
        batch_size: Handed to mteb.
        overwrite: Score again what has been scored before.

    Attributes:
        unscored: Rows without a score, with a ``note`` that says why.
    """

    def __init__(self, store: EmbeddingStore, identity: ModelIdentity, dims: list[int], dtype: str, output_dir: Path,
                 batch_size: int = 32, overwrite: bool = False):  # fmt: skip
        self.store, self.identity, self.dims, self.dtype = store, identity, dims, dtype
        self.batch_size, self.overwrite = batch_size, overwrite
        self.unscored: list[dict[str, Any]] = []
        self.cache = WholeFiles(output_dir / "mteb")
        self.queries = output_dir / "queries" / identity.name.replace("/", "__") / f"{identity.revision}-{dtype}"

    def encoder(self, dim: int | None = None) -> TruncatedEncoder:
        return TruncatedEncoder(self.store, self.identity, dim or self.store.width, self.dtype)

    def score(self, tasks: list[Any]) -> list[dict[str, Any]]:
        """One row for each task, subset and dimension; those without a score go to ``unscored``.

        Raises:
            RunError: A task fails.
        """
        rows: list[dict[str, Any]] = []
        encode_pairs(tasks, self.encoder())
        for task in tqdm(tasks, desc=self.identity.name, unit="task", disable=len(tasks) < 2):
            subsets = task.hf_subsets
            full = why_unscored(task, self.encoder())  # no full width: nothing to compare with
            for dim in tqdm(self.dims, desc=task.metadata.name, unit="dim", leave=False):
                reasons = full | (why_unscored(task, self.encoder(dim)) if dim < self.dims[0] else {})
                self.unscored += self._unscored(task, dim, reasons)
                task.hf_subsets = [subset for subset in subsets if subset not in reasons]
                try:
                    if task.hf_subsets:
                        with self._lock(task, dim):  # mteb reads what is there, adds to it and writes it again
                            rows += self._rows(task, dim, self._evaluate(task, dim))
                finally:
                    task.hf_subsets = subsets
        return rows

    def _lock(self, task: Any, dim: int) -> FileLock:
        path = self._queries_file(task, dim)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f".{path.name}.lock"))

    def _unscored(self, task: Any, dim: int, reasons: dict[str, str]) -> list[dict[str, Any]]:
        return [
            self._row(task, subset, split, dim)
            | {"dataset_revision": task.metadata.dataset.get("revision"), "note": reason}
            for subset, reason in reasons.items()
            for split in task.eval_splits
        ]

    def _row(self, task: Any, subset: str, split: str, dim: int) -> dict[str, Any]:
        """What a row of the summary says beside the score."""
        return {
            "model": self.identity.name,
            "revision": self.identity.revision,
            "dtype": self.dtype,
            "task": task.metadata.name,
            "subset": label_of(task, subset, split),
            "dim": dim,
            "n": size_of(task, subset, split),
            "task_type": task.metadata.type,
            "metric": task.metadata.main_score,
        }

    def _evaluate(self, task: Any, dim: int) -> Any:
        by_query = isinstance(task, mteb.abstasks.AbsTaskRetrieval)
        seen: dict[str, dict[str, float]] = {}
        if by_query:
            self._record_queries(task, seen)
        _rewind(task)
        encoder = self.encoder(dim)
        self._set_aside_damaged(task, encoder.mteb_model_meta)
        missing = by_query and not read_json_file(self._queries_file(task, dim))
        try:
            found = mteb.evaluate(
                encoder,
                task,
                cache=self.cache,
                overwrite_strategy="always" if self.overwrite or missing else "only-missing",
                encode_kwargs={"batch_size": self.batch_size, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
        except RunError:
            raise
        except ValueError as error:
            if "NaN" not in str(error):
                raise
            raise RunError(f"{self.identity.name} on {task.metadata.name} at {dim}: {one_line(error)}") from None
        if seen:
            path = self._queries_file(task, dim)
            known = {} if self.overwrite else read_json_file(path)
            write_atomically(path, json.dumps(known | seen))
        return found.task_results[0]

    def _set_aside_damaged(self, task: Any, meta: Any) -> None:
        """mteb would end with a traceback of its own."""
        try:
            known = self.cache.load_task_result(task.metadata.name, meta)
            wrong = known is not None and known.task_name != task.metadata.name
            reason = f"it is of the task {known.task_name}" if wrong else None
        except Exception as error:  # whatever a damaged file makes the parsers raise
            reason = one_line(error, 100)
        if reason:
            quarantine(self.cache.get_task_result_path(task_name=task.metadata.name, model_name=meta), reason)

    def _record_queries(self, task: Any, seen: dict[str, dict[str, float]]) -> None:
        """Have mteb hand over each query's score: it calls ``task_specific_scores`` with all of them."""
        measure = _query_measure(task.metadata.main_score)
        original = type(task).task_specific_scores

        def recorded(scores, qrels, results, hf_split, hf_subset):
            if measure is not None:
                seen[label_of(task, hf_subset, hf_split)] = {
                    query: float(found[measure]) for query, found in scores.items() if measure in found
                }
            return original(task, scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

        task.task_specific_scores = recorded

    def _queries_file(self, task: Any, dim: int) -> Path:
        return self.queries / f"embed_dim_{dim}" / f"{task.metadata.name}.json"

    def _rows(self, task: Any, dim: int, result: Any) -> list[dict[str, Any]]:
        rows = []
        for split, entries in result.scores.items():
            if split not in task.eval_splits:
                continue
            for entry in entries:
                if entry["hf_subset"] not in task.hf_subsets:
                    continue
                if not np.isfinite(entry["main_score"]):
                    reason = {entry["hf_subset"]: f"mteb gives none for {task.metadata.main_score}"}
                    self.unscored += self._unscored(task, dim, reason)
                    continue
                rows.append(
                    self._row(task, entry["hf_subset"], split, dim)
                    | {
                        "score": round(entry["main_score"], DIGITS),
                        "dataset_revision": result.dataset_revision,
                        "mteb_version": result.mteb_version,
                        **{key: round(value, DIGITS) for key, value in entry.items() if key.startswith(PER_PAIR)},
                    }
                )
        return rows

    def query_estimates(self, task: Any) -> dict[tuple[str, str], dict[tuple[int, str], Estimate]]:
        """For each subset of a retrieval task the main score's estimate at each dimension, by query; none of other tasks,
        or where the main score is not the mean of the queries'."""
        found: dict[tuple[str, str], dict[tuple[int, str], Estimate]] = {}
        files = {dim: self._queries_file(task, dim) for dim in self.dims}
        if not all(path.exists() for path in files.values()):
            return found
        scores = {dim: read_json_file(path) for dim, path in files.items()}
        for subset in scores[self.dims[0]]:
            queries = sorted(scores[self.dims[0]][subset])
            if len(queries) < 3 or any(sorted(scores[dim].get(subset, {})) != queries for dim in self.dims):
                continue
            columns = [[scores[dim][subset][query] for query in queries] for dim in self.dims]
            name = (task.metadata.name, subset)
            estimates = bootstrap(mean(columns), len(queries), sample=" ".join(name))
            found[name] = {(dim, "float32"): e for dim, e in zip(self.dims, estimates, strict=True)}
        return found


class WholeFiles(mteb.ResultCache):
    """mteb's result files, each moved into place whole."""

    def save_to_cache(self, task_result: Any, model_name: Any, *args: Any, **kwargs: Any) -> None:
        target = self.get_task_result_path(task_name=task_result.task_name, model_name=model_name).parent
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".") as partial:
            other = mteb.ResultCache(partial)
            folder = other.get_task_result_path(task_name=task_result.task_name, model_name=model_name).parent
            folder.mkdir(parents=True)
            for path in target.glob("run_settings.jsonl"):  # which mteb adds to
                shutil.copy(path, folder)
            other.save_to_cache(task_result, model_name, *args, **kwargs)
            for path in folder.iterdir():
                path.replace(target / path.name)


def _rewind(task: Any) -> None:
    """Set a task's random state back: clustering draws its samples from it, and each dimension is to get the same ones."""
    if not hasattr(task, "random_state_at_first"):
        task.random_state_at_first = copy.deepcopy((task.rng_state, task.np_rng))
    task.rng_state, task.np_rng = copy.deepcopy(task.random_state_at_first)


def _query_measure(metric: str) -> str | None:
    """``ndcg_at_10`` is ``ndcg_cut_10`` of each query; None for a measure that is not of each query."""
    kind, _, k = metric.rpartition("_")
    return f"{PER_QUERY[kind]}_{k}" if kind in PER_QUERY else None


def retrieval_embeddings(task: Any, encoder: TruncatedEncoder) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """For each subset of a retrieval task its name and the full-width embeddings of its queries and corpus."""
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    if not isinstance(task, mteb.abstasks.AbsTaskRetrieval):
        return []
    found = []
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            data = split_data(task, subset, split)
            sides = [
                encoder.encode(
                    create_dataloader(data[part], task_metadata=task.metadata, prompt_type=role, batch_size=1024),
                    task_metadata=task.metadata, hf_split=split, hf_subset=subset, prompt_type=role,
                )
                for part, role in (("queries", PromptType.query), ("corpus", PromptType.document))
            ]  # fmt: skip
            found.append((f"{task.metadata.name} {label_of(task, subset, split)}".removesuffix(" default"), *sides))
    return found
