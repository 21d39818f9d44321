"""Builds the loss of each data set. Every entry of the table in :mod:`training.utils.options` has a builder here."""

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
    """A frozen model that identifies false negatives (GISTEmbed, Solatorio, 2024, https://arxiv.org/abs/2402.16829).

    It is not a torch module, so it is not trained, saved with the losses or distributed to processes. It embeds the columns of
    a batch once, although the loss asks for their embeddings at every dimension.

    Args:
        model: The guide; it is frozen, packed and put into evaluation mode.
    """

    def __init__(self, model: SentenceTransformer):
        self.model = pack(model).requires_grad_(False).eval()
        self.tokenizer, self.preprocess = model.tokenizer, model.preprocess
        self.max_seq_length, self.device = model.max_seq_length, model.device
        self._seen: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=3)  # anchors, positives, negatives

    def __call__(self, features: dict[str, Any]) -> dict[str, Tensor]:
        """Embed tokenised texts: ``{"sentence_embedding": [batch, width]}``. See :meth:`GISTLoss.join` for joined columns."""
        ids, mask = features["input_ids"], features["attention_mask"]
        for seen_ids, seen_mask, embedding in self._seen:
            if ids.shape == seen_ids.shape and torch.equal(ids, seen_ids) and torch.equal(mask, seen_mask):
                return {"sentence_embedding": embedding}
        with torch.no_grad():
            columns = features.get("columns", [features])
            embedding = torch.cat([self.model(dict(column))["sentence_embedding"] for column in columns])
        self._seen.append((ids, mask, embedding))
        return {"sentence_embedding": embedding}


class GISTLoss(st.GISTEmbedLoss):
    """GISTEmbedLoss with any number of negatives, all treated alike. The library's loss accepts only one."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        anchors, positives, *negatives = sentence_features
        if len(negatives) > 1:
            negatives = [self.join(negatives)]
        return super().forward([anchors, positives, *negatives], labels)

    def join(self, columns: list[dict[str, Any]]) -> dict[str, Any]:
        """Join columns of texts into one, which the guide embeds column by column, because their prompts may differ.

        Args:
            columns: Tokenised texts with their ``sentence_embedding`` of shape ``[batch, dim]``.
        """
        texts = merge([{key: column[key] for key in ("input_ids", "attention_mask")} for column in columns])
        padding = self.model.tokenizer.pad_token_id or 0  # a guide with another tokenizer reads the ids as text
        return texts | {
            "input_ids": texts["input_ids"].masked_fill(texts["attention_mask"] == 0, padding),
            "sentence_embedding": torch.cat([column["sentence_embedding"] for column in columns]),
            "columns": [{k: v for k, v in column.items() if k != "sentence_embedding"} for column in columns],
        }


@dataclass(frozen=True)
class LossInputs:
    """The arguments of :func:`make_loss` that its inner loss needs."""

    model: SentenceTransformer
    entry: DatasetEntry
    dataset: Dataset
    dims: list[int]
    mini_batch_size: int | None
    loading_options: dict[str, bool]

    @property
    def gather(self) -> bool:
        """Whether other processes also train; their rows are then negatives too."""
        return get_world_size() > 1


def build_mnrl(inputs: LossInputs) -> nn.Module:
    """MultipleNegativesRankingLoss, on pairs or triplets.

    With ``query_to_doc`` and ``doc_to_query`` the loss is the mean of both directions (Guenther et al., 2023,
    https://arxiv.org/abs/2310.19923); with further directions it is one softmax over all (Li et al., 2023,
    https://arxiv.org/abs/2308.03281). Mini-batches use GradCache (Gao et al., 2021, https://arxiv.org/abs/2101.06983).
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
    """GISTEmbedLoss: ignores negatives that a guide finds more similar than the positive (Solatorio, 2024,
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
    except (ValueError, TypeError) as error:  # the library refuses tokenizers that it cannot use
        raise RunError(f"{entry.path}: the gist loss cannot be used ({one_line(error)})") from None


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
        logger.info("%s: the %s loss compares only rows of the same process", inputs.entry.path, inputs.entry.loss)


def build_cosine(inputs: LossInputs) -> nn.Module:
    """CosineSimilarityLoss: the squared difference between the cosine similarity and the score."""
    return st.CosineSimilarityLoss(inputs.model)


def build_softmax(inputs: LossInputs) -> dict[int, nn.Module]:
    """SoftmaxLoss: classifies pairs (Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084).

    Each dimension has a head, which is trained but is not part of the final model.
    """
    num_labels = max(inputs.dataset["label"]) + 1
    return {dim: st.SoftmaxLoss(inputs.model, dim, num_labels) for dim in inputs.dims}


def build_distill(inputs: LossInputs) -> nn.Module:
    """EmbedDistillLoss: pulls the embeddings of a sentence and its translation towards the teacher's embedding of the sentence
    (Kim et al., 2023, https://arxiv.org/abs/2301.12005; Reimers and Gurevych, 2020, https://arxiv.org/abs/2004.09813), and each
    prefix towards the teacher's prefix. With the target ``similarities``, every prefix learns the teacher's similarities at full
    width: see :class:`SimilarityDistillLoss`.
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
    """Build the loss of a data set, at every dimension.

    Args:
        dataset: The rows, in the columns that the loss reads.
        dims: The dimensions, each at most the width of the embeddings.
        weights: A weight for each dimension; 1 by default.
        mini_batch_size: Rows that a contrastive loss embeds at a time.
        self_distillation_weight: See :class:`MatryoshkaLoss`.
        **loading_options: ``trust_remote_code`` and ``allow_pickle`` of :func:`load_model`, for a guide.

    Raises:
        RunError: The guide cannot be loaded, or the tokenizer of the guide or of the model cannot be used.
    """
    inner = BUILDERS[entry.loss](LossInputs(model, entry, dataset, dims, mini_batch_size, loading_options))
    return MatryoshkaLoss(model, inner, dims, weights, self_distillation_weight=self_distillation_weight)


def fit_weights(config: TrainingConfig, dims: list[int]) -> list[float] | None:
    """Return the weight of each of ``dims``, as configured for ``matryoshka_dims``. A full width that was added gets 1.

    Raises:
        UsageError: Self-distillation is on, but there is no dimension below the full width.
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
    """Return the losses' own parameters, which do not belong to the model, by name; checkpoints must store these too."""
    losses = loss if isinstance(loss, dict) else {"loss": loss}
    own = {id(parameter) for parameter in model.parameters()}
    return {
        f"{name}.{key}": parameter
        for name, module in losses.items()
        for key, parameter in module.named_parameters()
        if id(parameter) not in own
    }
