"""Everything that is learnt of one model beside its scores: intervals, baselines, precisions, shortlists, errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from common.models import ModelIdentity
from evaluation.utils.analysis.baselines import baseline_scores, transforms
from evaluation.utils.analysis.error_analysis import pairs_that_move, rank_errors
from evaluation.utils.analysis.quantization import Quantizer, hamming_similarity
from evaluation.utils.analysis.recommendation import Choice, Estimates, choices, retention
from evaluation.utils.analysis.shortlist import MAX_QUERIES, shortlist_rows
from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.statistics import SEED, bootstrap

logger = logging.getLogger(__name__)


@dataclass
class ModelAnalysis:
    """What was found of one model.

    Attributes:
        rows: One for each task, subset and dimension: the summary's columns.
        languages: For each task and subset the ISO 639-3 codes of its texts.
        estimates: For each task and subset with an interval, and each dimension and precision.
        dimensions, grid: Choices of a dimension; of a dimension and precision. Fewest bytes first.
        baselines, shortlists, errors, moved: Rows of the modules of these names.
        unscored: Rows of the summary without a score, with a note that says why.
    """

    identity: ModelIdentity
    dims: list[int]
    rows: list[dict[str, Any]]
    baseline: bool = False
    languages: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    estimates: Estimates = field(default_factory=dict)
    dimensions: list[Choice] = field(default_factory=list)
    grid: list[Choice] = field(default_factory=list)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    shortlists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    moved: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unscored: list[dict[str, Any]] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.dims[0]


def pair_estimates(pairs: PairSet, dims: list[int], quantizer: Quantizer | None) -> dict:
    """The main score's estimate at each dimension, and at each precision where there is a quantizer."""
    columns: dict[tuple[int, str], np.ndarray] = {}
    for dim in dims:
        columns[dim, "float32"] = pairs.similarity(pairs.first[:, :dim], pairs.second[:, :dim])
        if quantizer is not None:
            first, second = (quantizer.restore(quantizer(side, dim, "int8")) for side in (pairs.first, pairs.second))
            columns[dim, "int8"] = pairs.similarity(first, second)
            first, second = (quantizer(side, dim, "binary") for side in (pairs.first, pairs.second))
            columns[dim, "binary"] = hamming_similarity(first, second).astype(np.float64)
    estimates = bootstrap(pairs.statistic(list(columns.values())), len(pairs.gold), sample=pairs.sample)
    return dict(zip(columns, estimates, strict=True))


def analyse(
    identity: ModelIdentity,
    dims: list[int],
    rows: list[dict[str, Any]],
    pairs: list[PairSet],
    calibration: Callable[[], np.ndarray] | None,
    query_estimates: Estimates | None = None,
    searches: list[tuple[str, np.ndarray, np.ndarray]] = (),
    baseline: bool = False,
    unscored: list[dict[str, Any]] = (),
) -> ModelAnalysis:
    """Find out all there is to know of one model.

    Args:
        dims: Largest first, the full width.
        rows: The scores; they gain intervals, differences to the full width, and retention.
        pairs: The sets of scored pairs, with full-width embeddings.
        calibration: Gives the full-width embeddings of texts that are not the test set; None leaves out what needs them:
            baselines, precisions and shortlists.
        query_estimates: Estimates of retrieval tasks.
        searches: Queries and corpora of retrieval tasks, for the shortlists; without any, the texts of the pairs are
            searched.
        baseline: The model is there to compare with.
        unscored: The summary's rows of sets and dimensions without a score.
    """
    found = ModelAnalysis(
        identity, dims, rows, baseline, languages={p.key: p.languages for p in pairs}, unscored=list(unscored)
    )
    fitted = calibration() if calibration is not None and (pairs or searches) else None
    quantizer = Quantizer(fitted) if fitted is not None else None
    makers = transforms(fitted, SEED) if fitted is not None else {}
    for one in tqdm(pairs, desc=f"analysing {identity.name}", unit="set", disable=len(pairs) < 2):
        found.estimates[one.key] = pair_estimates(one, dims, quantizer)
        found.baselines += baseline_scores(one, dims, makers) if makers else []
        found.errors += rank_errors(one, dims)
        if dims[-1] < dims[0]:
            found.moved[f"{one.task} {one.subset}".removesuffix(" default")] = pairs_that_move(one, dims[-1])
    found.estimates |= query_estimates or {}
    _add_intervals(found)
    if quantizer is not None:
        found.grid = choices(
            {one.key: found.estimates[one.key] for one in pairs if one.key in found.estimates}, found.width
        )
    found.dimensions = [c for c in choices(found.estimates, found.width) if c.precision == "float32"]
    if fitted is not None:
        for name, queries, corpus in searches or _searches_of_pairs(pairs):
            own = _own_rows(queries, corpus) if not searches else np.full(len(queries), -1)
            if len(corpus) > 20:
                found.shortlists[name] = shortlist_rows(
                    queries[:MAX_QUERIES], corpus, own[:MAX_QUERIES], dims, fitted, name
                )
    return found


def _searches_of_pairs(pairs: list[PairSet]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """All distinct texts of the sets as a corpus, and each as a query for the others."""
    rows: dict[str, np.ndarray] = {}
    for one in pairs:
        for texts, embeddings in ((one.sentence1, one.first), (one.sentence2, one.second)):
            for text, embedding in zip(texts, embeddings, strict=True):
                rows.setdefault(text, embedding)
    if not rows:
        return []
    corpus = np.stack(list(rows.values()))
    step = max(1, len(corpus) // MAX_QUERIES)
    return [("the texts of the pairs", corpus[::step], corpus)]


def _own_rows(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    return np.arange(len(queries)) * max(1, len(corpus) // MAX_QUERIES)


def _add_intervals(found: ModelAnalysis) -> None:
    """The summary's columns of an interval, for the rows whose estimate is their score."""
    full = {(row["task"], row["subset"]): row["score"] for row in found.rows if row["dim"] == found.width}
    for row in found.rows:
        key = row["task"], row["subset"]
        row["retention"] = retention(row["score"], full.get(key, math.nan))  # which mteb may have none for
        estimate = found.estimates.get(key, {}).get((row["dim"], "float32"))
        if estimate is None:
            continue
        if not math.isclose(estimate.value, row["score"], abs_tol=1e-4):
            logger.warning("%s %s: no interval, since mteb's %s is measured in another way", *key, row["metric"])
            del found.estimates[key]
            continue
        row["ci_low"], row["ci_high"] = _rounded(estimate.interval())
        difference = estimate - found.estimates[key][found.width, "float32"]
        row["diff_full"], row["p_full"] = _rounded((difference.value, difference.p_value()))
        row["diff_full_low"], row["diff_full_high"] = _rounded(difference.interval())


def _rounded(numbers: tuple[float, ...]) -> list[float]:
    """Six digits: what a bootstrap tells, and the same on every machine."""
    return [round(number, 6) for number in numbers]


def compare_with_first(found: list[ModelAnalysis]) -> None:
    """Hold each further model against the first at each dimension, the full width against the full width."""
    first = found[0]
    for model in found[1:]:
        for row in model.rows:
            ours = model.estimates.get((row["task"], row["subset"]), {})
            theirs = first.estimates.get((row["task"], row["subset"]), {})
            other = first.width if row["dim"] == model.width else row["dim"]
            if (row["dim"], "float32") in ours and (other, "float32") in theirs:
                difference = ours[row["dim"], "float32"] - theirs[other, "float32"]
                row["compared_with"] = f"{first.identity.name}@{first.identity.revision}"
                row["diff_model"], row["p_model"] = _rounded((difference.value, difference.p_value()))
                row["diff_model_low"], row["diff_model_high"] = _rounded(difference.interval())
