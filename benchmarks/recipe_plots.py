"""Figures and a table of benchmarks/recipes.py: score and share kept against dimension, development against test scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# STS17 at full width of models with 384 dimensions and 12 layers, as published (model cards and the MTEB leaderboard)
PUBLISHED = {
    "Arabic-MiniLM-L12-v2-all-nli-triplet": {"ar-ar": 81.1, "en-ar": 78.1, "en-en": 85.9},
    "paraphrase-multilingual-MiniLM-L12-v2": {"ar-ar": 79.2, "en-ar": 81.2, "en-en": 86.9},
    "multilingual-e5-small": {"ar-ar": 73.0, "en-ar": 57.4, "en-en": 86.4},
}
# Human translations that no choice of the multilingual recipe was made on (results/LOG.md says so before its first run)
RESERVED = {
    "reserved en-ar": ("loopback/sts-en-ar", None, "validation"),
    "reserved ar-ar": ("Omartificial-Intelligence-Space/Arabic-stsb", None, "validation"),
}
Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]  # of a row, a subset and a dimension: value and interval


def dimensions_plot(path: Path, rows: dict, scores: Scores, subsets: tuple[str, ...], dims: tuple[int, ...]) -> None:
    """A panel for each subset: score against dimension, with intervals, and the published scores as lines."""
    figure, panels = _panels(len(subsets))
    shown = [name for name, row in rows.items() if row.get("plot")]
    ticks = [str(dim) for dim in sorted(dims)]
    for panel, subset in zip(panels, subsets, strict=True):
        for number, name in enumerate(shown):
            estimates = [scores[name][subset][dim] for dim in ticks]
            low, high = zip(*([100 * bound for bound in e["interval"]] for e in estimates), strict=True)
            values = [100 * e["value"] for e in estimates]
            panel.plot(ticks, values, marker="o", color=f"C{number}", label=rows[name]["label"])
            panel.fill_between(ticks, low, high, color=f"C{number}", alpha=0.12)
        for style, (label, published) in zip((":", "--", "-."), PUBLISHED.items(), strict=True):
            if subset in published:
                panel.axhline(
                    published[subset], color="grey", linestyle=style, linewidth=1, label=f"{label}, published at 384"
                )
        panel.set(title=f"STS17 {subset}", xlabel="embedding dimension")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Spearman × 100, with 95% interval")
    _save(figure, panels[0], path)


def kept_plot(path: Path, rows: dict, scores: Scores, dims: tuple[int, ...]) -> None:
    """The share of its mean at full width that each model keeps, against dimension."""
    figure, [panel] = _panels(1, width=6)
    ticks = [str(dim) for dim in sorted(dims)]
    for number, (name, row) in enumerate((n, r) for n, r in rows.items() if r.get("plot")):
        values = [scores[name]["mean"][dim]["value"] for dim in ticks]
        if values[-1] > 0.5:  # of a model that has learnt nothing in a language, a share says nothing
            shares = [100 * value / values[-1] for value in values]
            panel.plot(ticks, shares, marker="o", color=f"C{number}", label=row["label"])
    panel.axhline(98.4, color="grey", linestyle="--", linewidth=1, label="goal at 64 dimensions")
    panel.set(xlabel="embedding dimension", ylabel="mean of STS17, % of that at 384")
    panel.grid(alpha=0.3)
    _save(figure, panel, path)


def agreement(per_seed: dict[str, list[dict[str, Any]]], runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each seed of each trained row its dev mean, its mean over the reserved sets and its mean on STS17, × 100."""
    lines = []
    for name, summaries in runs.items():
        for summary, single in zip(summaries, per_seed[name], strict=True):
            dev = (summary["scores"] or {}).get("dev_mean_score")
            reserved = [value for subset in RESERVED for value in single.get(subset, {}).values()]
            if dev is not None and reserved:
                test = list(single["mean"].values())
                lines.append(
                    {
                        "row": name,
                        "seed": summary["seed"],
                        "sets": sorted({key.split("-dev")[0] for key in summary["scores"]}),
                        "dev": 100 * dev,
                        "reserved": 100 * sum(reserved) / len(reserved),
                        "test": 100 * sum(test) / len(test),
                    }
                )
    return lines


def agreement_text(lines: list[dict[str, Any]], rows: dict) -> str:
    """A table of :func:`agreement`, and the rank correlation of each kind of development score with the test."""
    from scipy.stats import spearmanr

    from benchmarks.recipes import table

    cells = [
        [rows[e["row"]]["label"], str(e["seed"]), *(f"{e[k]:.2f}" for k in ("dev", "reserved", "test"))] for e in lines
    ]
    text = table(["model", "seed", "dev mean", "reserved mean", "STS17 mean"], cells)
    text += "\nMean over sets and dimensions, Spearman × 100. No choice was made on the reserved sets.\n"
    if len(lines) > 3:
        for kind in ("dev", "reserved"):
            result = spearmanr([e[kind] for e in lines], [e["test"] for e in lines])
            text += f"Rank correlation of the {kind} mean with STS17 over the {len(lines)} models: {result.statistic:.2f}.\n"
    return text


def agreement_plot(path: Path, lines: list[dict[str, Any]], rows: dict) -> None:
    """Development and reserved means against STS17, a point for each seed."""
    figure, panels = _panels(2)
    for panel, kind in zip(panels, ("dev", "reserved"), strict=True):
        for number, name in enumerate(dict.fromkeys(e["row"] for e in lines)):
            points = [(e[kind], e["test"]) for e in lines if e["row"] == name]
            panel.scatter(
                *zip(*points, strict=True),
                color=f"C{number % 10}",
                marker="os^Dv"[number // 10 % 5],
                label=rows[name]["label"],
            )
        panel.set(xlabel=f"{kind} mean", ylabel="STS17 mean")
        panel.grid(alpha=0.3)
    _save(figure, panels[0], path)


def _panels(count: int, width: float = 4):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, count, figsize=(width * count, 4.8), layout="constrained", squeeze=False)
    return figure, list(panels[0])


def _save(figure, panel, path: Path) -> None:
    import matplotlib.pyplot as plt

    handles = panel.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
