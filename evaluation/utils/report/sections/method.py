"""What the report's numbers were made with, and how to read them."""

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
            f"({RESAMPLES} resamples of the pairs or queries, seed {SEED}, every resample ranked anew); differences are paired: "
            "each resample takes the same pairs for both sides. p-values are two-sided and not corrected for the number of "
            "comparisons. Intervals tell how far a score would move with other pairs of the same kind, and nothing of texts "
            "of another kind. In means over sets, a pair that several sets hold is resampled once for all of them; sets without a "
            "pair in common count as independent, which makes the intervals of means somewhat too narrow where sets translate the "
            "same sentences.",
            "The recommendation tests non-inferiority in a fixed sequence: each step needs the one-sided bound of its loss to be "
            "within the tolerance, and the 5% of error is shared equally between dimensions and precisions, and between the models "
            "compared. So what is recommended loses more than the tolerance in at most 5% of cases.",
        ],
    )
