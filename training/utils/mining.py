"""Hard negatives for pairs: texts near an anchor that are not its positives, found by ``mine_hard_negatives``."""

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
from common.prompts import DOCUMENT, QUERY
from training.utils.leaks import normalise
from training.utils.mining_options import RANDOM, MiningConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

DOCUMENT_PROMPTS = (DOCUMENT, "passage", "corpus")
SIMILARITIES = 2**26  # computed at a time: 256 MiB in float32
ROWS = 2**16  # pairs that a guide scores at a time
MOST_POSITIVES = 100  # the library holds so many more candidates for every anchor


class Guide:
    """A second model that scores candidates, in the place of the cross-encoder that ``mine_hard_negatives`` takes.

    Args:
        model: The model; each text is encoded once.
        anchors, candidates: All texts that may be asked for.
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
        """The cosine similarity of each pair of anchor and candidate, shape ``[pairs]``."""
        import torch

        parts = []
        for start in range(0, len(pairs), ROWS):
            part = pairs[start : start + ROWS]
            anchors = self._anchors[[self._anchor_rows[anchor] for anchor, _ in part]]
            candidates = self._candidates[[self._candidate_rows[candidate] for _, candidate in part]]
            parts.append((anchors * candidates).sum(dim=1))
        return torch.cat(parts)


def role_prompts(model: SentenceTransformer) -> dict[str, str]:
    """What a model puts before anchors and before candidates: its prompts for a ``query`` and for a ``document``.

    Without such a prompt it is the model's default one, unless that is the prompt for queries, where documents have none.
    """
    default = model.default_prompt_name
    query = model.prompts.get(QUERY) or model.prompts.get(default) or ""
    document = next((model.prompts[name] for name in DOCUMENT_PROMPTS if model.prompts.get(name)), None)
    if document is None and default != QUERY:
        document = model.prompts.get(default)
    return {QUERY: query, DOCUMENT: document or ""}


def mine(
    dataset: Dataset, model: SentenceTransformer, config: MiningConfig, guide: SentenceTransformer | None = None
) -> tuple[dict[str, list[str | None]], dict[str, Any]]:
    """Pairs with the negatives that a model finds for them among all positives.

    Never a negative of an anchor are its own positives, the texts that it is a positive of, and itself, however they are written
    (case, punctuation, accents: see :func:`training.utils.leaks.normalise`). Where an anchor has several positives, the margins
    are below the least similar (de Souza P. Moreira et al., 2024, https://arxiv.org/abs/2407.15831, has the relative one).

    Args:
        dataset: Rows of ``anchor`` and ``positive``.
        guide: See :class:`Guide`.

    Returns:
        The columns ``anchor``, ``positive`` and ``negative`` (or ``negative_1``, ..., None where a row has fewer) of the pairs
        that have a negative, each pair once; and what was counted.

    Raises:
        RunError: No pair has a negative, or a model gives NaN or infinite similarities.
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
    """The pairs of a data set, each once, by what they are when texts that differ only in how they are written are one text."""
    written: dict[str, str] = {}
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    for texts in zip(dataset["anchor"], dataset["positive"], strict=True):
        anchor, positive = (written.setdefault(normalise(text), text) for text in texts)
        pairs.setdefault((anchor, positive), texts)
    return pairs


def refused_texts(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """For each anchor the texts, besides its positives, that are no negatives of it: itself, and those it is a positive of."""
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
    """For each anchor candidates with their similarities, nearest first, as many as can be needed; and those of the positives.

    Raises:
        RunError: A similarity is NaN or infinite.
    """
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    texts = list(dict.fromkeys(positive for _, positive in pairs))
    counts = Counter(anchor for anchor, _ in pairs)
    if too_many := {anchor for anchor, count in counts.items() if count > MOST_POSITIVES}:
        logger.warning(
            "%d anchors have more than %d positives, so that other texts are likely to be positives too: no negatives are mined for them",
            len(too_many),
            MOST_POSITIVES,
        )
    used = [pair for pair in pairs if pair[0] not in too_many]
    if not used:
        return {}, []
    anchors = list(dict.fromkeys(anchor for anchor, _ in used))
    among_texts = set(texts)
    most_refused = max(len(refused[anchor] & among_texts) for anchor in anchors)
    prompts = role_prompts(model)
    model.similarity_fn_name = "cosine"
    random.seed(config.seed)  # what the library draws from
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
            raise RunError("the model or the guide gives NaN or infinite similarities")
        positive_scores.append(row["scores"][0])
        candidates[row["anchor"]] = dict(zip(row["positive"][1:], row["scores"][1:], strict=True))
    return candidates, positive_scores


def choose(
    candidates: dict[str, dict[str, float]], refused: dict[str, set[str]], config: MiningConfig
) -> dict[str, dict[str, float]]:
    """Of each anchor's candidates those that become its negatives, nearest first."""
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
    """Log what was mined."""
    logger.info(
        "%d of %d distinct pairs have negatives, %d in all (%d rows have fewer than were asked for); mean similarity to the anchor: positives %.3f, negatives %.3f",
        counts["rows"],
        counts["pairs"] - counts["duplicated_pairs"],
        counts["negatives"],
        counts["rows_with_fewer_negatives"],
        *counts["mean_similarity"].values(),
    )


def write_parquet(columns: dict[str, list[str | None]], path: Path) -> None:
    """Write columns of text to a file that appears complete or not at all.

    Raises:
        RunError: It cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path, "make room, or choose another --output_file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                pq.write_table(pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
