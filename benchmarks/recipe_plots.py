"""The figures of benchmarks/recipes.py (scores and shares kept by dimension, dev against test scores), and an agreement table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.skeleton import markdown_table

# Published STS17 scores at full width of models with 384 dimensions and 12 layers (model cards and the MTEB leaderboard)
PUBLISHED = {
    "Arabic-MiniLM-L12-v2-all-nli-triplet": {"ar-ar": 81.1, "en-ar": 78.1, "en-en": 85.9},
    "paraphrase-multilingual-MiniLM-L12-v2": {"ar-ar": 79.2, "en-ar": 81.2, "en-en": 86.9},
    "multilingual-e5-small": {"ar-ar": 73.0, "en-ar": 57.4, "en-en": 86.4},
}
# Human translations on which no choices about the multilingual recipe were based, as decided before its first run (results/LOG.md)
RESERVED = {
    "reserved en-ar": ("loopback/sts-en-ar", None, "validation"),
    "reserved ar-ar": ("Omartificial-Intelligence-Space/Arabic-stsb", None, "validation"),
}
TITLES = {"ar-ar": "Arabic", "en-ar": "English-Arabic", "en-en": "English"}
SPREAD = 0.07  # horizontal distance between the bars of two models; neighbouring dimensions are 1 apart
Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]  # by row, subset and dimension: value and interval


def dimensions_plot(path: Path, rows: dict, scores: Scores, subsets: tuple[str, ...], dims: tuple[int, ...]) -> None:
    """Plot a panel for each subset: score against dimension, with intervals, and published scores as lines."""
    figure, panels = _panels(len(subsets))
    shown = [name for name, row in rows.items() if row.get("plot")]
    ticks = [str(dim) for dim in sorted(dims)]
    for panel, subset in zip(panels, subsets, strict=True):
        for number, name in enumerate(shown):
            estimates = [scores[name][subset][dim] for dim in ticks]
            values = [100 * e["value"] for e in estimates]
            below, above = zip(*(e["interval"] for e in estimates), strict=True)
            lengths = [[v - 100 * b for v, b in zip(values, below, strict=True)],
                       [100 * a - v for v, a in zip(values, above, strict=True)]]  # fmt: skip
            offset = SPREAD * (number - (len(shown) - 1) / 2)  # so that the bars of different models do not overlap
            at = [place + offset for place in range(len(ticks))]
            panel.plot(at, values, marker="o", color=f"C{number}", label=rows[name]["label"])
            panel.errorbar(at, values, yerr=lengths, fmt="none", ecolor=f"C{number}", elinewidth=1, alpha=0.5)
        for style, (label, published) in zip((":", "--", "-."), PUBLISHED.items(), strict=True):
            if subset in published:
                panel.axhline(
                    published[subset], color="grey", linestyle=style, linewidth=1, label=f"{label}, published at 384"
                )
        panel.set(title=f"STS17 {TITLES[subset]}", xlabel="embedding dimension")
        panel.set_xticks(range(len(ticks)), ticks)
        panel.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("Spearman × 100 (bars: 95% interval)")
    _save(figure, panels[0], path)


def headline_plot(path: Path, rows: dict, scores: Scores, subsets: tuple[str, ...], dims: tuple[int, ...]) -> None:
    """Plot the mean over the subsets against dimension in one panel, legible on a phone, with each line's name at its end."""
    figure, [panel] = _panels(1, width=8)
    ticks = [str(dim) for dim in sorted(dims)]
    end, names = len(ticks) - 1, []
    for number, (name, row) in enumerate((n, r) for n, r in rows.items() if r.get("plot")):
        values = [100 * scores[name]["mean"][dim]["value"] for dim in ticks]
        panel.plot(range(len(ticks)), values, marker="o", linewidth=2, color=f"C{number}")
        names.append((values[-1], row["label"], f"C{number}"))
    for label, published in PUBLISHED.items():
        mean = sum(published[subset] for subset in subsets) / len(subsets)
        panel.plot([end], [mean], marker="x", color="dimgrey")
        names.append((mean, f"{label} (published)", "dimgrey"))
    gap = 0.042 * (panel.get_ylim()[1] - panel.get_ylim()[0])
    lowest = -float("inf")
    for value, label, color in sorted(names):  # move a name up if it would cover the one below
        lowest = max(value, lowest + gap)
        panel.text(end + 0.1, lowest, label, color=color, va="center", fontsize=12)
    panel.set_xticks(range(len(ticks)), ticks, fontsize=12)
    panel.tick_params(axis="y", labelsize=12)
    panel.set_xlabel("embedding dimension", fontsize=12)
    panel.set_ylabel("STS17, mean Spearman × 100", fontsize=12)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=110)


def kept_plot(path: Path, rows: dict, scores: Scores, dims: tuple[int, ...]) -> None:
    """Plot, against dimension, the percentage of its full-width mean that each model keeps."""
    figure, [panel] = _panels(1, width=6)
    ticks = [str(dim) for dim in sorted(dims)]
    for number, (name, row) in enumerate((n, r) for n, r in rows.items() if r.get("plot")):
        values = [scores[name]["mean"][dim]["value"] for dim in ticks]
        if values[-1] > 0.5:  # a share is meaningless for a model that fails in a language
            shares = [100 * value / values[-1] for value in values]
            panel.plot(ticks, shares, marker="o", color=f"C{number}", label=row["label"])
    panel.axhline(98.4, color="grey", linestyle="--", linewidth=1, label="goal at 64 dimensions")
    panel.set(xlabel="embedding dimension", ylabel="STS17 mean, % of the mean at 384")
    panel.grid(alpha=0.3)
    _save(figure, panel, path)


def agreement(per_seed: dict[str, list[dict[str, Any]]], runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the dev mean, the mean over the reserved sets and the mean on STS17, × 100, for each seed of each trained row.

    Models whose dev mean is not over the dimensions of the test, such as those trained at full width only, are omitted.
    """
    lines = []
    for name, summaries in runs.items():
        for summary, single in zip(summaries, per_seed[name], strict=True):
            dev = (summary["scores"] or {}).get("dev_mean_score")
            reserved = [value for subset in RESERVED for value in single.get(subset, {}).values()]
            dev_dims = set(re.findall(r"-(\d+)_", " ".join(summary["scores"] or {})))
            if dev is not None and reserved and dev_dims == set(single["mean"]):
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
    """Return the lines of :func:`agreement` as a table, and the rank correlation of each kind of dev score with the test."""
    from scipy.stats import spearmanr

    cells = [
        [rows[e["row"]]["label"], str(e["seed"]), *(f"{e[k]:.2f}" for k in ("dev", "reserved", "test"))] for e in lines
    ]
    text = markdown_table(["model", "seed", "dev mean", "reserved mean", "STS17 mean"], cells)
    reserved = " and ".join(f"`{path}`" for path, _, _ in RESERVED.values())
    text += "\nSpearman × 100, mean over sets and dimensions. "
    text += f"No choices about these recipes were based on the reserved sets, which are the validation splits of {reserved}.\n"
    if len(lines) > 3:
        for kind in ("dev", "reserved"):
            result = spearmanr([e[kind] for e in lines], [e["test"] for e in lines])
            text += f"Rank correlation of the {kind} mean with STS17 over the {len(lines)} models: {result.statistic:.2f}.\n"
    return text


def agreement_plot(path: Path, lines: list[dict[str, Any]], rows: dict) -> None:
    """Plot dev and reserved means against STS17, a point for each seed."""
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
