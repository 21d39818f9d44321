"""The dev score while training: Spearman correlation at every dimension, from one encode."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from evaluation.utils.evaluation_utils import sts_scores

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PRIMARY_METRIC = "mean_spearman_cosine"


class MatryoshkaSTSEvaluator(BaseEvaluator):
    """Scores a model on sets of scored pairs at every dimension.

    Its metrics bear the names that sentence-transformers gives them, ``<set>-<dim>_spearman_cosine``, and
    ``primary_metric`` is their mean over the dimensions and the sets.

    Args:
        sets: For each set its ``sentence1``, ``sentence2`` and ``score`` lists.
        dims: Dimensions to score at.
        batch_size: Texts in a forward pass.
    """

    def __init__(self, sets: dict[str, dict[str, list[Any]]], dims: list[int], batch_size: int = 64):
        super().__init__()
        self.primary_metric = PRIMARY_METRIC
        self.sets, self.dims, self.batch_size = sets, dims, batch_size
        # These only name each line of the model card's table; one for each line, since the card groups by evaluator.
        self._card = {
            (name, dim): EmbeddingSimilarityEvaluator([], [], [], name=f"{name}-{dim}", truncate_dim=dim)
            for name in sets
            for dim in dims
        }
        for evaluator in self._card.values():
            evaluator.primary_metric = f"{evaluator.name}_spearman_cosine"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, pairs in self.sets.items():
            rows = {text: row for row, text in enumerate(dict.fromkeys([*pairs["sentence1"], *pairs["sentence2"]]))}
            embeddings = (
                model.encode(list(rows), batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True)
                .float()
                .cpu()
                .numpy()
            )
            if not np.isfinite(embeddings).all():
                raise FloatingPointError("the model gives NaN or infinite embeddings")
            first, second = (
                embeddings[[rows[text] for text in pairs[column]]] for column in ("sentence1", "sentence2")
            )
            for dim in self.dims:
                scores = sts_scores(first[:, :dim], second[:, :dim], pairs["score"])
                found = {f"{name}-{dim}_{kind}_cosine": scores[f"cosine_{kind}"] for kind in ("pearson", "spearman")}
                metrics |= found
                if hasattr(model, "model_card_data"):
                    model.model_card_data.set_evaluation_metrics(self._card[name, dim], found, epoch, steps)
        metrics[self.primary_metric] = float(
            np.mean([value for key, value in metrics.items() if key.endswith("_spearman_cosine")])
        )
        return metrics

    def log(self, metrics: dict[str, float], prefix: str = "") -> None:
        """Say the scores in a line for each set."""
        for name in self.sets:
            scores = ", ".join(
                f"{dim}: {100 * metrics[f'{prefix}{name}-{dim}_spearman_cosine']:.2f}" for dim in self.dims
            )
            logger.info("%s, Spearman × 100: %s", name, scores)
