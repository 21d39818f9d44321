"""States how the report's numbers were computed, and how to read them."""

from __future__ import annotations

from evaluation.utils.report.content import Section
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.statistics import RESAMPLES, SEED


def build(material: Material) -> Section:
    return Section(
        "How this was made",
        [
            *(f"{name}: {text}" for name, text in material.provenance.items()),
            f"Scores are mteb's main scores × 100. Intervals are 95% bias-corrected and accelerated bootstrap intervals "
            f"({RESAMPLES} resamples of the pairs or queries, seed {SEED}, ranks recomputed in every resample). Differences are paired: "
            "each resample uses the same pairs or queries for both scores. p-values are two-sided and not corrected for the number of "
            "comparisons. An interval shows how much a score would vary with other pairs of the same kind; it says nothing about texts "
            "of another kind. In means over sets, a pair that occurs in several sets is resampled once for all of them. Sets without a "
            "pair in common are treated as independent; if they are translations of the same sentences, the interval for their mean is "
            "therefore somewhat too narrow.",
            "The recommendation comes from non-inferiority tests in a fixed sequence. A vector is accepted only if the one-sided upper bound "
            "of its drop in score is no larger than the accepted drop (--max_loss). The 5% error rate is divided equally between dimensions and "
            "precisions, and between the models compared. A vector whose true drop is larger than the accepted one is "
            "recommended in at most about 5% of cases.",
        ],
    )
