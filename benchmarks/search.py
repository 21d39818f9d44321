"""What a shortlist of small vectors buys: search among 100,000 Arabic sentences at every dimension and precision, rescored or not.

    python benchmarks/search.py --model_name output/recipes/multilingual-1/final

Two tasks whose right answers are known search one corpus: English sentences for their Arabic translations, and Arabic questions for
their duplicates. The vectors are in a usearch HNSW index, in float32, int8 (as usearch casts normalised vectors) or binary (the
signs, by Hamming distance). With rescoring, the nearest --shortlist vectors are ordered anew by the cosine of their full-width
float32 embeddings, which need not be in memory. MRR@10 counts the right answers; agreement is the share of the 10 nearest by exact
full-width search that are returned. Queries per second are those of one thread, without the time to encode the query. The
embeddings are kept in --embeddings, so that a second run does not encode again. Writes search.json, search.md and search.png to
--output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import logging
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.retrieval import QUESTIONS, TRANSLATIONS
from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import RunError, run

if TYPE_CHECKING:
    import numpy as np
    from usearch.index import Index

CORPUS = (  # data set, configuration and split, and its columns of Arabic text
    (("sentence-transformers/parallel-sentences-tatoeba", "en-ar", "train"), ("non_english",)),
    (("loopback/parallel-sentences-tatoeba-more", "en-ar", "train"), ("non_english",)),
    (("loopback/parallel-sentences-learner", "en-ar", "train"), ("non_english",)),
    (("loopback/parallel-sentences-professional", "en-ar", "train"), ("non_english",)),
    (("loopback/parallel-sentences-captions", "en-ar", "train"), ("non_english",)),
    (("loopback/parallel-sentences-xnli", "en-ar", "train"), ("non_english",)),
    (("loopback/parallel-sentences-news-health-wiki", "en-ar", "train"), ("non_english",)),
    (("Omartificial-Intelligence-Space/Arabic-NLi-Pair-Class", None, "train"), ("premise", "hypothesis")),
    (("loopback/arabic-question-pairs", None, "validation"), ("sentence1", "sentence2")),
)
DIMS = (384, 256, 128, 64)
PRECISIONS = ("float32", "int8", "binary")
TOP = 10  # results of a search
ROUNDS = 3  # of timing
ROWS = 256  # queries compared with the whole corpus at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Queries whose right answers are known.

    Attributes:
        queries: Distinct texts.
        relevant: For each query the positions in the corpus of its right answers.
        excluded: For each query its own position in the corpus, which is no answer; -1 where it has none.
    """

    queries: list[str]
    relevant: list[set[int]]
    excluded: list[int]


@dataclass
class Result:
    """One way to search.

    Attributes:
        memory_mib: Memory of the index.
        queries_per_s: Of one thread, the median of several rounds.
        mrr: MRR@10 by task.
        agreement: Share of the 10 nearest by exact full-width search that are among the 10 returned, over all tasks.
    """

    dim: int
    precision: str
    rescored: bool
    memory_mib: float
    queries_per_s: float
    mrr: dict[str, float]
    agreement: float


def load_tasks() -> tuple[list[str], dict[str, Task]]:
    """The corpus, without duplicates, and the tasks by name."""
    from common.data_files import load_hub_dataset

    corpus: dict[str, None] = {}
    for where, columns in CORPUS:
        rows = load_hub_dataset(*where)
        for column in columns:
            corpus.update(dict.fromkeys(rows[column]))
    pairs: dict[str, list[tuple[str, str]]] = {"translations": [], "duplicate questions": []}
    for where in TRANSLATIONS.values():
        rows = load_hub_dataset(*where)
        pairs["translations"] += zip(rows["english"], rows["non_english"], strict=True)
    rows = load_hub_dataset(*QUESTIONS)
    for first, second, label in zip(*(rows[c] for c in ("sentence1", "sentence2", "label")), strict=True):
        corpus.update(dict.fromkeys((first, second)))
        if label and first != second:
            pairs["duplicate questions"] += [(first, second), (second, first)]
    corpus.update(dict.fromkeys(answer for of_task in pairs.values() for _, answer in of_task))
    position = {text: index for index, text in enumerate(corpus)}
    tasks = {}
    for name, of_task in pairs.items():
        relevant: dict[str, set[int]] = {}
        for query, answer in of_task:
            relevant.setdefault(query, set()).add(position[answer])
        tasks[name] = Task(list(relevant), list(relevant.values()), [position.get(query, -1) for query in relevant])
    return list(corpus), tasks


def encode(model_name: str, texts: list[str], folder: Path) -> np.ndarray:
    """Normalised full-width embeddings, float32, shape ``[texts, width]``; read from ``folder`` where they are there."""
    import numpy as np

    from common.models import identify, load_model
    from common.packing import pack

    key = hashlib.sha256("\0".join([identify(model_name).revision, *texts]).encode()).hexdigest()[:16]
    file = folder / f"{key}.npy"
    if not file.exists():
        model = pack(load_model(model_name))
        embeddings = model.encode(texts, batch_size=64, show_progress_bar=True, normalize_embeddings=True)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file.with_suffix(".part.npy"), embeddings)
        file.with_suffix(".part.npy").replace(file)
    return np.load(file)


def stored(embeddings: np.ndarray, dim: int, precision: str) -> np.ndarray:
    """What goes into the index: the normalised prefixes, or their signs as packed bits."""
    import numpy as np

    prefix = embeddings[:, :dim]
    if precision == "binary":
        return np.packbits(prefix > 0, axis=1)
    return prefix / np.linalg.norm(prefix, axis=1, keepdims=True).clip(1e-12)


def build(embeddings: np.ndarray, dim: int, precision: str) -> Index:
    """A usearch index of the corpus; a vector's key is its position."""
    import numpy as np
    from usearch.index import Index, MetricKind, ScalarKind

    metric = MetricKind.Hamming if precision == "binary" else MetricKind.Cos
    dtype = {"float32": ScalarKind.F32, "int8": ScalarKind.I8, "binary": ScalarKind.B1}[precision]
    index = Index(ndim=dim, metric=metric, dtype=dtype)
    index.add(np.arange(len(embeddings)), stored(embeddings, dim, precision))
    return index


def rescore(candidates: np.ndarray, queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """The candidates of each query, nearest first by full-width cosine.

    Args:
        candidates: Positions in the corpus, shape ``[queries, shortlist]``.
        queries, corpus: Normalised full-width embeddings.
    """
    import numpy as np

    ordered = np.empty_like(candidates)
    for row, positions in enumerate(candidates):
        ordered[row] = positions[np.argsort(-(corpus[positions] @ queries[row]), kind="stable")]
    return ordered


def exact(queries: np.ndarray, corpus: np.ndarray, count: int) -> np.ndarray:
    """The positions of the ``count`` nearest vectors by cosine, nearest first, without an index."""
    import numpy as np

    nearest = np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), ROWS):
        similarities = queries[start : start + ROWS] @ corpus.T
        top = np.argpartition(-similarities, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarities, top, axis=1), axis=1, kind="stable")
        nearest[start : start + ROWS] = np.take_along_axis(top, order, axis=1)
    return nearest


def without_query(positions: np.ndarray, task: Task) -> list[list[int]]:
    """The first 10 positions of each query, its own left out."""
    return [[p for p in row if p != own][:TOP] for row, own in zip(positions.tolist(), task.excluded, strict=True)]


def mrr(answers: list[list[int]], task: Task) -> float:
    """The mean over the queries of 1 / rank of the first right answer, 0 without one among the first 10."""
    ranks = [
        next((1 / rank for rank, position in enumerate(row, 1) if position in relevant), 0.0)
        for row, relevant in zip(answers, task.relevant, strict=True)
    ]
    return sum(ranks) / len(ranks)


def search(
    index: Index,
    tasks: dict[str, Task],
    queries: dict[str, np.ndarray],
    corpus: np.ndarray,
    nearest: dict[str, list[list[int]]],
    how: tuple[int, str, bool],
    shortlist: int,
) -> Result:
    """Search all tasks in one way (dimension, precision, rescored), several times for the clock.

    Args:
        queries, corpus: Normalised full-width embeddings.
        nearest: For each task what exact full-width search returns.
    """
    dim, precision, rescored = how
    count = shortlist if rescored else TOP + 1  # one more, since the query itself may be among them
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
            answers = without_query(positions, task)
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
        "--shortlist", type=int, default=100, help="vectors of a query that are rescored (default: %(default)s)"
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        default=Path("output/search"),
        help="folder that keeps embeddings between runs (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if options.shortlist <= TOP:
        parser.error(f"--shortlist {options.shortlist}: more than {TOP} are needed, the number of results")
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
    nearest = {name: without_query(exact(queries[name], corpus, TOP + 1), task) for name, task in tasks.items()}
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
    exact_scores = {name: mrr(nearest[name], task) for name, task in tasks.items()}
    plot(options.output_dir / "search.png", results, exact_scores, options.shortlist, len(texts))
    finish(
        record,
        describe(results, exact_scores, tasks, len(texts), options.shortlist),
        texts=len(texts),
        queries={name: len(task.queries) for name, task in tasks.items()},
        exact=exact_scores,
    )


def describe(
    results: list[Result], exact_scores: dict[str, float], tasks: dict[str, Task], texts: int, shortlist: int
) -> str:
    """The table: a line for each way to search."""
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
        for r in results
    ]
    counts = " and ".join(f"{len(task.queries):,} queries ({name})" for name, task in tasks.items())
    text = markdown_table(head, [exact_line, *lines], text_columns=2)
    return text + (
        f"\n{texts:,} Arabic sentences; {counts}. MRR × 100. Agreement: the share of the {TOP} nearest by exact full-width search that "
        f"are returned. Rescored: the nearest {shortlist} ordered anew by full-width float32. Queries per second of one thread.\n"
    )


def plot(path: Path, results: list[Result], exact_scores: dict[str, float], shortlist: int, texts: int) -> None:
    """Quality against the memory of the index: small vectors alone, and the same rescored."""
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
                    [r.memory_mib for r in points], [100 * r.mrr[name] for r in points], color=color,
                    marker=markers[precision], linewidth=1, markersize=5,
                    label=f"{precision}, {f'{shortlist} rescored' if rescored else 'alone'}",
                )  # fmt: skip
                ends = [points[0]] if len(points) > 1 and not rescored else []
                for r in ends:
                    panel.annotate(f"{r.dim}", (r.memory_mib, 100 * r.mrr[name]), xytext=(0, -12),
                                   textcoords="offset points", ha="center", fontsize=8, color=color)  # fmt: skip
        panel.set_title(name)
        panel.set_xlabel(f"memory of the index of {texts:,} sentences, MiB")
        panel.set_ylabel(f"MRR@{TOP} × 100")
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
