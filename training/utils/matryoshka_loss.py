"""The Matryoshka loss: one forward pass, then the wrapped loss at every prefix of the embeddings.

Kusupati et al., Matryoshka Representation Learning, 2022, https://arxiv.org/abs/2205.13147
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer import losses as st
from torch import Tensor, nn
from torch.nn import functional as F

from common.packing import HOST_MASK

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SELF_DISTILLATION_SCALE = 20.0  # inverse temperature of the target similarities


class MatryoshkaLoss(st.MatryoshkaLoss):
    """The sum over ``matryoshka_dims`` of the weighted loss on the first ``dim`` numbers of each embedding, normalised.

    Its value and gradients equal those of the library's ``MatryoshkaLoss``. It differs in three ways: each dimension may have
    its own loss (a classification head is as wide as its input); all columns of a batch are embedded in one forward pass; and
    ``components`` keeps the loss at each dimension for the log. :func:`self_distillation` may be added, as the component
    ``self``.

    Args:
        model: The model to train.
        loss: The loss to wrap, or one for each dimension.
        matryoshka_dims: Dimensions, each at most the width of the embeddings.
        matryoshka_weights: A weight for each dimension, in the same order; 1 by default.
        self_distillation_weight: Weight of the self-distillation loss at all dimensions below the width; 0 turns it off.

    Raises:
        ValueError: A dimension is below 1 or above the width, or the weights do not match.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: nn.Module | dict[int, nn.Module],
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        self_distillation_weight: float = 0.0,
    ):
        per_dim = loss if isinstance(loss, dict) else None
        super().__init__(model, next(iter(loss.values())) if per_dim else loss, matryoshka_dims, matryoshka_weights)
        if per_dim is not None:
            self.loss = nn.ModuleDict({str(dim): per_dim[dim] for dim in self.matryoshka_dims})
        self.self_distillation_weight = self_distillation_weight
        self.components: dict[int | str, Tensor] = {}
        if self.uses_gradient_cache:
            self.loss.calculate_loss.fn = self._recorded(self.loss.calculate_loss.fn)
            self.loss.calculate_loss = self._with_self_distillation(self.loss.calculate_loss)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            sentence_features: The tokenised texts of each column, ``batch`` rows each.
            labels: The wrapped loss's labels: scores or classes of shape ``[batch]``, or target embeddings of shape
                ``[batch, width]`` or ``[batch, columns, width]``, which are truncated to each dimension.
        """
        with_masks = list(sentence_features)
        features = [{key: value for key, value in column.items() if key != HOST_MASK} for column in with_masks]
        if self.uses_gradient_cache:  # GradCache itself embeds each mini-batch, twice
            return super().forward(features, labels)
        embeddings = embed(self.model, with_masks)
        width = embeddings[0].shape[-1]
        together = torch.cat(embeddings)  # one normalisation for all columns, because launching a kernel takes time
        labels_are_embeddings = isinstance(labels, Tensor) and labels.ndim in (2, 3) and labels.shape[-1] == width
        labels_are_embeddings &= not getattr(self.loss_at(self.matryoshka_dims[0]), "full_width_labels", False)

        losses: dict[int, Tensor] = {}
        with already_embedded(self.model):
            for dim, weight in zip(self.matryoshka_dims, self.matryoshka_weights, strict=True):
                normalised = F.normalize(together[..., :dim], dim=-1).split([len(column) for column in embeddings])
                prefixes = [
                    {**column, "sentence_embedding": prefix}
                    for column, prefix in zip(features, normalised, strict=True)
                ]
                losses[dim] = weight * self.loss_at(dim)(
                    prefixes, labels[..., :dim] if labels_are_embeddings else labels
                )
        self.components = {dim: loss.detach() for dim, loss in losses.items()}
        total = torch.stack(list(losses.values())).sum()
        return total + self._self_distillation(together) if self.self_distillation_weight else total

    def _self_distillation(self, embeddings: Tensor) -> Tensor:
        """Compute the weighted self-distillation loss of a batch and keep it for the log."""
        loss = self.self_distillation_weight * self_distillation(
            embeddings, self.matryoshka_dims, self.matryoshka_weights
        )
        self.components["self"] = loss.detach()
        return loss

    def _with_self_distillation(self, calculate_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that computes the loss from all cached embeddings (GradCache) and adds the self-distillation loss."""

        def calculate(reps: list[list[Tensor]], *args: Any, with_backward: bool = False, **kwargs: Any) -> Tensor:
            loss = calculate_loss(reps, *args, with_backward=with_backward, **kwargs)
            if not self.self_distillation_weight:
                return loss
            added = self._self_distillation(torch.cat([part for column in reps for part in column]))
            if with_backward:  # accumulates into the gradients of the cached embeddings
                added.backward()
            return loss + added.detach()

        return calculate

    def _recorded(self, calculate_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that computes the wrapped loss from cached embeddings, and keeps it for the log by their width."""
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
        }


def self_distillation(embeddings: Tensor, dims: Sequence[int], weights: Sequence[float]) -> Tensor:
    """Compute the self-distillation loss, a scalar: it pulls the similarities of each prefix towards those at full width.

    The softmax of a text's cosine similarities with all other texts of the batch, times 20, is a distribution. The loss is the
    Kullback-Leibler divergence of the prefix's distribution from that at full width (without gradient), averaged over the texts
    and summed over the prefixes with their weights.

    Args:
        embeddings: All texts of a batch, shape ``[texts, width]``.
        dims: The dimensions; the full width adds nothing.
        weights: A weight for each dimension.
    """

    def log_probabilities(prefix: Tensor) -> Tensor:  # [texts, texts - 1]
        prefix = F.normalize(prefix.float(), dim=-1)
        texts = len(prefix)
        # remove the diagonal: in the flat matrix, `texts` other numbers follow each diagonal entry; a mask would wait for the GPU
        others = (prefix @ prefix.T).flatten()[1:].view(texts - 1, texts + 1)[:, :-1].reshape(texts, texts - 1)
        return (SELF_DISTILLATION_SCALE * others).log_softmax(dim=-1)

    target = log_probabilities(embeddings.detach())
    total = embeddings.new_zeros(())
    for dim, weight in zip(dims, weights, strict=True):
        if dim < embeddings.shape[-1]:
            learner = log_probabilities(embeddings[:, :dim])
            total = total + weight * F.kl_div(learner, target, reduction="batchmean", log_target=True)
    return total


def embed(model: nn.Module, columns: list[dict[str, Tensor]]) -> list[Tensor]:
    """Embed each column of a batch, ``[batch, width]`` each, in one forward pass if possible."""
    merged = merge(columns)
    if merged is None:
        return [model(dict(column))["sentence_embedding"] for column in columns]
    return list(model(merged)["sentence_embedding"].chunk(len(columns)))


def merge(columns: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Concatenate the rows of all columns into one batch, padded to the longest row.

    Returns None if that is impossible: columns of different kinds, or texts without padding.
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
        elif isinstance(value, np.ndarray):  # the copy of the attention mask in CPU memory
            longest = max(v.shape[1] for v in values)
            merged[key] = np.concatenate([np.pad(v, ((0, 0), (0, longest - v.shape[1]))) for v in values])
        elif not isinstance(value, Tensor) and all(v == value for v in values):
            merged[key] = value
        else:
            return None
    return merged


@contextmanager
def already_embedded(model: nn.Module) -> Iterator[None]:
    """Within this context, ``model`` returns its input features, from which the wrapped loss reads the embeddings."""
    own = model.__dict__.get("forward")
    model.forward = lambda features, **_: features
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own
