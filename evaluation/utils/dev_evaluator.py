"""Scores dev sets during training at every dimension, encoding each text once: graded pairs by correlation, translations by retrieval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, TranslationEvaluator

from common.errors import RunError
from evaluation.utils.scoring.similarity import pairwise_similarities, sts_scores
from evaluation.utils.scoring.statistics import Estimate, bootstrap, mean, mean_estimate, paired_mean, spearman

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PRIMARY_METRIC = "mean_score"
ROWS = 1024  # embeddings compared at a time with all those in the other language


class MatryoshkaEvaluator(BaseEvaluator):
    """Scores a model at every dimension, on sets of graded pairs and on sets of translations.

    The metrics are named as in sentence-transformers: ``<set>-<dim>_spearman_cosine`` for graded pairs and
    ``<set>-<dim>_mean_accuracy`` for translations. ``primary_metric`` is their mean over the dimensions and the sets, with
    equal weight for each set.

    Args:
        sets: For each set, lists of equal length: ``sentence1``, ``sentence2`` and ``score`` for graded pairs, or ``source``
            and ``target`` for translations.
        dims: Dimensions to score at.
        batch_size: Texts in a forward pass.
    """

    def __init__(self, sets: dict[str, dict[str, list[Any]]], dims: list[int], batch_size: int = 64):
        super().__init__()
        self.primary_metric = PRIMARY_METRIC
        self.sets, self.dims, self.batch_size = sets, dims, batch_size
        # The embeddings of the last call: both columns of each set, at full width
        self.embeddings: dict[str, list[np.ndarray]] = {}
        # Only the model card uses these. It groups metrics by evaluator, so each line of its table needs its own evaluator.
        self._card: dict[tuple[str, int], BaseEvaluator] = {}
        for name, rows in sets.items():
            for dim in dims:
                key = f"{name}-{dim}"
                line = (
                    EmbeddingSimilarityEvaluator([], [], [], name=key, truncate_dim=dim)
                    if is_scored(rows)
                    else TranslationEvaluator([], [], name=key, truncate_dim=dim)
                )
                line.primary_metric = f"{key}_{kind_of(rows)}"
                self._card[name, dim] = line

    @property
    def metrics(self) -> list[str]:
        """Return the metrics by which the best checkpoint can be chosen: the mean, and one for each set and dimension."""
        return [self.primary_metric, *(line.primary_metric for line in self._card.values())]

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, rows in self.sets.items():
            columns = ("sentence1", "sentence2") if is_scored(rows) else ("source", "target")
            first, second = self.embeddings[name] = self._embed(model, *(rows[column] for column in columns))
            for dim in self.dims:
                if is_scored(rows):
                    try:
                        scores = sts_scores(first[:, :dim], second[:, :dim], rows["score"])
                    except RunError as error:
                        raise RunError(f"{name} at {dim} dimensions: {error}") from None
                    at_dim = {f"{kind}_cosine": scores[f"cosine_{kind}"] for kind in ("pearson", "spearman")}
                else:
                    at_dim = translation_accuracy(first[:, :dim], second[:, :dim], rows["source"], rows["target"])
                at_dim = {f"{name}-{dim}_{kind}": score for kind, score in at_dim.items()}
                metrics |= at_dim
                if hasattr(model, "model_card_data"):
                    model.model_card_data.set_evaluation_metrics(self._card[name, dim], at_dim, epoch, steps)
        metrics[self.primary_metric] = float(np.mean([metrics[line.primary_metric] for line in self._card.values()]))
        return metrics

    def estimate(self) -> Estimate:
        """Estimate the ``mean_score`` of the last call, with a bootstrap over the pairs of each set."""
        estimates = []
        for name, rows in self.sets.items():
            first, second = self.embeddings[name]
            prefixes = [(first[:, :dim], second[:, :dim]) for dim in self.dims]
            if is_scored(rows):
                statistic = spearman(rows["score"], [pairwise_similarities(*prefix)["cosine"] for prefix in prefixes])
            else:
                texts = rows["source"], rows["target"]
                statistic = mean([np.mean(translation_hits(*prefix, *texts), axis=0) for prefix in prefixes])
            estimates.append(paired_mean(bootstrap(statistic, len(first), sample=f"dev {name}")))
        return mean_estimate(estimates)

    def _embed(self, model: SentenceTransformer, *columns: list[str]) -> list[np.ndarray]:
        """Return the embeddings of each column, ``[rows, width]``. A duplicated text is encoded once."""
        index = {text: row for row, text in enumerate(dict.fromkeys(text for column in columns for text in column))}
        embeddings = (
            model.encode(list(index), batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True)
            .float()
            .cpu()
            .numpy()
        )
        if not np.isfinite(embeddings).all():
            raise RunError("the model produced NaN or infinite embeddings of a dev or test set")
        return [embeddings[[index[text] for text in column]] for column in columns]

    def log(self, metrics: dict[str, float], prefix: str = "") -> None:
        """Log the scores, one line for each set."""
        for name, scores in self.by_set(metrics, prefix).items():
            metric = "Spearman × 100" if is_scored(self.sets[name]) else "translation accuracy (%)"
            at_dims = ", ".join(f"{dim} = {100 * score:.2f}" for dim, score in zip(self.dims, scores, strict=True))
            logger.info("%s, %s by dimension: %s", name, metric, at_dims)

    def by_set(self, metrics: dict[str, float], prefix: str = "") -> dict[str, list[float]]:
        """Return each set's main score, from 0 to 1, at each dimension."""
        return {
            name: [metrics[f"{prefix}{self._card[name, dim].primary_metric}"] for dim in self.dims]
            for name in self.sets
        }


def is_scored(rows: dict[str, list[Any]]) -> bool:
    """Return whether a set has graded pairs; otherwise it has translations."""
    return "score" in rows


def kind_of(rows: dict[str, list[Any]]) -> str:
    """Return the main metric of a set."""
    return "spearman_cosine" if is_scored(rows) else "mean_accuracy"


def translation_accuracy(
    first: np.ndarray, second: np.ndarray, source: Sequence[str], target: Sequence[str]
) -> dict[str, float]:
    """Compute how often the nearest text in the other language is the translation (accuracy@1), as TranslationEvaluator does.

    Args:
        first, second: Raw prefixes of the embeddings of the source texts and of their translations, shape ``[n, dim]``.
        source, target: The texts; an identical text in another row counts as correct.

    Returns:
        ``src2trg_accuracy``, ``trg2src_accuracy`` and ``mean_accuracy``, each from 0 to 1.
    """
    forth, back = (float(hits.mean()) for hits in translation_hits(first, second, source, target))
    return {"src2trg_accuracy": forth, "trg2src_accuracy": back, "mean_accuracy": (forth + back) / 2}


def translation_hits(
    first: np.ndarray, second: np.ndarray, source: Sequence[str], target: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the nearest text in the other language is the translation, for each source text and for each target text.

    Args:
        first, second, source, target: As in :func:`translation_accuracy`.

    Returns:
        Two Boolean arrays of shape ``[n]``.
    """
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (first, second))

    def hits(queries: np.ndarray, answers: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        nearest = np.concatenate(
            [(queries[start : start + ROWS] @ answers.T).argmax(axis=1) for start in range(0, len(queries), ROWS)]
        )
        return np.array([text == texts[row] for text, row in zip(texts, nearest, strict=True)])

    return hits(first, second, target), hits(second, first, source)
