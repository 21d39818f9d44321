"""Rotates the embeddings after training, so that their prefixes better preserve the similarities at full width.

An orthogonal map does not change similarities at full width, but it changes the similarities of a prefix, because it decides which
directions the prefix spans. The map is learnt on embeddings of training texts, which are computed once. Learning takes a minute
or two on a CPU. Principal axes would keep the most variance; this map minimises the error of the similarities themselves.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data_files import text_columns
from common.errors import RunError

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

STEPS = 600
ROWS = 512  # texts per step
LEARNING_RATE = 3e-3
MIN_TEXTS, MAX_TEXTS = 20, 10_000  # texts to embed
HELD_OUT = 0.1  # share of the texts held out to check that the map helps


@dataclass(frozen=True)
class PrefixMap:
    """An orthogonal map, and its effect on held-out texts.

    Attributes:
        rotation: Shape ``[width, width]``; an embedding ``x`` becomes ``x @ rotation``.
        errors_before, errors_after: For each dimension below the width, the root mean squared difference between the
            similarities at that dimension and at full width, weighted as in :func:`similarity_errors`.
    """

    rotation: Tensor
    errors_before: dict[int, float]
    errors_after: dict[int, float]


def similarity_errors(embeddings: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Return for each dimension the weighted mean squared difference between the prefix's cosine similarities and those at full width.

    Search and graded similarity tasks depend on the similarities of related texts, but most pairs of texts are unrelated.
    Therefore each pair is weighted by how far its similarity at full width is above the mean: the weight is the logistic function
    of 2(z - 1), where z is the distance from the mean in standard deviations.

    Args:
        embeddings: Shape ``[texts, width]``.
        dims: The dimensions of the prefixes.
    """
    full = F.normalize(embeddings, dim=-1)
    target = full @ full.T
    off_diagonal = ~torch.eye(len(full), dtype=torch.bool, device=full.device)
    spread, mean = torch.std_mean(target[off_diagonal])
    weights = torch.sigmoid(2 * ((target - mean) / spread.clamp(min=1e-12) - 1)) * off_diagonal
    weights = weights / weights.sum()
    errors = []
    for dim in dims:
        prefix = F.normalize(embeddings[:, :dim], dim=-1)
        errors.append(((prefix @ prefix.T - target).square() * weights).sum())
    return errors


def check_prefix_map(model: SentenceTransformer, datasets: Iterable[Dataset], dims: Sequence[int]) -> None:
    """Check before training what :func:`add_prefix_map` needs after it.

    Args:
        dims: The dimensions, with the full width.

    Raises:
        RunError: There are fewer than ``MIN_TEXTS`` texts, no dimension is below the width, or the model has no pooling module.
    """
    kinds = [type(module).__name__ for module in model]
    if not {"Pooling", "StaticEmbedding"} & set(kinds):
        raise RunError(
            f"--prefix_map: the map goes after a pooling module, but the model has none (its modules: {', '.join(kinds)})"
        )
    if len(dims) < 2:
        raise RunError(
            f"--prefix_map needs a dimension below the full width, {max(dims)}: add one to --matryoshka_dims"
        )
    texts = len(sample_texts(datasets, MIN_TEXTS, seed=0))
    if texts < MIN_TEXTS:
        raise RunError(
            f"--prefix_map learns from at least {MIN_TEXTS} different training texts, but there are only {texts}: "
            "use more data, or leave it out"
        )


def learn_prefix_map(
    embeddings: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    seed: int = 42,
    steps: int = STEPS,
) -> PrefixMap:
    """Learn the rotation that minimises the weighted sum of :func:`similarity_errors` over the dimensions.

    Within each block of axes, from one of ``dims`` to the next, the axes are then rotated to the principal axes of the
    subspace that they span, largest first, so that dimensions between two of ``dims`` work well too.

    Args:
        embeddings: Embeddings of training texts, shape ``[texts, width]``. Neighbouring rows may be similar (a text and its
            translation) and stay together in a batch.
        dims: The dimensions; those that are not below the width are ignored.
        weights: A weight for each of ``dims``; 1 by default.
        steps: Steps of Adam on ``ROWS`` texts each.

    Raises:
        ValueError: There are fewer than ``MIN_TEXTS`` texts, or no dimension is below the width.
    """
    width = embeddings.shape[1]
    weight_of = dict(zip(dims, weights or [1.0] * len(dims), strict=True))
    below = sorted(dim for dim in dims if dim < width)
    if not below or len(embeddings) < MIN_TEXTS:
        raise ValueError(f"{len(embeddings)} texts, dimensions {list(dims)}: see check_prefix_map")
    embeddings = F.normalize(embeddings.float(), dim=-1)
    learnt_on = len(embeddings) - max(10, int(HELD_OUT * len(embeddings)))
    train, held_out = embeddings[:learnt_on], embeddings[learnt_on:]

    generator = torch.Generator().manual_seed(seed)
    # exp(free - free.T) is a rotation, whatever the entries of this matrix
    free = torch.zeros(width, width, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        start = torch.randint(0, max(1, len(train) - 1), (ROWS // 2,), generator=generator)
        batch = train[torch.cat([start, (start + 1).clamp(max=len(train) - 1)]).unique()]
        errors = similarity_errors(batch @ torch.matrix_exp(free - free.T), below)
        loss = sum(weight_of[dim] * error for dim, error in zip(below, errors, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        rotation = torch.matrix_exp((free - free.T).double())
        rotation = _order_axes(train.double(), rotation, [*below, width])
        u, _, v = torch.linalg.svd(rotation)  # orthogonal to machine precision
        rotation = u @ v
        before, after = (
            {dim: float(error.sqrt()) for dim, error in zip(below, similarity_errors(rows, below), strict=True)}
            for rows in (held_out.double(), held_out.double() @ rotation)
        )
    return PrefixMap(rotation.float(), before, after)


def _order_axes(embeddings: Tensor, rotation: Tensor, ends: list[int]) -> Tensor:
    """Rotate each block of axes, from one of ``ends`` to the next, to the principal axes of its subspace, largest first."""
    rotated = embeddings @ rotation
    blocks = []
    for start, end in zip([0, *ends], ends, strict=False):
        block = rotated[:, start:end]
        _, axes = torch.linalg.eigh(block.T @ block)
        blocks.append(rotation[:, start:end] @ axes.flip(1))
    return torch.cat(blocks, dim=1)


def add_prefix_map(
    model: SentenceTransformer,
    datasets: Iterable[Dataset],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    seed: int = 42,
) -> PrefixMap | None:
    """Learn a map on the model's embeddings of training texts, and add it to the model if it helps.

    A model gets a ``Dense`` module without bias or activation, before the normalisation at its end if it has one. If static
    embeddings are not followed by other modules, the map is folded into their table.

    Args:
        datasets: The training data. At most ``MAX_TEXTS`` texts are used, from rows drawn at random over all data sets.

    Returns:
        The map, or None if it does not reduce the summed error of the prefixes on held-out texts.

    Raises:
        ValueError: As in :func:`learn_prefix_map`.
    """
    texts = sample_texts(datasets, MAX_TEXTS, seed)
    embeddings = model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_tensor=True).float().cpu()
    prefix_map = learn_prefix_map(embeddings, dims, weights, seed)
    for dim, error in prefix_map.errors_before.items():
        logger.info(
            "prefix map, %d dimensions: root mean squared error of the similarities %.4f (before: %.4f)",
            dim,
            prefix_map.errors_after[dim],
            error,
        )
    if sum(prefix_map.errors_after.values()) >= sum(prefix_map.errors_before.values()):
        logger.warning("the prefix map is not used: it does not reduce the error on held-out texts")
        return None
    insert_rotation(model, prefix_map.rotation)
    return prefix_map


def sample_texts(datasets: Iterable[Dataset], limit: int, seed: int) -> list[str]:
    """Collect at most ``limit`` different texts from rows in random order. The texts of a row, which are similar, stay together."""
    texts_of_rows = []
    for dataset in datasets:
        texts_of_rows += zip(*(dataset[column] for column in text_columns(dataset)), strict=True)
    random.Random(seed).shuffle(texts_of_rows)
    return list(islice(dict.fromkeys(text for row in texts_of_rows for text in row if text is not None), limit))


def insert_rotation(model: SentenceTransformer, rotation: Tensor) -> None:
    """Add ``x @ rotation`` after the last module that is not a normalisation, which a rotation does not change."""
    from sentence_transformers.sentence_transformer.modules import Dense

    modules = list(model)
    kinds = [type(module).__name__ for module in modules]
    place = max(index for index, kind in enumerate(kinds) if kind != "Normalize") + 1
    if kinds[place - 1] == "StaticEmbedding":
        table = modules[0].embedding.weight
        with torch.no_grad():
            table.copy_((table.double() @ rotation.double().to(table.device)).to(table.dtype))
        return
    width = len(rotation)
    dense = Dense(width, width, bias=False, activation_function=nn.Identity()).to(model.device)
    with torch.no_grad():
        dense.linear.weight.copy_(rotation.T)
    names = [name for name, _ in model.named_children()]
    for name in names:
        del model._modules[name]
    for index, module in enumerate([*modules[:place], dense, *modules[place:]]):
        model.add_module(str(index), module)
