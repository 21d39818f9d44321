"""Shows the recall, and the bytes read, of searching with short vectors and rescoring with full ones."""

from __future__ import annotations

from typing import Any

from evaluation.utils.analysis.shortlist import TOP
from evaluation.utils.report import plots
from evaluation.utils.report.content import Plot, Section, Table
from evaluation.utils.report.formatting import number
from evaluation.utils.report.material import Material


def build(material: Material) -> Section | None:
    section = Section("Shortlist and rescore: search with short vectors, rank with full ones")
    for model in material.models:
        for corpus_name, shortlists in model.shortlists.items():
            if not shortlists or model.baseline:
                continue
            label = material.label(model)
            section.plots.append(Plot(f"{label}: recall of a shortlist", plots.shortlist_plot(label, shortlists)))
            caption = f"{label}: recall, %, on {corpus_name} ({model.corpus_sizes[corpus_name]:,} texts)"
            section.tables.append(_table(shortlists, model.dims, caption))
    if not section.tables:
        return None
    section.paragraphs.append(
        "Search with the first dimensions (or their signs), then rescore the best k, the shortlist, with the full vectors. Recall is the "
        f"share of the full search's {TOP} nearest texts that the shortlist contains. GB read: the data that one query reads from an "
        "index of a million vectors in an exhaustive search (all short vectors, then the full vectors of the largest shortlist). "
        "Reduction: the data that a full search reads, divided by GB read. Recall falls as the corpus grows beyond the size stated above "
        "each table: measure it on your own data with a retrieval task."
    )
    return section


def _table(shortlists: list[dict[str, Any]], dims: list[int], caption: str) -> Table:
    sizes = sorted({row["k"] for row in shortlists})
    rows: list[list[str]] = []
    for dim in dims:
        for precision in ("float32", "binary"):
            by_size = {r["k"]: r for r in shortlists if r["dim"] == dim and r["precision"] == precision}
            if by_size:
                largest = by_size[sizes[-1]]
                recalls = [number(by_size[k]["recall"], 1) for k in sizes]
                cost = [f"{largest['bytes'] / 1e9:.3f}", f"{largest['saving']:.3g}×"]
                rows.append([str(dim), precision, *recalls, *cost])
    columns = ["dimension", "precision", *(f"k = {k}" for k in sizes), "GB read", "reduction"]
    return Table(columns, rows, caption, text_columns=2)
