"""Retrieval tasks: the score of each query, for the intervals, and the embeddings to search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import numpy as np

from common.records import read_json_file, write_atomically
from evaluation.utils.scoring.rows import set_name
from evaluation.utils.scoring.statistics import Estimates, bootstrap, mean
from evaluation.utils.scoring.task_data import label_of, split_data

if TYPE_CHECKING:
    from evaluation.utils.scoring.mteb_encoder import TruncatedEncoder

# mteb's name for each measure, and its name in pytrec_eval, which computes it for each query
MEASURES = {
    "ndcg_at": "ndcg_cut",
    "map_at": "map_cut",
    "recall_at": "recall",
    "precision_at": "P",
    "hit_rate_at": "success",
}

Corpus = tuple[str, np.ndarray, np.ndarray]  # a name, and the embeddings of the queries and of the corpus


def is_retrieval(task: Any) -> bool:
    return isinstance(task, mteb.abstasks.AbsTaskRetrieval)


def has_query_scores(task: Any) -> bool:
    """Return whether the main score of a task is the mean of its queries' scores."""
    return is_retrieval(task) and _measure_of_queries(task.metadata.main_score) is not None


def record_query_scores(task: Any) -> dict[str, dict[str, float]]:
    """Record each query's main score when mteb evaluates ``task``: mteb passes all of them to ``task_specific_scores``.

    Returns:
        A dictionary that the evaluation fills: the score of each query, by subset and query id.
    """
    query_scores: dict[str, dict[str, float]] = {}
    measure = _measure_of_queries(task.metadata.main_score)
    original = type(task).task_specific_scores

    def recorded(scores, qrels, results, hf_split, hf_subset):
        if measure is not None:
            query_scores[label_of(task, hf_subset, hf_split)] = {
                query: float(measures[measure]) for query, measures in scores.items() if measure in measures
            }
        return original(task, scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

    task.task_specific_scores = recorded
    return query_scores


def _measure_of_queries(metric: str) -> str | None:
    """Return pytrec_eval's name for a measure: ``ndcg_cut_10`` for ``ndcg_at_10``; None if it is not defined per query."""
    kind, _, k = metric.rpartition("_")
    return f"{MEASURES[kind]}_{k}" if kind in MEASURES else None


def save_query_scores(path: Path, query_scores: dict[str, dict[str, float]], overwrite: bool) -> None:
    """Write the query scores of subsets to a file. It keeps the scores of other subsets, unless ``overwrite`` is true."""
    known = {} if overwrite else read_json_file(path)
    write_atomically(path, json.dumps(known | query_scores))


def query_estimates(task_name: str, files: dict[int, Path]) -> Estimates:
    """Estimate the main score of each subset of a retrieval task at each dimension, from the queries' scores.

    Args:
        files: The file of :func:`save_query_scores` for each dimension, the full width first.

    Returns:
        The estimates. Empty for other tasks, and if the main score is not the mean of the queries' scores: these have no files.
        Subsets with fewer than three queries, or without the same queries at every dimension, are omitted.
    """
    estimates: Estimates = {}
    if not all(path.exists() for path in files.values()):
        return estimates
    scores = {dim: read_json_file(path) for dim, path in files.items()}
    full_width = next(iter(scores.values()))
    for subset, full_scores in full_width.items():
        queries = sorted(full_scores)
        if len(queries) < 3 or any(sorted(scores[dim].get(subset, {})) != queries for dim in files):
            continue
        columns = [[scores[dim][subset][query] for query in queries] for dim in files]
        by_dim = bootstrap(mean(columns), len(queries), sample=f"{task_name} {subset}")
        estimates[task_name, subset] = {(dim, "float32"): e for dim, e in zip(files, by_dim, strict=True)}
    return estimates


def corpora_of(task: Any, encoder: TruncatedEncoder) -> list[Corpus]:
    """Return the name of each subset of a retrieval task, with the full-width embeddings of its queries and corpus."""
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    corpora: list[Corpus] = []
    for subset in task.hf_subsets if is_retrieval(task) else ():
        for split in task.eval_splits:
            data = split_data(task, subset, split)
            queries, corpus = (
                encoder.encode(
                    create_dataloader(data[part], task_metadata=task.metadata, prompt_type=role, batch_size=1024),
                    task_metadata=task.metadata, hf_split=split, hf_subset=subset, prompt_type=role,
                )
                for part, role in (("queries", PromptType.query), ("corpus", PromptType.document))
            )  # fmt: skip
            corpora.append((set_name(task.metadata.name, label_of(task, subset, split)), queries, corpus))
    return corpora
