"""Writes ``errors.html``: the pairs that truncation moves most in rank. It is a separate file because it quotes the test sets."""

from __future__ import annotations

from pathlib import Path

from evaluation.utils.report.content import Section, Table
from evaluation.utils.report.material import Material
from evaluation.utils.report.render import write_html


def moved_pairs_sections(material: Material) -> list[Section]:
    """Return a section for each model and test set, with the pairs of :func:`error_analysis.pairs_that_move`."""
    sections: list[Section] = []
    for model in material.models:
        smallest = model.dims[-1]
        columns = [
            "sentence 1",
            "sentence 2",
            "gold score",
            "gold rank",
            f"rank at {model.width}",
            f"rank at {smallest}",
            "order",
        ]
        for name, moved in model.moved.items():
            rows = [
                [
                    pair["sentence1"],
                    pair["sentence2"],
                    f"{pair['gold']:g}",
                    f"{pair['gold_rank']:.0f}",
                    f"{pair['full_rank']:.0f}",
                    f"{pair['cut_rank']:.0f}",
                    "worse" if pair["hurt"] else "better",
                ]
                for pair in moved
            ]
            title = f"{material.name(model)}, {name}: from {model.width} to {smallest} dimensions"
            table = Table(columns, rows, text_columns=2)
            sections.append(Section(title, tables=[table], id=f"moved-{len(sections)}"))
    return sections


def write_moved_pairs(output_dir: Path, material: Material) -> None:
    """Write ``errors.html``, or remove it if there is no smaller dimension or no pair task."""
    sections = moved_pairs_sections(material)
    if not sections:
        (output_dir / "errors.html").unlink(missing_ok=True)
        return
    subtitle = "Ranks are percentages of the number of pairs: 100 is the most similar pair of a set, 0 the least."
    write_html(output_dir / "errors.html", "The pairs whose rank changes most", subtitle, sections)
