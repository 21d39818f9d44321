"""Measures search among 127,762 Arabic sentences with small vectors, with and without rescoring, at every dimension and precision.

    python benchmarks/search.py --model_name output/recipes/multilingual-1/final

Two tasks with known answers search one corpus: English sentences for their Arabic translations, and Arabic questions for
their duplicates. The vectors are in a usearch HNSW index, in float32, int8 (as usearch casts normalised vectors) or binary (the
signs, by Hamming distance). With rescoring, the nearest --shortlist vectors are reordered by the cosine of their full-width
float32 embeddings, which need not be in memory. MRR@10 scores the known answers; agreement is the share of the 10 nearest by exact
full-width search that are returned. Queries per second are for one thread and exclude the time to encode the query.

PostgreSQL with pgvector then searches the same corpus: an index of all dimensions, and one of the first 64 whose shortlist is rescored
in SQL, both as halfvec. The embeddings are kept in --embeddings, so a second run does not encode again. Writes search.json,
search.md and search.png to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import time
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.search_database import DATABASE_QUERIES, search_database
from benchmarks.search_tasks import TOP, Result, Task, encode, exact, load_tasks, mrr, without_query
from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import RunError, run
from evaluation.utils.analysis.quantization import bytes_per_vector

if TYPE_CHECKING:
    import numpy as np
    from usearch.index import Index

DIMS = (384, 256, 128, 64)
PRECISIONS = ("float32", "int8", "binary")
ROUNDS = 3  # of timing

logger = logging.getLogger(__name__)


def stored(embeddings: np.ndarray, dim: int, precision: str) -> np.ndarray:
    """Return the vectors of the index: the normalised prefixes, or their signs as packed bits."""
    import numpy as np

    prefix = embeddings[:, :dim]
    if precision == "binary":
        return np.packbits(prefix > 0, axis=1)
    return prefix / np.linalg.norm(prefix, axis=1, keepdims=True).clip(1e-12)


def build(embeddings: np.ndarray, dim: int, precision: str) -> Index:
    """Build a usearch index of the corpus; a vector's key is its position."""
    import numpy as np
    from usearch.index import Index, MetricKind, ScalarKind

    metric = MetricKind.Hamming if precision == "binary" else MetricKind.Cos
    dtype = {"float32": ScalarKind.F32, "int8": ScalarKind.I8, "binary": ScalarKind.B1}[precision]
    index = Index(ndim=dim, metric=metric, dtype=dtype)
    index.add(np.arange(len(embeddings)), stored(embeddings, dim, precision))
    return index


def rescore(candidates: np.ndarray, queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Order the candidates of each query by full-width cosine, nearest first.

    Args:
        candidates: Positions in the corpus, shape ``[queries, shortlist]``.
        queries, corpus: Normalised full-width embeddings.
    """
    import numpy as np

    ordered = np.empty_like(candidates)
    for row, positions in enumerate(candidates):
        ordered[row] = positions[np.argsort(-(corpus[positions] @ queries[row]), kind="stable")]
    return ordered


def search(
    index: Index,
    tasks: dict[str, Task],
    queries: dict[str, np.ndarray],
    corpus: np.ndarray,
    nearest: dict[str, list[list[int]]],
    how: tuple[int, str, bool],
    shortlist: int,
) -> Result:
    """Run all tasks at one dimension and precision, rescored or not; repeat the search for the timing.

    Args:
        queries, corpus: Normalised full-width embeddings.
        how: Dimension, precision, and whether to rescore.
        nearest: The results of exact full-width search for each task.
    """
    dim, precision, rescored = how
    count = shortlist if rescored else TOP + 1  # one more, because the query itself may be among them
    times, scores, shared = [], {}, []
    for _ in range(ROUNDS):
        seconds = 0.0
        for name, task in tasks.items():
            start = time.perf_counter()
            vectors = stored(queries[name], dim, precision)
            positions = index.search(vectors, count, threads=1).keys.astype("int64")
            if rescored:
                positions = rescore(positions, queries[name], corpus)
            seconds += time.perf_counter() - start
            answers = without_query(positions.tolist(), task)
            scores[name] = mrr(answers, task)
            shared += [len(set(a) & set(b)) / TOP for a, b in zip(answers, nearest[name], strict=True)]
        times.append(sum(map(len, queries.values())) / seconds)
    return Result(
        dim, precision, rescored, index.memory_usage / 2**20, median(times), scores, sum(shared) / len(shared)
    )


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--model_name", required=True, help="name on the Hub or folder of a sentence-transformers model"
    )
    parser.add_argument(
        "--shortlist", type=int, default=100, help="vectors to rescore for each query (default: %(default)s)"
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        default=Path("output/search"),
        help="folder that keeps embeddings between runs (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if options.shortlist <= TOP:
        parser.error(f"--shortlist {options.shortlist}: it must be above {TOP}, the number of results")
    try:
        import usearch  # noqa: F401
    except ImportError:
        raise RunError("this benchmark needs usearch: pip install -r requirements-search.txt") from None

    record = start_record(__file__, options)
    texts, tasks = load_tasks()
    logger.info(
        "%d sentences to search in, %s queries",
        len(texts),
        ", ".join(f"{len(t.queries)} {n}" for n, t in tasks.items()),
    )
    corpus = encode(options.model_name, texts, options.embeddings)
    queries = {name: encode(options.model_name, task.queries, options.embeddings) for name, task in tasks.items()}
    nearest = {
        name: without_query(exact(queries[name], corpus, TOP + 1).tolist(), task) for name, task in tasks.items()
    }
    results: list[Result] = []
    for dim in (dim for dim in DIMS if dim <= corpus.shape[1]):
        for precision in PRECISIONS:
            start = time.perf_counter()
            index = build(corpus, dim, precision)
            logger.info("%d %s: built in %.0f s", dim, precision, time.perf_counter() - start)
            for rescored in (False, True):
                how = (dim, precision, rescored)
                results.append(search(index, tasks, queries, corpus, nearest, how, options.shortlist))
            record.write(results=[asdict(result) for result in results])
    try:
        in_database = search_database(corpus, queries, tasks, nearest, options.shortlist)
    except RunError as error:
        logger.warning("pgvector is not measured: %s", error)
        in_database = []
    exact_scores = {name: mrr(nearest[name], task) for name, task in tasks.items()}
    plot(options.output_dir / "search.png", results, exact_scores, options.shortlist, len(texts))
    finish(
        record,
        describe(results, in_database, exact_scores, tasks, len(texts), options.shortlist),
        texts=len(texts),
        queries={name: len(task.queries) for name, task in tasks.items()},
        exact=exact_scores,
        pgvector=[asdict(result) for result in in_database],
    )


def describe(
    results: list[Result],
    in_database: list[Result],
    exact_scores: dict[str, float],
    tasks: dict[str, Task],
    texts: int,
    shortlist: int,
) -> str:
    """Return the table: a line for each method of search."""
    head = ["vectors in the index", "rescored", *(f"{name}, MRR@{TOP}" for name in tasks), "agreement"]
    head += ["index, MiB", "queries/s"]
    exact_line = [
        "exact search, no index",
        "–",
        *(f"{100 * exact_scores[name]:.1f}" for name in tasks),
        "100%",
        "–",
        "–",
    ]
    lines = [
        [
            f"{r.dim} {r.precision}",
            "yes" if r.rescored else "no",
            *(f"{100 * r.mrr[name]:.1f}" for name in tasks),
            f"{r.agreement:.0%}",
            f"{r.memory_mib:,.0f}",
            f"{r.queries_per_s:,.0f}",
        ]
        for r in [*results, *in_database]
    ]
    counts = " and ".join(f"{len(task.queries):,} queries ({name})" for name, task in tasks.items())
    text = markdown_table(head, [exact_line, *lines], text_columns=2)
    return text + (
        f"\n{texts:,} Arabic sentences; {counts}. MRR × 100. Agreement: the share of the {TOP} nearest by exact full-width search that "
        f"are returned. Rescored: the nearest {shortlist} reordered by their full-width float32 embeddings. Queries per second are for one "
        "thread. "
        f"pgvector stores halfvec and was asked {DATABASE_QUERIES // len(tasks):,} queries of each kind, one at a time: "
        "its scores are comparable only with each other. The other indexes are made with usearch, which allocates memory in steps that double, so "
        "different widths can show the same size.\n"
    )


def plot(path: Path, results: list[Result], exact_scores: dict[str, float], shortlist: int, texts: int) -> None:
    """Plot quality against bytes per vector: small vectors alone, and the same rescored."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(exact_scores), figsize=(5.2 * len(exact_scores), 4.4), layout="constrained")
    markers = dict(zip(PRECISIONS, "os^", strict=True))
    for panel, (name, best) in zip(panels, exact_scores.items(), strict=True):
        panel.axhline(100 * best, color="0.5", linewidth=1, linestyle=":")
        panel.annotate("exact search, all dimensions", (0.02, 100 * best), xycoords=("axes fraction", "data"),
                       xytext=(0, 3), textcoords="offset points", fontsize=8, color="0.35")  # fmt: skip
        for rescored, color in ((False, "tab:orange"), (True, "tab:blue")):
            for precision in PRECISIONS:
                points = [r for r in results if r.rescored == rescored and r.precision == precision]
                points.sort(key=lambda r: r.dim)
                panel.plot(
                    [bytes_per_vector(r.dim, r.precision) for r in points], [100 * r.mrr[name] for r in points], color=color,
                    marker=markers[precision], linewidth=1, markersize=5,
                    label=f"{precision}, {f'{shortlist} rescored' if rescored else 'alone'}",
                )  # fmt: skip
                for r in [] if rescored else points:
                    panel.annotate(f"{r.dim}", (bytes_per_vector(r.dim, r.precision), 100 * r.mrr[name]), xytext=(0, -12),
                                   textcoords="offset points", ha="center", fontsize=8, color=color)  # fmt: skip
        panel.set_title(name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(
            [8, 16, 32, 64, 128, 256, 512, 1024, 1536],
            ["8", "16", "32", "64", "128", "256", "512", "1024", "1536"],
            fontsize=8,
        )
        panel.minorticks_off()
        panel.set_xlabel(f"bytes per vector in the index ({texts:,} sentences)")
        panel.set_ylabel(f"MRR@{TOP} × 100")
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
