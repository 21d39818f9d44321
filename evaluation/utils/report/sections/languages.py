"""Compares monolingual and cross-lingual subsets of the same task, and gives means by language."""

from __future__ import annotations

from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.report.content import Section, Table
from evaluation.utils.report.formatting import interval, minus, score_cell, signed
from evaluation.utils.report.material import Material
from evaluation.utils.scoring.pairs import main_language
from evaluation.utils.scoring.rows import set_name
from evaluation.utils.scoring.statistics import Estimate, unpaired_difference

LANGUAGES = {"ara": "Arabic", "eng": "English"}


def build(material: Material) -> Section | None:
    section = Section("Languages and cross-lingual transfer")
    for model in material.models:
        for task in dict.fromkeys(task for task, _ in model.languages):
            languages = {
                s: codes for (t, s), codes in model.languages.items() if (t, s) in model.estimates and t == task
            }
            if len(languages) >= 2 and all(languages.values()):
                section.tables.append(_gaps(model, task, languages, f"{material.label(model)}, {task}"))
    if any(row[0].startswith("gap, ") for table in section.tables for row in table.rows):
        section.paragraphs.append("Gap: the difference between the scores of two subsets, with its 95% interval.")
    means = _language_means(material)
    if means.rows:
        section.tables.append(means)
    return section if section.tables else None


def _gaps(model: ModelAnalysis, task: str, languages: dict[str, tuple[str, ...]], caption: str) -> Table:
    """Return the scores of a task's subsets, and the gap between any two that share a language or are both monolingual."""
    at = {(subset, dim): model.estimates[task, subset][dim, "float32"] for subset in languages for dim in model.dims}
    rows = [[subset, *(_cell(at[subset, dim]) for dim in model.dims)] for subset in languages]
    monolingual_first = sorted(languages, key=lambda subset: (len(languages[subset]), subset))
    for i, subset in enumerate(monolingual_first):
        for other in monolingual_first[i + 1 :]:
            if set(languages[subset]) & set(languages[other]) or len(languages[other]) == 1:
                gaps = [unpaired_difference(at[other, dim], at[subset, dim]) for dim in model.dims]
                cells = [f"{signed(gap.value)} ({interval(*gap.interval(), 1)})" for gap in gaps]
                rows.append([f"gap, {other} minus {subset}", *cells])
    return Table(["subset", *map(str, model.dims)], rows, caption)


def _language_means(material: Material) -> Table:
    rows: list[list[str]] = []
    dims = sorted({dim for model in material.models for dim in model.dims}, reverse=True)
    for model in material.models:
        sets_of_language: dict[str, list[tuple[str, str]]] = {}
        for key, languages in model.languages.items():
            if languages and key in model.estimates:
                sets_of_language.setdefault(main_language(languages), []).append(key)
        for language, keys in sets_of_language.items():
            cells = [_cell(model.mean(keys, dim)) if dim in model.dims else "" for dim in dims]
            set_names = ", ".join(set_name(*key) for key in keys)
            rows.append([material.label(model), LANGUAGES.get(language, language), set_names, *cells])
    return Table(
        ["model", "language", "mean of", *map(str, dims)],
        rows,
        "Means by language",
        text_columns=3,
        note="Cross-lingual sets are never part of the mean of a single language.",
    )


def _cell(estimate: Estimate) -> str:
    return minus(score_cell(estimate.value, *estimate.interval()))
