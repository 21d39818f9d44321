"""The tasks of benchmarks/search.py: the corpus, the queries, and the scoring of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.retrieval import QUESTIONS, TRANSLATIONS

if TYPE_CHECKING:
    import numpy as np

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
TOP = 10  # results of a search
ROWS = 256  # queries compared with the whole corpus at a time


@dataclass(frozen=True)
class Task:
    """Queries with known answers.

    Attributes:
        queries: Distinct texts.
        relevant: The positions in the corpus of each query's answers.
        excluded: Each query's own position in the corpus, which is not an answer; -1 if it is not there.
    """

    queries: list[str]
    relevant: list[set[int]]
    excluded: list[int]


@dataclass
class Result:
    """The results of one method of search.

    Attributes:
        memory_mib: Memory of the index, or its size in the database, in MiB.
        queries_per_s: Queries per second of one thread, the median of several rounds.
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
    """Load the corpus, without duplicates, and the tasks by name."""
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
    """Return normalised full-width embeddings, float32, shape ``[texts, width]``; read from ``folder`` if they are stored there."""
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


def exact(queries: np.ndarray, corpus: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the ``count`` nearest vectors by cosine, nearest first, without an index."""
    import numpy as np

    nearest = np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), ROWS):
        similarities = queries[start : start + ROWS] @ corpus.T
        top = np.argpartition(-similarities, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarities, top, axis=1), axis=1, kind="stable")
        nearest[start : start + ROWS] = np.take_along_axis(top, order, axis=1)
    return nearest


def without_query(positions: Iterable[list[int]], task: Task) -> list[list[int]]:
    """Return the first 10 positions found for each query, without the query's own position."""
    return [[p for p in row if p != own][:TOP] for row, own in zip(positions, task.excluded, strict=True)]


def mrr(answers: list[list[int]], task: Task) -> float:
    """Return the mean reciprocal rank of the first correct answer; a query without one among the first 10 counts 0."""
    ranks = [
        next((1 / rank for rank, position in enumerate(row, 1) if position in relevant), 0.0)
        for row, relevant in zip(answers, task.relevant, strict=True)
    ]
    return sum(ranks) / len(ranks)
