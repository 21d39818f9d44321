"""The Matryoshka loss: one forward pass, and the wrapped loss at every prefix of its embeddings.

Kusupati et al., Matryoshka Representation Learning, 2022, https://arxiv.org/abs/2205.13147
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer import losses as st
from torch import Tensor, nn
from torch.nn import functional as F

from training.utils.options import DatasetEntry

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


class MatryoshkaLoss(st.MatryoshkaLoss):
    """The sum over ``matryoshka_dims`` of the weighted loss on the first ``dim`` numbers of each embedding, normalised.

    It has the value and the gradients of the library's ``MatryoshkaLoss``, and differs in three ways: each dimension may
    have a loss of its own (a classification head is as wide as its input); all columns of a batch are embedded in one
    forward pass; and the loss at each dimension is kept for the log, in ``components``.

    Args:
        model: The model to train.
        loss: The loss to wrap, or one for each dimension.
        matryoshka_dims: Dimensions, each at most the width of the embeddings.
        matryoshka_weights: A weight for each dimension, in the same order; 1 by default.
        n_dims_per_step: How many dimensions, drawn at random, a step trains; -1 for all.

    Raises:
        ValueError: A dimension is not positive or above the width, or the weights do not match.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: nn.Module | dict[int, nn.Module],
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        n_dims_per_step: int = -1,
    ):
        per_dim = loss if isinstance(loss, dict) else None
        super().__init__(
            model, next(iter(loss.values())) if per_dim else loss, matryoshka_dims, matryoshka_weights, n_dims_per_step
        )
        if per_dim is not None:
            self.loss = nn.ModuleDict({str(dim): per_dim[dim] for dim in self.matryoshka_dims})
        self.components: dict[int, Tensor] = {}
        if self.uses_gradient_cache:
            self.loss.calculate_loss.fn = self._recorded(self.loss.calculate_loss.fn)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of a batch: a scalar.

        Args:
            sentence_features: The tokenised texts of each column, ``batch`` rows each.
            labels: What the wrapped loss wants: scores or classes of shape ``[batch]``, or embeddings to copy of shape
                ``[batch, width]`` or ``[batch, columns, width]``, which are cut to each dimension.
        """
        if self.uses_gradient_cache:  # embeds in small batches by itself, twice
            return super().forward(sentence_features, labels)
        features = list(sentence_features)
        embeddings = embed(self.model, features)
        width = embeddings[0].shape[-1]
        labels_are_embeddings = isinstance(labels, Tensor) and labels.ndim in (2, 3) and labels.shape[-1] == width

        chosen = range(len(self.matryoshka_dims))
        if 0 < self.n_dims_per_step < len(chosen):
            chosen = sorted(random.sample(chosen, self.n_dims_per_step))
        losses: dict[int, Tensor] = {}
        with already_embedded(self.model):
            for index in chosen:
                dim, weight = self.matryoshka_dims[index], self.matryoshka_weights[index]
                prefixes = [
                    {**column, "sentence_embedding": F.normalize(embedding[..., :dim], dim=-1)}
                    for column, embedding in zip(features, embeddings, strict=True)
                ]
                losses[dim] = weight * self.loss_at(dim)(
                    prefixes, labels[..., :dim] if labels_are_embeddings else labels
                )
        self.components = {dim: loss.detach() for dim, loss in losses.items()}
        return torch.stack(list(losses.values())).sum()

    def _recorded(self, calculate_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The wrapped loss's computation from cached embeddings, whose width tells which dimension it is for."""
        weights = dict(zip(self.matryoshka_dims, self.matryoshka_weights, strict=True))

        def calculate(reps: list[list[Tensor]], *args: Any, **kwargs: Any) -> Tensor:
            loss = calculate_loss(reps, *args, **kwargs)
            dim = reps[0][0].shape[-1]
            self.components[dim] = weights[dim] * loss.detach()
            return loss

        return calculate

    def loss_at(self, dim: int) -> nn.Module:
        return self.loss[str(dim)] if isinstance(self.loss, nn.ModuleDict) else self.loss

    def get_config_dict(self) -> dict[str, Any]:
        inner = self.loss_at(self.matryoshka_dims[0])
        return {
            "loss": type(inner).__name__,
            "matryoshka_dims": self.matryoshka_dims,
            "matryoshka_weights": self.matryoshka_weights,
            "n_dims_per_step": self.n_dims_per_step,
        }


def embed(model: nn.Module, columns: list[dict[str, Tensor]]) -> list[Tensor]:
    """The embeddings of each column of a batch, ``[batch, width]`` each, from one forward pass where the columns allow it."""
    merged = merge(columns)
    if merged is None:
        return [model(dict(column))["sentence_embedding"] for column in columns]
    return list(model(merged)["sentence_embedding"].chunk(len(columns)))


def merge(columns: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rows of all columns in one batch, one column after the other, padded to the longest row.

    None where they cannot be: columns of different kinds, or texts that are not padded in the first place.
    """
    first = columns[0]
    rows = (
        first["input_ids"].shape[0]
        if isinstance(first.get("input_ids"), Tensor) and first["input_ids"].ndim == 2
        else None
    )
    if rows is None or any(column.keys() != first.keys() for column in columns):
        return None
    merged: dict[str, Any] = {}
    for key, value in first.items():
        values = [column[key] for column in columns]
        if isinstance(value, Tensor) and value.shape == first["input_ids"].shape:
            longest = max(v.shape[1] for v in values)
            merged[key] = torch.cat([F.pad(v, (0, longest - v.shape[1])) for v in values])
        elif not isinstance(value, Tensor) and all(v == value for v in values):
            merged[key] = value
        else:
            return None
    return merged


@contextmanager
def already_embedded(model: nn.Module) -> Iterator[None]:
    """While this lasts, calling ``model`` on features gives them back: the wrapped loss finds its embeddings in them."""
    own = model.__dict__.get("forward")
    model.forward = lambda features, **_: features
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def make_loss(
    model: SentenceTransformer,
    entry: DatasetEntry,
    dataset: Dataset,
    dims: list[int],
    weights: list[float] | None = None,
    mini_batch_size: int | None = None,
) -> MatryoshkaLoss:
    """The loss of a data set, at every dimension.

    ``mnrl`` is MultipleNegativesRankingLoss, on pairs or triplets, with the other processes' rows as negatives too; ``cosent``,
    ``angle`` and ``cosine`` compare the cosine similarity with a score; ``softmax`` classifies pairs (Reimers and Gurevych,
    2019), with a head for each dimension, which is trained along and left out of the final model.

    Args:
        mini_batch_size: Rows that ``mnrl`` embeds at a time (GradCache, Gao et al., 2021, https://arxiv.org/abs/2101.06983).
    """
    inner: nn.Module | dict[int, nn.Module]
    if entry.loss == "mnrl":
        gather = get_world_size() > 1
        if mini_batch_size is None:
            inner = st.MultipleNegativesRankingLoss(model, scale=entry.scale, gather_across_devices=gather)
        else:
            inner = st.CachedMultipleNegativesRankingLoss(
                model, scale=entry.scale, mini_batch_size=mini_batch_size, gather_across_devices=gather
            )
    elif entry.loss == "cosent":
        inner = st.CoSENTLoss(model, scale=entry.scale)
    elif entry.loss == "angle":
        inner = st.AnglELoss(model, scale=entry.scale)
    elif entry.loss == "cosine":
        inner = st.CosineSimilarityLoss(model)
    else:
        num_labels = max(dataset["label"]) + 1
        inner = {dim: st.SoftmaxLoss(model, dim, num_labels) for dim in dims}
    if entry.loss != "mnrl" and get_world_size() > 1:
        logger.info("%s: the %s loss compares the rows of one process only", entry.path, entry.loss)
    return MatryoshkaLoss(model, inner, dims, weights)


def get_world_size() -> int:
    """How many processes train together, as torchrun says it: the process group may not be up yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def loss_parameters(loss: nn.Module | dict[str, nn.Module], model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the losses that are not the model's own, by name; these belong into a checkpoint too."""
    losses = loss if isinstance(loss, dict) else {"loss": loss}
    own = {id(parameter) for parameter in model.parameters()}
    return {
        f"{name}.{key}": parameter
        for name, module in losses.items()
        for key, parameter in module.named_parameters()
        if id(parameter) not in own
    }
