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
            "of another kind. Means over sets and gaps between them take the sets for independent samples: where they translate "
            "the same sentences, as the subsets of STS17 do, intervals of means are somewhat too narrow and those of gaps too wide.",
        ],
    )
