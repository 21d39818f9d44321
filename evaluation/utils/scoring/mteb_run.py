"""Scores one model on mteb tasks at every dimension."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from common.errors import RunError, one_line
from common.records import read_json_file
from evaluation.utils.scoring.embeddings import EmbeddingStore
from evaluation.utils.scoring.mteb_encoder import TruncatedEncoder
from evaluation.utils.scoring.mteb_files import AtomicResultCache
from evaluation.utils.scoring.query_scores import (
    has_query_scores,
    is_retrieval,
    query_estimates,
    record_query_scores,
    save_query_scores,
)
from evaluation.utils.scoring.rows import ScoredModel, ScoreRow
from evaluation.utils.scoring.similarity import METRICS
from evaluation.utils.scoring.statistics import Estimates
from evaluation.utils.scoring.task_data import encode_pairs, label_of, size_of, why_unscored

logger = logging.getLogger(__name__)

DIGITS = 6  # as in mteb's result files, so that scores read from them are equal


class MTEBRun:
    """Scores one model on tasks through mteb, and keeps mteb's result files.

    Args:
        store: The model's embeddings.
        dims: Dimensions to score, the full width first.
        output_dir: Result files go under ``mteb/``, the scores of each query of a retrieval task under ``queries/``.
        batch_size: Passed on to mteb.
        overwrite: Compute existing scores again.
    """

    def __init__(self, store: EmbeddingStore, scored_model: ScoredModel, dims: list[int], output_dir: Path,
                 batch_size: int = 32, overwrite: bool = False):  # fmt: skip
        self.store, self.scored_model, self.dims = store, scored_model, dims
        self.batch_size, self.overwrite = batch_size, overwrite
        self.cache = AtomicResultCache(output_dir / "mteb")
        self.queries_folder = scored_model.folder(output_dir / "queries")

    def encoder(self, dim: int | None = None) -> TruncatedEncoder:
        """Return the encoder that mteb evaluates at a dimension, by default the full width."""
        return TruncatedEncoder(self.store, self.scored_model, dim or self.store.width)

    def score(self, tasks: list[Any]) -> list[ScoreRow]:
        """Return one row for each task, subset and dimension. A row without a score says why.

        Raises:
            RunError: A task fails.
        """
        rows: list[ScoreRow] = []
        encode_pairs(tasks, self.encoder())
        for task in tqdm(tasks, desc=self.scored_model.identity.name, unit="task", disable=len(tasks) < 2):
            at_full_width = why_unscored(
                task, self.encoder()
            )  # without a score at full width there is nothing to compare with
            for dim in tqdm(self.dims, desc=task.metadata.name, unit="dim", leave=False):
                at_dim = why_unscored(task, self.encoder(dim)) if dim < self.dims[0] else {}
                rows += self._score_at(task, dim, at_full_width | at_dim)
        return rows

    def _score_at(self, task: Any, dim: int, reasons: dict[str, str]) -> list[ScoreRow]:
        """Return the rows of a task at a dimension. The subsets in ``reasons`` have no score."""
        rows = self._rows_without_score(task, dim, reasons)
        subsets = task.hf_subsets
        task.hf_subsets = [subset for subset in subsets if subset not in reasons]
        try:
            if task.hf_subsets:
                with self._lock(task, dim):  # mteb reads the file, adds to it and writes it again
                    rows += self._rows(task, dim, self._evaluate(task, dim))
        finally:
            task.hf_subsets = subsets
        return rows

    def query_estimates(self, task: Any) -> Estimates:
        """Estimate the main score of each subset of a retrieval task at each dimension. Empty for other tasks."""
        estimates = query_estimates(task.metadata.name, {dim: self._queries_file(task, dim) for dim in self.dims})
        # the files may also have subsets and splits that earlier runs scored
        labels = {label_of(task, subset, split) for subset in task.hf_subsets for split in task.eval_splits}
        return {key: by_dim for key, by_dim in estimates.items() if key[1] in labels}

    def _queries_file(self, task: Any, dim: int) -> Path:
        return self.queries_folder / f"embed_dim_{dim}" / f"{task.metadata.name}.json"

    def _lock(self, task: Any, dim: int) -> FileLock:
        path = self._queries_file(task, dim)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f".{path.name}.lock"))

    def _evaluate(self, task: Any, dim: int) -> Any:
        """Return mteb's result for a task at a dimension, read from its files if they have it."""
        query_scores = record_query_scores(task) if is_retrieval(task) else {}
        _rewind(task)
        encoder = self.encoder(dim)
        self.cache.set_aside_corrupt(task, encoder.mteb_model_meta)
        outdated = self._is_outdated(
            task, dim, self.cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
        )
        try:
            result = mteb.evaluate(
                encoder,
                task,
                cache=self.cache,
                overwrite_strategy="always" if self.overwrite or outdated else "only-missing",
                encode_kwargs={"batch_size": self.batch_size, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
        except RunError:
            raise
        except ValueError as error:
            if "NaN" not in str(error):
                raise
            where = f"{self.scored_model.identity.name} on {task.metadata.name} at {dim} dimensions"
            raise RunError(f"{where}: {one_line(error)}") from None
        if query_scores:
            save_query_scores(self._queries_file(task, dim), query_scores, self.overwrite)
        return result.task_results[0]

    def _is_outdated(self, task: Any, dim: int, known: mteb.TaskResult | None) -> bool:
        """Return whether a stored result must be computed again: it is from another version of mteb, or lacks its queries' scores."""
        if known is None:
            return False
        if known.mteb_version != mteb.__version__:
            logger.info(
                "%s at %d dimensions was scored with mteb %s: scoring it again with %s",
                task.metadata.name, dim, known.mteb_version, mteb.__version__,
            )  # fmt: skip
            return True
        if not has_query_scores(task):
            return False
        known_sets = {
            label_of(task, entry["hf_subset"], split)
            for split, entries in known.scores.items()
            for entry in entries
            if split in task.eval_splits and entry["hf_subset"] in task.hf_subsets
        }
        return not known_sets <= read_json_file(self._queries_file(task, dim)).keys()

    def _row(self, task: Any, subset: str, split: str, dim: int, **values: Any) -> ScoreRow:
        return ScoreRow(
            **self.scored_model.columns(),
            task=task.metadata.name,
            subset=label_of(task, subset, split),
            dim=dim,
            n=size_of(task, subset, split),
            task_type=task.metadata.type,
            metric=task.metadata.main_score,
            **values,
        )

    def _rows_without_score(self, task: Any, dim: int, reasons: dict[str, str]) -> list[ScoreRow]:
        return [
            self._row_without_score(task, subset, split, dim, reason)
            for subset, reason in reasons.items()
            for split in task.eval_splits
        ]

    def _row_without_score(self, task: Any, subset: str, split: str, dim: int, reason: str) -> ScoreRow:
        return self._row(task, subset, split, dim, note=reason, dataset_revision=task.metadata.dataset.get("revision"))

    def _rows(self, task: Any, dim: int, result: Any) -> list[ScoreRow]:
        """Return the rows of mteb's result. It may contain further subsets and splits, which are skipped."""
        rows: list[ScoreRow] = []
        for split, entries in result.scores.items():
            for entry in entries if split in task.eval_splits else ():
                subset = entry["hf_subset"]
                if subset not in task.hf_subsets:
                    continue
                if not np.isfinite(entry["main_score"]):
                    reason = f"mteb returned no finite {task.metadata.main_score}"
                    rows.append(self._row_without_score(task, subset, split, dim, reason))
                    continue
                rows.append(
                    self._row(
                        task,
                        subset,
                        split,
                        dim,
                        score=round(entry["main_score"], DIGITS),
                        dataset_revision=result.dataset_revision,
                        mteb_version=result.mteb_version,
                        similarity_scores={name: round(entry[name], DIGITS) for name in METRICS if name in entry},
                    )
                )
        return rows


def _rewind(task: Any) -> None:
    """Reset a task's random state: clustering draws its samples from it, and every dimension must get the same samples."""
    if not hasattr(task, "random_state_at_first"):
        task.random_state_at_first = copy.deepcopy((task.rng_state, task.np_rng))
    task.rng_state, task.np_rng = copy.deepcopy(task.random_state_at_first)
