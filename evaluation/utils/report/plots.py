"""The report's plots, as SVG in the page's text colour, so that they are legible in light and dark mode; and ``plot.png``."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INK = "#010203"  # a placeholder for the page's text colour
COLORS = ("#3b82d6", "#e07b39", "#3a9d6e", "#b05cc6", "#c9a227", "#d1495b", "#6b7f99", "#8c6d46")
MARKERS = "osD^vP*X"


@contextmanager
def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> Iterator[tuple[Any, Any, list[str]]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ink = dict.fromkeys(
        ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"], INK
    )
    settings = ink | {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.parse_math": False,
    }
    svg: list[str] = []
    with plt.rc_context(settings):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        figure.patch.set_alpha(0)
        for axis in axes.flat:
            axis.patch.set_alpha(0)
            axis.grid(alpha=0.15)
            axis.spines[["top", "right"]].set_visible(False)
        try:
            yield figure, list(axes.flat), svg
            figure.tight_layout()
            text = io.StringIO()
            figure.savefig(
                text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
            )
            svg.append(_clean(text.getvalue()))
        finally:
            plt.close(figure)


def _clean(svg: str) -> str:
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*pt"([^>]*?) (?:height|width)="[^"]*pt"', r"\1\2", svg, count=1)


def _handles(axes: Iterable[Any]) -> dict[str, Any]:
    """Return the legend's entries, each label once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def _legend(figure: Any, axes: list[Any], columns: int | None = None) -> None:
    """Place the legend below the plot, where it covers nothing."""
    handles = _handles(axes)
    wide = max(map(len, handles)) > 24
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8.5, loc="upper center",
                  bbox_to_anchor=(0.5, 0.02), ncols=columns or (1 if wide else min(4, len(handles))))  # fmt: skip


def _dimension_axis(axis: Any, dims: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(dims, [str(dim) for dim in dims])
    axis.minorticks_off()


def _least_span(axis: Any, span: float) -> None:
    """Enforce a minimum span of the axis, so that noise does not look like an effect."""
    low, high = axis.get_ylim()
    if high - low < span:
        axis.set_ylim((low + high - span) / 2, (low + high + span) / 2)


Line = list[tuple[int, float, float, float]]  # (dimension, score, low, high), × 100


@dataclass(frozen=True)
class Look:
    """The style of lines: a line's number determines its colour and marker."""

    colors: tuple[str, ...]
    markers: str
    line: dict[str, float] = field(default_factory=dict)


IN_REPORT = Look(COLORS, MARKERS, {"linewidth": 1.8, "markersize": 5})
IN_PNG = Look(tuple(f"C{number}" for number in range(10)), "o")


def draw_scores(axis: Any, title: str, lines: dict[str, Line], dims: list[int], look: Look) -> None:
    """Plot score against dimension with intervals, one line for each model.

    Args:
        lines: The points of each model; a model without points still takes up a colour, so that each model
            has the same colour in all plots.
        dims: The dimensions of the axis.
    """
    for number, (label, points) in enumerate(lines.items()):
        if points:
            x, y, low, high = (list(values) for values in zip(*sorted(points), strict=True))
            color, marker = look.colors[number % len(look.colors)], look.markers[number % len(look.markers)]
            axis.plot(x, y, marker=marker, color=color, label=label, **look.line)
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    _dimension_axis(axis, dims)
    _least_span(axis, 10)
    axis.set_title(title, fontsize=11)


def score_plot(title: str, lines: dict[str, Line], ylabel: str, published: dict[str, float] | None = None) -> str:
    """Plot the scores on one test set, as SVG. Scores in ``published``, of other models, are drawn if they
    are within the plot's range."""
    with _figure(5, 3.4) as (figure, axes, svg):
        axis = axes[0]
        dims = sorted({point[0] for points in lines.values() for point in points})
        draw_scores(axis, title, lines, dims, IN_REPORT)
        bottom, top = axis.get_ylim()
        for name, score in (published or {}).items():
            if bottom < score < top:
                axis.axhline(score, color=INK, alpha=0.4, linestyle=":", linewidth=1)
                axis.annotate(name, (max(dims), score), textcoords="offset points", xytext=(0, 2), fontsize=7.5,
                              ha="right", alpha=0.8)  # fmt: skip
        axis.set_xlabel("dimension")
        axis.set_ylabel(ylabel)
        _legend(figure, axes)
    return svg[0]


def save_score_panels(path: Path, panels: list[tuple[str, dict[str, Line]]], ylabel: str, xlabel: str) -> None:
    """Save ``plot.png``: a panel for each test set, with its name as the title."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["text.parse_math"] = False  # dollar signs in a name are not mathematics

    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns + 0.8, 3.4 * lines + 0.7), squeeze=False)
    dims = sorted({point[0] for _, panel in panels for points in panel.values() for point in points})
    for axis, (title, panel) in zip(axes.flat, panels, strict=False):
        draw_scores(axis, title, panel, dims, IN_PNG)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(ylabel)
    figure.supxlabel(xlabel, fontsize=11)
    handles = _handles(axes.flat)
    figure.legend(
        handles.values(), handles.keys(), loc="upper center", ncols=min(3, len(handles)), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight() * (1 + (len(handles) - 1) // 3)))
    temporary = path.with_name(f".{path.name}.partial.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
    plt.close(figure)


def pareto_plot(
    points_of: dict[str, list[dict[str, Any]]], front: list[dict[str, Any]], accepted: float, accepted_name: str
) -> str:
    """Plot score against bytes per vector: a colour for each model, a marker for each precision, a bar from ``low`` to ``high``.

    Args:
        points_of: The points of each model: ``dim, precision, bytes, score, low, high, picked``.
        front: The points that no cheaper point beats, joined by a line.
        accepted: The score at which to draw a line, labelled ``accepted_name``.
    """
    points = [point for of_model in points_of.values() for point in of_model]
    precisions = list(dict.fromkeys(point["precision"] for point in points))
    with _figure(8, 4.6) as (figure, axes, svg):
        axis = axes[0]
        axis.axhline(accepted, color=INK, alpha=0.6, linestyle=":", linewidth=1.2)
        axis.annotate(accepted_name, (max(p["bytes"] for p in points), accepted), textcoords="offset points",
                      xytext=(0, -10), fontsize=8, ha="right", alpha=0.8)  # fmt: skip
        for number, (label, of_model) in enumerate(points_of.items()):
            color, shift = COLORS[number % len(COLORS)], 1 + 0.05 * (number - (len(points_of) - 1) / 2)
            axis.scatter([], [], color=color, label=label, s=34)
            for point in of_model:
                x = point["bytes"] * shift  # models of the same width would cover each other
                axis.plot([x, x], [point["low"], point["high"]], color=color, alpha=0.55, linewidth=1.4)
                axis.scatter(x, point["score"], color=color, s=34, zorder=3,
                             marker=MARKERS[precisions.index(point["precision"])])  # fmt: skip
                axis.annotate(str(point["dim"]), (x, point["score"]), textcoords="offset points", color=color, fontsize=7.5,
                              xytext=(5, 4) if number % 2 == 0 else (5, -10))  # fmt: skip
                if point["picked"]:
                    picked = x, point["score"]
        axis.plot([p["bytes"] for p in front], [p["score"] for p in front], color=INK, alpha=0.35, linestyle="--",
                  linewidth=1, label="no cheaper vector scores higher")  # fmt: skip
        for number, precision in enumerate(precisions):
            axis.scatter([], [], color=INK, marker=MARKERS[number], label=precision, s=34)
        axis.scatter(*picked, facecolors="none", edgecolors=INK, s=170, linewidths=1.6, zorder=4, label="recommended")
        axis.set_xscale("log", base=2)
        smallest, largest = min(p["bytes"] for p in points), max(p["bytes"] for p in points)
        ticks = [2**k for k in range(16) if smallest <= 2**k <= largest] or [smallest]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        _least_span(axis, 4)
        axis.set_xlabel("bytes per vector")
        axis.set_ylabel("mean score × 100")
        axis.set_title("Score against bytes per vector; bars: bounds of the drop", fontsize=10)
        _legend(figure, axes, columns=2)
    return svg[0]


def shortlist_plot(title: str, rows: list[dict[str, Any]]) -> str:
    """Plot recall, relative to the full search, against the size of the shortlist."""
    with _figure(6.4, 3.8) as (figure, axes, svg):
        dims = sorted({row["dim"] for row in rows}, reverse=True)
        for dim in dims:
            for precision, style in (("float32", "-"), ("binary", ":")):
                line = [row for row in rows if row["dim"] == dim and row["precision"] == precision]
                if line:
                    axes[0].plot([r["k"] for r in line], [100 * r["recall"] for r in line], style, marker="o", markersize=4,
                                 color=COLORS[dims.index(dim) % len(COLORS)], label=f"{dim} {precision}")  # fmt: skip
        sizes = sorted({row["k"] for row in rows})
        axes[0].set_xscale("log")
        axes[0].set_xticks(sizes, [str(size) for size in sizes])
        axes[0].minorticks_off()
        axes[0].set_xlabel("texts in the shortlist (k)")
        axes[0].set_ylabel("recall relative to the full search, %")
        axes[0].set_title(title, fontsize=11)
        _legend(figure, axes)
    return svg[0]
