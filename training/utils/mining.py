"""Mines hard negatives with ``mine_hard_negatives``: texts near an anchor that are not its positives."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import RunError, writing
from common.prompts import DOCUMENT, QUERY, document_prompt
from training.utils.leaks import normalise
from training.utils.mining_options import RANDOM, MiningConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

SIMILARITIES = 2**26  # similarities computed at a time: 256 MiB in float32
ROWS = 2**16  # pairs that a guide scores at a time
# positives of one anchor; for every anchor, the library finds as many extra candidates as the largest number of positives
MOST_POSITIVES = 100


class Guide:
    """A second model that scores candidates, in place of the cross-encoder of ``mine_hard_negatives``.

    Args:
        model: The model; each text is encoded once.
        anchors, candidates: All texts that may be scored.
        batch_size: Texts in a forward pass.
    """

    def __init__(self, model: SentenceTransformer, anchors: list[str], candidates: list[str], batch_size: int):
        self._anchors, self._candidates = (
            model.encode(texts, prompt=prompt, batch_size=batch_size, normalize_embeddings=True, convert_to_tensor=True)
            for texts, prompt in zip((anchors, candidates), role_prompts(model).values(), strict=True)
        )
        self._anchor_rows, self._candidate_rows = (
            {text: row for row, text in enumerate(texts)} for texts in (anchors, candidates)
        )

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> Tensor:
        """Return the cosine similarity of each pair of anchor and candidate, shape ``[pairs]``."""
        import torch

        parts = []
        for start in range(0, len(pairs), ROWS):
            part = pairs[start : start + ROWS]
            anchors = self._anchors[[self._anchor_rows[anchor] for anchor, _ in part]]
            candidates = self._candidates[[self._candidate_rows[candidate] for _, candidate in part]]
            parts.append((anchors * candidates).sum(dim=1))
        return torch.cat(parts)


def role_prompts(model: SentenceTransformer) -> dict[str, str]:
    """Return the prompts for anchors and candidates: the model's prompts for a ``query`` and for a ``document``.

    The model's default prompt replaces a missing one. Documents never get the query prompt: if it is the default, they get none.
    """
    default = model.default_prompt_name
    query = model.prompts.get(QUERY) or model.prompts.get(default) or ""
    document = document_prompt(model)
    if document is None and default != QUERY:
        document = model.prompts.get(default)
    return {QUERY: query, DOCUMENT: document or ""}


def mine(
    dataset: Dataset, model: SentenceTransformer, config: MiningConfig, guide: SentenceTransformer | None = None
) -> tuple[dict[str, list[str | None]], dict[str, Any]]:
    """Find negatives for each pair among the positives of all pairs.

    The negatives of an anchor never include the anchor itself, its positives, or another anchor that has it as a positive,
    whatever their spelling (case, punctuation, accents: see :func:`training.utils.leaks.normalise`). If an anchor has
    several positives, the margins apply to the least similar one. The relative margin is from de Souza P. Moreira et al.,
    2024, https://arxiv.org/abs/2407.15831.

    Args:
        dataset: Rows of ``anchor`` and ``positive``.
        guide: See :class:`Guide`.

    Returns:
        The columns ``anchor``, ``positive`` and ``negative`` (or ``negative_1``, ..., None where a row has fewer) of the pairs
        that have a negative, each pair once; and the counts.

    Raises:
        RunError: No pair has a negative, or a model produced NaN or infinite similarities.
    """
    pairs = distinct_pairs(dataset)
    refused = refused_texts(pairs)
    candidates, positive_scores = find_candidates(list(pairs), refused, model, config, guide)
    negatives = choose(candidates, refused, config)

    rows = [(*texts, *negatives[anchor]) for (anchor, _), texts in pairs.items() if negatives.get(anchor)]
    if not rows:
        raise RunError(f"{config.path}: no pair has a negative: lower the margins, raise --range_max, or add pairs")
    width = 2 + config.num_negatives
    names = ["negative"] if width == 3 else [f"negative_{place + 1}" for place in range(config.num_negatives)]
    columns = zip(*(row + (None,) * (width - len(row)) for row in rows), strict=True)
    negative_scores = [score for scores in negatives.values() for score in scores.values()]
    counts = {
        "pairs": len(dataset),
        "duplicated_pairs": len(dataset) - len(pairs),
        "pairs_without_negatives": len(pairs) - len(rows),
        "rows": len(rows),
        "rows_with_fewer_negatives": sum(len(row) < width for row in rows),
        "negatives": sum(len(row) - 2 for row in rows),
        "mean_similarity": {
            "positives": round(float(np.mean(positive_scores)), 4),
            "negatives": round(float(np.mean(negative_scores)), 4),
        },
    }
    return dict(zip(["anchor", "positive", *names], map(list, columns), strict=True)), counts


def distinct_pairs(dataset: Dataset) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the distinct pairs of a data set.

    Texts that differ only in spelling (see :func:`training.utils.leaks.normalise`) count as one text.

    Returns:
        The texts of each pair as its first row spells them. In the keys, each text has the spelling of its first occurrence
        in the data set.
    """
    first_spelling: dict[str, str] = {}
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    for texts in zip(dataset["anchor"], dataset["positive"], strict=True):
        anchor, positive = (first_spelling.setdefault(normalise(text), text) for text in texts)
        pairs.setdefault((anchor, positive), texts)
    return pairs


def refused_texts(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return for each anchor the texts, apart from its positives, that cannot be its negatives.

    These are the anchor itself and every other anchor that has it as a positive.
    """
    refused: dict[str, set[str]] = defaultdict(set)
    for anchor, positive in pairs:
        refused[anchor].add(anchor)
        refused[positive].add(anchor)
    return refused


def find_candidates(
    pairs: list[tuple[str, str]],
    refused: dict[str, set[str]],
    model: SentenceTransformer,
    config: MiningConfig,
    guide: SentenceTransformer | None,
) -> tuple[dict[str, dict[str, float]], list[float]]:
    """Find each anchor's candidates with their similarities, nearest first, and the similarities of the positives.

    Raises:
        RunError: A similarity is NaN or infinite.
    """
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    texts = list(dict.fromkeys(positive for _, positive in pairs))
    counts = Counter(anchor for anchor, _ in pairs)
    if too_many := {anchor for anchor, count in counts.items() if count > MOST_POSITIVES}:
        logger.warning(
            "%d anchors have more than %d positives, so other texts are probably positives too: no negatives are mined for these anchors",
            len(too_many),
            MOST_POSITIVES,
        )
    used = [pair for pair in pairs if pair[0] not in too_many]
    if not used:
        return {}, []
    anchors = list(dict.fromkeys(anchor for anchor, _ in used))
    text_set = set(texts)
    most_refused = max(len(refused[anchor] & text_set) for anchor in anchors)
    prompts = role_prompts(model)
    model.similarity_fn_name = "cosine"
    random.seed(config.seed)  # the library samples with Python's global generator
    mined = mine_hard_negatives(
        Dataset.from_dict(dict(zip(["anchor", "positive"], map(list, zip(*used, strict=True)), strict=True))),
        model,
        corpus=texts,
        cross_encoder=None if guide is None else Guide(guide, anchors, texts, config.batch_size),
        range_min=config.range_min,
        range_max=config.range_max,
        max_score=config.max_score,
        absolute_margin=config.absolute_margin,
        relative_margin=config.relative_margin,
        num_negatives=min(config.num_negatives + most_refused, config.range_max - config.range_min),
        sampling_strategy=config.sampling_strategy,
        query_prompt=prompts[QUERY],
        corpus_prompt=prompts[DOCUMENT],
        output_format="labeled-list",
        output_scores=True,
        batch_size=config.batch_size,
        faiss_batch_size=max(1, SIMILARITIES // len(texts)),
        verbose=False,
    )
    candidates: dict[str, dict[str, float]] = {}
    positive_scores = []
    for row in mined:
        if not np.isfinite(row["scores"]).all():
            raise RunError("the model or the guide produced NaN or infinite similarities")
        positive_scores.append(row["scores"][0])
        candidates[row["anchor"]] = dict(zip(row["positive"][1:], row["scores"][1:], strict=True))
    return candidates, positive_scores


def choose(
    candidates: dict[str, dict[str, float]], refused: dict[str, set[str]], config: MiningConfig
) -> dict[str, dict[str, float]]:
    """Select the negatives among each anchor's candidates, nearest first."""
    generator = random.Random(config.seed)
    chosen = {}
    for anchor, scores in candidates.items():
        allowed = [text for text in scores if text not in refused[anchor]]
        if config.sampling_strategy == RANDOM and len(allowed) > config.num_negatives:
            places = sorted(generator.sample(range(len(allowed)), config.num_negatives))
            allowed = [allowed[place] for place in places]
        chosen[anchor] = {text: scores[text] for text in allowed[: config.num_negatives]}
    return chosen


def report(counts: dict[str, Any]) -> None:
    """Log a summary of the mined negatives."""
    logger.info(
        "%d of %d distinct pairs have negatives, %d in all (%d rows have fewer than requested); mean similarity to the anchor: positives %.3f, negatives %.3f",
        counts["rows"],
        counts["pairs"] - counts["duplicated_pairs"],
        counts["negatives"],
        counts["rows_with_fewer_negatives"],
        *counts["mean_similarity"].values(),
    )


def write_parquet(columns: dict[str, list[str | None]], path: Path) -> None:
    """Write columns of text to a file atomically.

    Raises:
        RunError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path, "free some disk space, or choose another --output_file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                pq.write_table(pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
