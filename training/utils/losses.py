"""The Matryoshka loss: one forward pass, and the wrapped loss at every prefix of its embeddings.

Kusupati et al., Matryoshka Representation Learning, 2022, https://arxiv.org/abs/2205.13147
"""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer import losses as st
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import RunError, one_line
from common.models import load_model
from common.packing import pack
from training.utils.options import DatasetEntry

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

SELF_DISTILLATION_SCALE = 20.0  # inverse temperature of the similarities that teach


class MatryoshkaLoss(st.MatryoshkaLoss):
    """The sum over ``matryoshka_dims`` of the weighted loss on the first ``dim`` numbers of each embedding, normalised.

    It has the value and the gradients of the library's ``MatryoshkaLoss``, and differs in three ways: each dimension may
    have a loss of its own (a classification head is as wide as its input); all columns of a batch are embedded in one
    forward pass; and the loss at each dimension is kept for the log, in ``components``. To it may be added
    :func:`self_distillation`, kept as the component ``self``.

    Args:
        model: The model to train.
        loss: The loss to wrap, or one for each dimension.
        matryoshka_dims: Dimensions, each at most the width of the embeddings.
        matryoshka_weights: A weight for each dimension, in the same order; 1 by default.
        self_distillation_weight: Weight of the self-distillation at all dimensions below the width; 0 for none.

    Raises:
        ValueError: A dimension is not positive or above the width, or the weights do not match.
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

        losses: dict[int, Tensor] = {}
        with already_embedded(self.model):
            for dim, weight in zip(self.matryoshka_dims, self.matryoshka_weights, strict=True):
                prefixes = [
                    {**column, "sentence_embedding": F.normalize(embedding[..., :dim], dim=-1)}
                    for column, embedding in zip(features, embeddings, strict=True)
                ]
                losses[dim] = weight * self.loss_at(dim)(
                    prefixes, labels[..., :dim] if labels_are_embeddings else labels
                )
        self.components = {dim: loss.detach() for dim, loss in losses.items()}
        total = torch.stack(list(losses.values())).sum()
        return total + self._self_distillation(embeddings) if self.self_distillation_weight else total

    def _self_distillation(self, embeddings: list[Tensor]) -> Tensor:
        """The weighted self-distillation of a batch, kept for the log."""
        loss = self.self_distillation_weight * self_distillation(
            torch.cat(embeddings), self.matryoshka_dims, self.matryoshka_weights
        )
        self.components["self"] = loss.detach()
        return loss

    def _with_self_distillation(self, calculate_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The gradient cache's computation from all cached embeddings, with the self-distillation added to it."""

        def calculate(reps: list[list[Tensor]], *args: Any, with_backward: bool = False, **kwargs: Any) -> Tensor:
            loss = calculate_loss(reps, *args, with_backward=with_backward, **kwargs)
            if not self.self_distillation_weight:
                return loss
            added = self._self_distillation([torch.cat(column) for column in reps])
            if with_backward:  # adds to the gradients of the cached embeddings
                added.backward()
            return loss + added.detach()

        return calculate

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
        }


def self_distillation(embeddings: Tensor, dims: Sequence[int], weights: Sequence[float]) -> Tensor:
    """What the similarities at full width teach those at each prefix: a scalar.

    The cosine similarities of a text with each other text of the batch, times 20, are a distribution (softmax). The loss is
    the Kullback-Leibler divergence from the one at full width, through which no gradient flows, to that at a prefix, mean over
    the texts, and summed over the prefixes with their weights.

    Args:
        embeddings: All texts of a batch, shape ``[texts, width]``.
        dims: Dimensions; those that are the full width teach nothing.
        weights: A weight for each dimension.
    """

    def log_probabilities(prefix: Tensor) -> Tensor:  # [texts, texts - 1]
        prefix = F.normalize(prefix.float(), dim=-1)
        texts = len(prefix)
        # less the diagonal: in one row, each of its numbers is followed by `texts` others; a mask would make a GPU wait
        others = (prefix @ prefix.T).flatten()[1:].view(texts - 1, texts + 1)[:, :-1].reshape(texts, texts - 1)
        return (SELF_DISTILLATION_SCALE * others).log_softmax(dim=-1)

    target = log_probabilities(embeddings.detach())
    total = embeddings.new_zeros(())
    for dim, weight in zip(dims, weights, strict=True):
        if dim < embeddings.shape[-1]:
            found = log_probabilities(embeddings[:, :dim])
            total = total + weight * F.kl_div(found, target, reduction="batchmean", log_target=True)
    return total


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


class Guide:
    """A frozen model that tells false negatives (GISTEmbed, Solatorio, 2024, https://arxiv.org/abs/2402.16829).

    Not a module, so that nothing trains it, saves it with the losses or deals it out to processes. It embeds the columns of a
    batch once, though the loss asks for them at every dimension.

    Args:
        model: The model that guides; it is frozen, packed and put into evaluation mode.
    """

    def __init__(self, model: SentenceTransformer):
        self.model = pack(model).requires_grad_(False).eval()
        self.tokenizer, self.preprocess = model.tokenizer, model.preprocess
        self.max_seq_length, self.device = model.max_seq_length, model.device
        self._seen: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=3)  # as many as a batch has columns

    def __call__(self, features: dict[str, Any]) -> dict[str, Tensor]:
        """The embeddings of tokenised texts, ``{"sentence_embedding": [batch, width]}``."""
        ids, mask = features["input_ids"], features["attention_mask"]
        for seen_ids, seen_mask, embedding in self._seen:
            if ids.shape == seen_ids.shape and torch.equal(ids, seen_ids) and torch.equal(mask, seen_mask):
                return {"sentence_embedding": embedding}
        with torch.no_grad():
            embedding = self.model(dict(features))["sentence_embedding"]
        self._seen.append((ids, mask, embedding))
        return {"sentence_embedding": embedding}


def make_loss(
    model: SentenceTransformer,
    entry: DatasetEntry,
    dataset: Dataset,
    dims: list[int],
    weights: list[float] | None = None,
    mini_batch_size: int | None = None,
    self_distillation_weight: float = 0.0,
    **permissions: bool,
) -> MatryoshkaLoss:
    """The loss of a data set, at every dimension.

    ``mnrl`` is MultipleNegativesRankingLoss, on pairs or triplets, with the other processes' rows as negatives too: with
    ``query_to_doc`` and ``doc_to_query`` the mean of the two (Guenther et al., 2023, https://arxiv.org/abs/2310.19923), with
    the other directions one softmax over all (Li et al., 2023, https://arxiv.org/abs/2308.03281). ``gist`` also leaves out
    negatives that a guide finds more alike than the positive (Solatorio, 2024, https://arxiv.org/abs/2402.16829). ``cosent``,
    ``angle`` and ``cosine`` compare the cosine similarity with a score. ``softmax`` classifies pairs (Reimers and Gurevych,
    2019), with a head for each dimension, which is trained along and left out of the final model. ``distill`` turns embeddings
    towards a teacher's of the first column (EmbedDistill, Kim et al., 2023, https://arxiv.org/abs/2301.12005), of translations
    too (Reimers and Gurevych, 2020, https://arxiv.org/abs/2004.09813); a prefix towards the teacher's prefix.

    Args:
        mini_batch_size: Rows that ``mnrl`` and ``gist`` embed at a time (GradCache, Gao et al., 2021,
            https://arxiv.org/abs/2101.06983).
        self_distillation_weight: See :class:`MatryoshkaLoss`.
        **permissions: ``trust_remote_code`` and ``allow_pickle`` of :func:`load_model`, for the guide.

    Raises:
        RunError: The guide cannot be loaded, or it and the model have no tokenizer that the texts can be read from.
    """
    inner: nn.Module | dict[int, nn.Module]
    gather = get_world_size() > 1
    if entry.loss == "mnrl":
        options = {
            "scale": entry.scale,
            "gather_across_devices": gather,
            "directions": tuple(entry.directions),
            "partition_mode": "joint" if set(entry.directions) & {"query_to_query", "doc_to_doc"} else "per_direction",
        }
        if mini_batch_size is None:
            inner = st.MultipleNegativesRankingLoss(model, **options)
        else:
            inner = st.CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size, **options)
    elif entry.loss == "gist":
        options = {"temperature": 1 / entry.scale, "gather_across_devices": gather}
        try:
            guide = Guide(copy.deepcopy(model) if entry.guide is None else load_model(entry.guide, **permissions))
            if mini_batch_size is None:
                inner = st.GISTEmbedLoss(model, guide, **options)
            else:
                inner = st.CachedGISTEmbedLoss(model, guide, mini_batch_size=mini_batch_size, **options)
        except (ValueError, TypeError) as error:  # what the library says of tokenizers that it cannot use
            raise RunError(f"{entry.path}: gist: {one_line(error)}") from None
    elif entry.loss == "cosent":
        inner = st.CoSENTLoss(model, scale=entry.scale)
    elif entry.loss == "angle":
        inner = st.AnglELoss(model, scale=entry.scale)
    elif entry.loss == "cosine":
        inner = st.CosineSimilarityLoss(model)
    elif entry.loss == "distill":
        inner = st.EmbedDistillLoss(model, distance_metric="cosine")
    else:
        num_labels = max(dataset["label"]) + 1
        inner = {dim: st.SoftmaxLoss(model, dim, num_labels) for dim in dims}
    if gather and entry.loss in ("cosent", "angle"):
        logger.info("%s: the %s loss compares the rows of one process only", entry.path, entry.loss)
    return MatryoshkaLoss(model, inner, dims, weights, self_distillation_weight=self_distillation_weight)


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
