"""The loss of each data set: a builder for every entry of the table in :mod:`training.utils.options`."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer import losses as st
from torch import Tensor, nn

from common.errors import RunError, UsageError, one_line
from common.models import load_model
from common.packing import pack
from training.utils.matryoshka_loss import MatryoshkaLoss, merge
from training.utils.options import DatasetEntry, TrainingConfig
from training.utils.processes import get_world_size
from training.utils.similarity_distillation import SimilarityDistillLoss

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


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
        self._seen: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=3)  # anchors, positives, negatives

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


class GISTLoss(st.GISTEmbedLoss):
    """GISTEmbedLoss with any number of negatives, where the library's takes one: it compares an anchor with all of them alike."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        anchors, positives, *negatives = sentence_features
        if len(negatives) > 1:
            inputs = merge([{k: v for k, v in column.items() if k != "sentence_embedding"} for column in negatives])
            embeddings = [column["sentence_embedding"] for column in negatives if "sentence_embedding" in column]
            negatives = [inputs | ({"sentence_embedding": torch.cat(embeddings)} if embeddings else {})]
        return super().forward([anchors, positives, *negatives], labels)


@dataclass(frozen=True)
class LossInputs:
    """What a loss is built from: the arguments of :func:`make_loss` that are not the Matryoshka loss's own."""

    model: SentenceTransformer
    entry: DatasetEntry
    dataset: Dataset
    dims: list[int]
    mini_batch_size: int | None
    loading_options: dict[str, bool]

    @property
    def gather(self) -> bool:
        """Whether there are other processes, whose rows are negatives too."""
        return get_world_size() > 1


def build_mnrl(inputs: LossInputs) -> nn.Module:
    """MultipleNegativesRankingLoss, on pairs or triplets.

    With ``query_to_doc`` and ``doc_to_query`` it is the mean of the two (Guenther et al., 2023,
    https://arxiv.org/abs/2310.19923), with the other directions one softmax over all (Li et al., 2023,
    https://arxiv.org/abs/2308.03281). With mini-batches: GradCache (Gao et al., 2021, https://arxiv.org/abs/2101.06983).
    """
    directions = inputs.entry.directions
    options = {
        "scale": inputs.entry.scale,
        "gather_across_devices": inputs.gather,
        "directions": tuple(directions),
        "partition_mode": "joint" if set(directions) & {"query_to_query", "doc_to_doc"} else "per_direction",
    }
    if inputs.mini_batch_size is None:
        return st.MultipleNegativesRankingLoss(inputs.model, **options)
    return st.CachedMultipleNegativesRankingLoss(inputs.model, mini_batch_size=inputs.mini_batch_size, **options)


def build_gist(inputs: LossInputs) -> nn.Module:
    """The same without the negatives that a guide finds more similar than the positive (Solatorio, 2024,
    https://arxiv.org/abs/2402.16829).
    """
    model, entry = inputs.model, inputs.entry
    options = {"temperature": 1 / entry.scale, "gather_across_devices": inputs.gather}
    try:
        guide = Guide(
            copy.deepcopy(model) if entry.guide is None else load_model(entry.guide, **inputs.loading_options)
        )
        if inputs.mini_batch_size is None:
            return GISTLoss(model, guide, **options)
        return st.CachedGISTEmbedLoss(model, guide, mini_batch_size=inputs.mini_batch_size, **options)
    except (ValueError, TypeError) as error:  # what the library says of tokenizers that it cannot use
        raise RunError(f"{entry.path}: gist: {one_line(error)}") from None


def build_cosent(inputs: LossInputs) -> nn.Module:
    """CoSENTLoss: pairs with a higher score should be more similar (Su, 2022, https://kexue.fm/archives/8847)."""
    _log_rows_compared(inputs)
    return st.CoSENTLoss(inputs.model, scale=inputs.entry.scale)


def build_angle(inputs: LossInputs) -> nn.Module:
    """AnglELoss: CoSENT on angles in complex space (Li and Li, 2023, https://arxiv.org/abs/2309.12871)."""
    _log_rows_compared(inputs)
    return st.AnglELoss(inputs.model, scale=inputs.entry.scale)


def _log_rows_compared(inputs: LossInputs) -> None:
    if inputs.gather:
        logger.info("%s: the %s loss compares the rows of one process only", inputs.entry.path, inputs.entry.loss)


def build_cosine(inputs: LossInputs) -> nn.Module:
    """CosineSimilarityLoss: the squared difference of cosine similarity and score."""
    return st.CosineSimilarityLoss(inputs.model)


def build_softmax(inputs: LossInputs) -> dict[int, nn.Module]:
    """SoftmaxLoss: classifies pairs (Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084).

    Each dimension has a head, which is trained too and is no part of the final model.
    """
    num_labels = max(inputs.dataset["label"]) + 1
    return {dim: st.SoftmaxLoss(inputs.model, dim, num_labels) for dim in inputs.dims}


def build_distill(inputs: LossInputs) -> nn.Module:
    """EmbedDistillLoss: turns embeddings towards a teacher's embedding of the first column (Kim et al., 2023,
    https://arxiv.org/abs/2301.12005), those of translations too (Reimers and Gurevych, 2020,
    https://arxiv.org/abs/2004.09813), and each prefix towards the prefix of the teacher's. With ``similarities`` for the target,
    every prefix learns the teacher's similarities at full width: see :class:`SimilarityDistillLoss`.
    """
    if inputs.entry.target == "similarities":
        return SimilarityDistillLoss(inputs.model)
    return st.EmbedDistillLoss(inputs.model, distance_metric="cosine")


BUILDERS: dict[str, Callable[[LossInputs], nn.Module | dict[int, nn.Module]]] = {
    "mnrl": build_mnrl,
    "gist": build_gist,
    "cosent": build_cosent,
    "angle": build_angle,
    "cosine": build_cosine,
    "softmax": build_softmax,
    "distill": build_distill,
}


def make_loss(
    model: SentenceTransformer,
    entry: DatasetEntry,
    dataset: Dataset,
    dims: list[int],
    weights: list[float] | None = None,
    mini_batch_size: int | None = None,
    self_distillation_weight: float = 0.0,
    **loading_options: bool,
) -> MatryoshkaLoss:
    """The loss of a data set, at every dimension.

    Args:
        dataset: Its rows, in the columns that the loss reads.
        dims: The dimensions, each at most the width of the embeddings.
        weights: A weight for each dimension; 1 by default.
        mini_batch_size: Rows that a contrastive loss embeds at a time.
        self_distillation_weight: See :class:`MatryoshkaLoss`.
        **loading_options: ``trust_remote_code`` and ``allow_pickle`` of :func:`load_model`, for a guide.

    Raises:
        RunError: The guide cannot be loaded, or it and the model have no tokenizer that the texts can be read from.
    """
    inner = BUILDERS[entry.loss](LossInputs(model, entry, dataset, dims, mini_batch_size, loading_options))
    return MatryoshkaLoss(model, inner, dims, weights, self_distillation_weight=self_distillation_weight)


def fit_weights(config: TrainingConfig, dims: list[int]) -> list[float] | None:
    """The weights of ``dims``, configured for ``matryoshka_dims`` in their order; a full width that was added weighs 1.

    Raises:
        UsageError: Self-distillation is on, and no dimension below the full width is there to learn.
    """
    if config.self_distillation_weight and len(dims) == 1:
        raise UsageError(
            f"--self_distillation_weight needs a dimension below the full width of {dims[0]}: add one to --matryoshka_dims"
        )
    if config.matryoshka_weights is None:
        return None
    configured = dict(zip(config.matryoshka_dims, config.matryoshka_weights, strict=True))
    return [configured.get(dim, 1.0) for dim in dims]


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
