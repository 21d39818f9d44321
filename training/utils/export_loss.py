"""Measures on graded pairs how much int8 weights lower the score."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data_files import load_hub_dataset, read_pairs
from common.errors import RunError
from evaluation.utils.scoring.similarity import pairwise_similarities
from evaluation.utils.scoring.statistics import bootstrap, spearman
from training.utils.data_loading import STS
from training.utils.export import prefixes
from training.utils.export_card import Loss
from training.utils.onnx_export import OnnxModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def load_scored_pairs(data: str | None) -> dict[str, dict[str, list[Any]]]:
    """Load the pairs of a file by subset, or by default the validation set of STS-B; no sets if it cannot be loaded."""
    if data is not None:
        name = Path(data).stem
        return {
            name if subset == "default" else f"{name} {subset}": pairs
            for subset, pairs in read_pairs(Path(data)).items()
        }
    try:
        dataset = load_hub_dataset(STS["en"].path, None, STS["en"].dev)
    except RunError as error:
        logger.warning(
            "%s; the effect of int8 on the score is not measured (to measure it on your own pairs, add --data FILE)",
            error,
        )
        return {}
    return {"STS-B validation": {column: list(dataset[column]) for column in ("sentence1", "sentence2", "score")}}


def measure_loss(
    model: SentenceTransformer, folder: Path, dim: int, sets: dict[str, dict[str, list[Any]]]
) -> list[Loss]:
    """Compare the embeddings of an exported folder with the normalised prefixes of ``model`` on each set of pairs.

    Texts get the model's default prompt, as in an evaluation.
    """
    exported, losses = OnnxModel(folder), []
    prompt = model.prompts.get(model.default_prompt_name) or ""
    encoders = (
        lambda texts: prefixes(model, texts, dim, prompt),
        lambda texts: exported.encode([prompt + text for text in texts]),
    )
    for name, pairs in sets.items():
        similarities = []
        for encode in encoders:
            first, second = (encode(pairs[column]) for column in ("sentence1", "sentence2"))
            similarities.append(pairwise_similarities(first, second)["cosine"])
        before, after = bootstrap(spearman(np.asarray(pairs["score"], dtype=float), similarities), len(pairs["score"]))
        low, high = (after - before).interval()
        loss = Loss(name, len(pairs["score"]), 100 * before.value, 100 * after.value, 100 * low, 100 * high)
        logger.info("%s (%d pairs): float32 %.2f, int8 %.2f", loss.name, loss.pairs, loss.before, loss.after)
        losses.append(loss)
    return losses
