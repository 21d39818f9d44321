"""Analyses one model's scores: intervals, baselines, precisions, shortlists, errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from common.models import ModelIdentity
from evaluation.utils.analysis.baselines import baseline_scores, transforms
from evaluation.utils.analysis.error_analysis import pairs_that_move, rank_errors
from evaluation.utils.analysis.quantization import Quantizer, hamming_similarity
from evaluation.utils.analysis.recommendation import retention
from evaluation.utils.analysis.shared_pairs import SetKey, joint_bootstrap, mean_over_sets, sets_that_share_pairs
from evaluation.utils.analysis.shortlist import MAX_QUERIES, evenly_spaced, shortlist_rows
from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.rows import ScoreRow, set_name
from evaluation.utils.scoring.scorer import ModelScores
from evaluation.utils.scoring.statistics import SEED, Estimate, Estimates, bootstrap

if TYPE_CHECKING:
    from evaluation.utils.analysis.decision import Option

logger = logging.getLogger(__name__)


@dataclass
class ModelAnalysis:
    """The analysis of one model.

    Attributes:
        dims: The dimensions, the full width first.
        rows: One for each task, subset and dimension, with or without a score.
        baseline: Whether the model is only a baseline for comparison.
        languages: The ISO 639-3 codes of the texts of each task and subset.
        estimates: Estimates of each task and subset with an interval, by dimension and precision.
        shared: The tasks and subsets that share pairs, in groups.
        joint_estimates: Like ``estimates``, for the sets in ``shared``, on joint resamples of all pairs in their group.
        encode_ms: Milliseconds to encode a text, if measured.
        options: The loss of each dimension and precision; ``recommended`` is the smallest whose loss is acceptable, if any.
            :func:`evaluation.utils.analysis.decision.decide` sets both.
        corpus_sizes: The number of texts in each corpus of ``shortlists``.
        baselines, shortlists, errors, moved: Rows of the modules ``baselines``, ``shortlist`` and ``error_analysis``.
    """

    identity: ModelIdentity
    dims: list[int]
    rows: list[ScoreRow]
    baseline: bool = False
    languages: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    estimates: Estimates = field(default_factory=dict)
    shared: list[tuple[SetKey, ...]] = field(default_factory=list)
    joint_estimates: Estimates = field(default_factory=dict)
    encode_ms: float | None = None
    options: list[Option] = field(default_factory=list)
    recommended: Option | None = None
    baselines: list[dict[str, Any]] = field(default_factory=list)
    shortlists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    corpus_sizes: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    moved: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.dims[0]

    @property
    def scored_rows(self) -> list[ScoreRow]:
        return [row for row in self.rows if row.score is not None]

    def mean(self, keys: list[SetKey], dim: int, precision: str = "float32", joint: bool = True) -> Estimate:
        """Estimate the mean score over test sets. Unless ``joint`` is false, sets that share pairs are resampled together."""
        groups = [[key for key in group if key in keys] for group in self.shared] if joint else []
        groups = [group for group in groups if len(group) > 1]
        together = [key for group in groups for key in group]
        groups += [[key] for key in keys if key not in together]
        estimates = {
            key: (self.joint_estimates if key in together else self.estimates)[key][dim, precision] for key in keys
        }
        return mean_over_sets(estimates, groups)


def similarity_columns(
    pairs: PairSet, dims: list[int], quantizer: Quantizer | None
) -> dict[tuple[int, str], np.ndarray]:
    """Compute the similarities of the pairs at each dimension and, with a quantizer, at each precision."""
    columns: dict[tuple[int, str], np.ndarray] = {}
    for dim in dims:
        columns[dim, "float32"] = pairs.similarity(pairs.first[:, :dim], pairs.second[:, :dim])
        if quantizer is not None:
            first, second = (quantizer.restore(quantizer(side, dim, "int8")) for side in (pairs.first, pairs.second))
            columns[dim, "int8"] = pairs.similarity(first, second)
            first, second = (quantizer(side, dim, "binary") for side in (pairs.first, pairs.second))
            columns[dim, "binary"] = hamming_similarity(first, second).astype(np.float64)
    return columns


def pair_estimates(pairs: PairSet, columns: dict[tuple[int, str], np.ndarray]) -> dict[tuple[int, str], Estimate]:
    """Estimate the main score for each result of :func:`similarity_columns`."""
    estimates = bootstrap(pairs.statistic(list(columns.values())), len(pairs.gold), sample=pairs.sample)
    return dict(zip(columns, estimates, strict=True))


def analyse(
    identity: ModelIdentity,
    dims: list[int],
    scores: ModelScores,
    calibration: Callable[[], np.ndarray] | None = None,
    baseline: bool = False,
) -> ModelAnalysis:
    """Analyse the scores of one model.

    Args:
        dims: The dimensions, the full width first.
        scores: The scores; intervals, differences from the full width and retention are added to their rows. Without corpora of
            retrieval tasks, shortlists are measured on the texts of the pairs.
        calibration: Returns the full-width embeddings of texts from outside the test sets, shape ``[m, width]``; without it
            there are no baselines, quantised precisions or shortlists.
        baseline: Whether the model is only a baseline for comparison.
    """
    pairs, corpora = scores.pairs, scores.corpora
    analysis = ModelAnalysis(identity, dims, scores.rows, baseline, languages={p.key: p.languages for p in pairs})
    calibration_embeddings = calibration() if calibration is not None and (pairs or corpora) else None
    quantizer = methods = None
    if calibration_embeddings is not None:
        quantizer, methods = Quantizer(calibration_embeddings), transforms(calibration_embeddings, SEED)
    columns: dict[SetKey, dict[tuple[int, str], np.ndarray]] = {}
    for pair_set in tqdm(pairs, desc=f"analysing {identity.name}", unit="set", disable=len(pairs) < 2):
        columns[pair_set.key] = similarity_columns(pair_set, dims, quantizer)
        analysis.estimates[pair_set.key] = pair_estimates(pair_set, columns[pair_set.key])
        analysis.baselines += baseline_scores(pair_set, dims, methods) if methods else []
        analysis.errors += rank_errors(pair_set, dims)
        if dims[-1] < dims[0]:
            analysis.moved[set_name(*pair_set.key)] = pairs_that_move(pair_set, dims[-1])
    for group in sets_that_share_pairs(pairs):
        if len(group) > 1:
            analysis.shared.append(tuple(pair_set.key for pair_set in group))
            joint = joint_bootstrap(group, lambda pair_set: pair_set.statistic(list(columns[pair_set.key].values())))
            for key, estimates in joint.items():
                analysis.joint_estimates[key] = dict(zip(columns[key], estimates, strict=True))
    analysis.estimates |= scores.query_estimates
    _add_intervals(analysis)
    if calibration_embeddings is not None:
        searched = [(*corpus, np.full(len(corpus[1]), -1)) for corpus in corpora] or _corpus_of_pairs(pairs)
        for name, queries, corpus, own in searched:
            if len(corpus) > 20:
                analysis.corpus_sizes[name] = len(corpus)
                analysis.shortlists[name] = shortlist_rows(
                    queries[:MAX_QUERIES], corpus, own[:MAX_QUERIES], dims, calibration_embeddings, name
                )
    return analysis


def _corpus_of_pairs(pairs: list[PairSet]) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Use the distinct texts of the sets as a corpus, and an evenly spaced selection of them as queries.

    Returns:
        The name of the corpus, the queries, the corpus, and the row of each query in the corpus; an empty list without pairs.
    """
    rows: dict[str, np.ndarray] = {}
    for pair_set in pairs:
        for texts, embeddings in ((pair_set.sentence1, pair_set.first), (pair_set.sentence2, pair_set.second)):
            for text, embedding in zip(texts, embeddings, strict=True):
                rows.setdefault(text, embedding)
    if not rows:
        return []
    corpus = np.stack(list(rows.values()))
    own = evenly_spaced(len(corpus), MAX_QUERIES)
    return [("the texts of the pairs", corpus[own], corpus, own)]


def _add_intervals(analysis: ModelAnalysis) -> None:
    """Set the summary's interval columns in each row whose estimate equals its score, and the retention in every scored row."""
    rows = analysis.scored_rows
    full_scores = {row.set_key: row.score for row in rows if row.dim == analysis.width}
    for row in rows:
        # NaN if mteb has no score at full width
        row.retention = retention(row.score, full_scores.get(row.set_key, math.nan))
        estimate = analysis.estimates.get(row.set_key, {}).get((row.dim, "float32"))
        if estimate is None:
            continue
        if not math.isclose(estimate.value, row.score, abs_tol=1e-4):
            logger.warning("%s %s: no interval, because mteb computes %s differently", row.task, row.subset, row.metric)
            del analysis.estimates[row.set_key]
            continue
        row.ci_low, row.ci_high = _rounded(*estimate.interval())
        difference = estimate - analysis.estimates[row.set_key][analysis.width, "float32"]
        row.diff_full, row.p_full = _rounded(difference.value, difference.p_value())
        row.diff_full_low, row.diff_full_high = _rounded(*difference.interval())


def _rounded(*numbers: float) -> list[float]:
    """Round to six digits: more than a bootstrap can resolve, and equal on every machine."""
    return [round(number, 6) for number in numbers]


def compare_with_first(analyses: list[ModelAnalysis]) -> None:
    """Compare each other model with the first, at equal dimensions and full width with full width."""
    first = analyses[0]
    for analysis in analyses[1:]:
        for row in analysis.scored_rows:
            ours = analysis.estimates.get(row.set_key, {})
            theirs = first.estimates.get(row.set_key, {})
            other_dim = first.width if row.dim == analysis.width else row.dim
            if (row.dim, "float32") in ours and (other_dim, "float32") in theirs:
                difference = ours[row.dim, "float32"] - theirs[other_dim, "float32"]
                row.compared_with = f"{first.identity.name}@{first.identity.revision}"
                row.diff_model, row.p_model = _rounded(difference.value, difference.p_value())
                row.diff_model_low, row.diff_model_high = _rounded(*difference.interval())
