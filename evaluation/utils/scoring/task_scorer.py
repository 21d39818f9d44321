"""Scores models on mteb tasks, for ``evaluate_mteb.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import default
from common.prompts import DOCUMENT, QUERY
from evaluation.utils.scoring.rows import ScoredModel
from evaluation.utils.scoring.scorer import ModelScores
from evaluation.utils.scoring.task_data import describe_data, pair_sets
from evaluation.utils.scoring.tasks import check_subsets, choose_subsets, choose_tasks, load_task_data

if TYPE_CHECKING:
    from evaluation.utils.options import MTEBConfig
    from evaluation.utils.scoring.embeddings import EmbeddingStore


class TaskScorer:
    """Scores models on mteb tasks, with mteb's own scores. See :class:`evaluation.utils.scoring.scorer.Scorer`."""

    result_files = "mteb's result files under mteb/"
    warning = ""
    data_files: list[str] = []

    def __init__(self, config: MTEBConfig):
        self.config = config
        self.tasks: list[Any] = []

    def load_data(self) -> dict[str, dict[str, Any]]:
        config = self.config
        names = config.tasks if config.is_set("tasks") or not config.languages else []
        default_subsets = default("eval_config.json", "subsets")
        self.tasks = choose_tasks(names, config.benchmark, config.languages, config.subsets, default_subsets)
        if config.is_set("subsets"):
            check_subsets(config.subsets, self.tasks)
            for task in self.tasks:  # including the tasks of a benchmark or a language
                task.hf_subsets = choose_subsets(config.subsets, [], list(task.hf_subsets))
        for task in self.tasks:
            load_task_data(task)
        return {task.metadata.name: describe_data(task) for task in self.tasks}

    def score(self, store: EmbeddingStore, scored_model: ScoredModel, dims: list[int]) -> ModelScores:
        from evaluation.utils.scoring.mteb_run import MTEBRun  # importing mteb takes seconds
        from evaluation.utils.scoring.query_scores import corpora_of

        config = self.config
        run = MTEBRun(store, scored_model, dims, Path(config.output_dir), config.batch_size, config.overwrite)
        rows = run.score(self.tasks)
        incomplete = {row.set_key for row in rows if row.score is None}
        encoder = run.encoder()
        pairs = [p for task in self.tasks for p in pair_sets(task, encoder) if p.key not in incomplete]
        scores = ModelScores(rows, pairs, test_texts={text for p in pairs for text in (*p.sentence1, *p.sentence2)})
        for task in self.tasks:
            scores.query_estimates |= run.query_estimates(task)
            # Only shortlists use the corpora, and shortlists need calibration texts.
            if config.calibration_data is not None:
                scores.corpora += corpora_of(task, encoder)
        return scores

    def encoded_as(self) -> list[tuple[str, str, str | None]]:
        from evaluation.utils.scoring.query_scores import is_retrieval

        return [
            (task.metadata.name, task.metadata.type, role)
            for task in self.tasks
            for role in ((QUERY, DOCUMENT) if is_retrieval(task) else (None,))
        ]

    def encoded_counts(self, for_scores: int, for_calibration: int) -> dict[str, int]:
        return {"tasks": for_scores, "calibration": for_calibration}

    def hub_datasets(self) -> dict[str, str]:
        return {task.metadata.name: task.metadata.dataset["path"] for task in self.tasks}
