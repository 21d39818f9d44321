"""Measures search with the models of benchmarks/recipes.py at every dimension: translations among distractors, duplicate questions.

    python benchmarks/retrieval.py                                   # base, plain Matryoshka and the multilingual recipes
    python benchmarks/retrieval.py --rows e5 multilingual            # these rows of benchmarks/recipes.json

The tasks:

- translations: find a sentence's translation among all sentences in the other language (accuracy@1, mean of both directions)
- questions: find a duplicate of an Arabic question among all questions of the set (MRR@10)
- entailments: find an English premise's entailment among all hypotheses of SNLI dev (accuracy@1), which shows the effect of training
  and pruning on English

Numbers are means over the seeds. A row is compared with the one that it names in "against", on the same queries. The models must
exist; benchmarks/recipes.py trains them. Writes retrieval.json and retrieval.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.recipes import DIMS, ROWS
from benchmarks.skeleton import finish, make_parser, markdown_table, start_record
from common.errors import RunError, run

if TYPE_CHECKING:
    import numpy as np

    from evaluation.utils.scoring.statistics import Estimate

DEFAULT_ROWS = ("e5", "e5-nli", "multilingual", "multilingual-all")
TRANSLATIONS = {
    "tatoeba": ("sentence-transformers/parallel-sentences-tatoeba", "en-ar", "dev"),
    "captions": ("loopback/parallel-sentences-captions", "en-ar", "dev"),
    "xnli": ("loopback/parallel-sentences-xnli", "en-ar", "dev"),
    "news": ("loopback/parallel-sentences-news-health-wiki", "en-ar", "dev"),
}
QUESTIONS = ("loopback/arabic-question-pairs", None, "test")
ENTAILMENTS = ("sentence-transformers/all-nli", "triplet", "dev")
CUTOFF = 10
TITLES = {  # of the tables; translations are from the dev split of a set
    "translations, tatoeba": "translations, Tatoeba",
    "translations, xnli": "translations, XNLI",
    "translations, news": "translations, news, health and encyclopaedia (NTREX-128, TICO-19, FLORES)",
    "translations, captions": "translations, image captions",
    "questions": "duplicate Arabic questions",
    "entailments": "English entailments, from premise to hypothesis",
}


@dataclass(frozen=True)
class Search:
    """A retrieval task.

    Attributes:
        queries: The texts to search with.
        corpus: The distinct texts to search in.
        relevant: The positions in the corpus that are correct for each query.
        excluded: The position of each query itself, which is not an answer; -1 if it is not in the corpus.
        cutoff: The last rank that counts: a query scores 1 / rank of its first relevant text, or 0 if that rank is beyond the cutoff.
    """

    queries: list[str]
    corpus: list[str]
    relevant: list[set[int]]
    excluded: list[int]
    cutoff: int


def make_search(pairs: list[tuple[str, str]], others: list[str], cutoff: int) -> Search:
    """Create a task: find the second text of each pair from the first, among all second texts and ``others``."""
    corpus = list(dict.fromkeys([*(answer for _, answer in pairs), *others]))
    position = {text: index for index, text in enumerate(corpus)}
    relevant: dict[str, set[int]] = {}
    for query, answer in pairs:
        if query != answer:
            relevant.setdefault(query, set()).add(position[answer])
    queries = list(relevant)
    return Search(
        queries, corpus, [relevant[q] for q in queries], [position.get(query, -1) for query in queries], cutoff
    )


def load_searches() -> dict[str, list[Search]]:
    """Load the tasks by name. The score of a task with several searches (two directions) is the mean over all their queries."""
    from common.data_files import load_hub_dataset

    searches: dict[str, list[Search]] = {}
    parallel = {name: load_hub_dataset(*where) for name, where in TRANSLATIONS.items()}
    english = [text for rows in parallel.values() for text in rows["english"]]
    arabic = [text for rows in parallel.values() for text in rows["non_english"]]
    for name, rows in parallel.items():
        pairs = list(zip(rows["english"], rows["non_english"], strict=True))
        searches[f"translations, {name}"] = [
            make_search(pairs, arabic, 1),
            make_search([(ar, en) for en, ar in pairs], english, 1),
        ]
    rows = load_hub_dataset(*QUESTIONS)
    duplicates = [
        (a, b) for a, b, label in zip(*(rows[c] for c in ("sentence1", "sentence2", "label")), strict=True) if label
    ]
    searches["questions"] = [make_search(duplicates, [*rows["sentence1"], *rows["sentence2"]], CUTOFF)]
    rows = load_hub_dataset(*ENTAILMENTS)
    entailed = list(zip(rows["anchor"], rows["positive"], strict=True))
    searches["entailments"] = [make_search(entailed, list(rows["negative"]), 1)]
    return searches


def reciprocal_ranks(queries: np.ndarray, corpus: np.ndarray, search: Search) -> np.ndarray:
    """Return 1 / rank of the first relevant text for each query, 0 beyond the cutoff. Ties count against the query.

    Args:
        queries, corpus: Embeddings, shape ``[n, dim]`` and ``[m, dim]``, not normalised.
    """
    import numpy as np

    queries, corpus = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (queries, corpus))
    reciprocals = np.zeros(len(queries))
    for start in range(0, len(queries), 512):
        similarities = queries[start : start + 512] @ corpus.T
        for row, scores in enumerate(similarities, start):
            if search.excluded[row] >= 0:
                scores[search.excluded[row]] = -np.inf
            relevant = list(search.relevant[row])
            best = scores[relevant].max()
            rank = 1 + int((scores >= best).sum()) - int((scores[relevant] >= best).sum())
            reciprocals[row] = 1 / rank if rank <= search.cutoff else 0.0
    return reciprocals


def score(model, searches: dict[str, list[Search]]) -> dict[str, list[Estimate]]:
    """Estimate the score of each task at each dimension."""
    import numpy as np

    from evaluation.utils.scoring.statistics import bootstrap, mean

    texts = list(dict.fromkeys(t for of_task in searches.values() for s in of_task for t in [*s.queries, *s.corpus]))
    embeddings = model.encode(texts, batch_size=64, show_progress_bar=False)
    position = {text: index for index, text in enumerate(texts)}
    scores = {}
    for name, of_task in searches.items():
        columns = []
        for dim in DIMS:
            ranks = [
                reciprocal_ranks(
                    embeddings[[position[t] for t in s.queries], :dim],
                    embeddings[[position[t] for t in s.corpus], :dim],
                    s,
                )
                for s in of_task
            ]
            columns.append(np.concatenate(ranks))
        scores[name] = bootstrap(mean(columns), len(columns[0]), sample=f"retrieval {name}")
    return scores


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--rows", nargs="+", default=list(DEFAULT_ROWS), help="rows to score (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="score the models of these seeds (default: each row's own seeds)"
    )
    parser.add_argument(
        "--models", type=Path, default=Path("output/recipes"), help="folder of the models (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    every = json.loads(ROWS.read_text(encoding="utf-8"))
    if unknown := set(options.rows) - every.keys():
        parser.error(f"no row {sorted(unknown)[0]!r}; choose from {', '.join(every)}")
    if options.seeds:
        every = {name: row if "model" in row else row | {"seeds": options.seeds} for name, row in every.items()}
    sources = {name: models_of(name, every[name], options.models) for name in options.rows}

    from common.models import load_model
    from common.packing import pack
    from evaluation.utils.scoring.statistics import paired_mean

    record = start_record(__file__, options)
    searches = load_searches()
    results: dict[str, dict[str, list[Estimate]]] = {}
    for name, of_row in sources.items():
        runs = [score(pack(load_model(source)), searches) for source in of_row]
        results[name] = {
            task: [paired_mean(seeds) for seeds in zip(*(r[task] for r in runs), strict=True)] for task in searches
        }
    scores = {
        name: {
            task: {str(d): [e.value, *e.interval()] for d, e in zip(DIMS, of, strict=True)}
            for task, of in tasks.items()
        }
        for name, tasks in results.items()
    }
    finish(record, describe(results, every, searches), scores=scores)


def models_of(name: str, row: dict, models: Path) -> list[str]:
    """Return the models of a row: one that is only scored, or those of its seeds. Raises RunError if one is missing."""
    if "model" in row:
        return [row["model"]]
    folders = [models / f"{name}-{seed}" / "final" for seed in row["seeds"]]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise RunError(f"{missing[0]} is missing: train it with benchmarks/recipes.py --rows {name}")
    return [str(folder) for folder in folders]


def describe(results: dict, rows: dict, searches: dict[str, list[Search]]) -> str:
    """Return a table for each task: every row at every dimension, with marks for significant differences."""
    from benchmarks.recipes import sign

    text = "Mean over queries and seeds, × 100, with 95% intervals (bootstrap over the queries). "
    text += "▲ ▼: significantly above or below the model named in brackets (paired bootstrap, p < 0.05).\n"
    for task, of_task in searches.items():
        queries = sum(len(s.queries) for s in of_task)
        texts = len(of_task[0].corpus)
        both_ways = len(of_task) > 1  # translations; the first direction searches the Arabic texts
        searched = f"in both directions ({texts} Arabic texts)" if both_ways else f"among {texts} texts"
        what = "accuracy@1" if of_task[0].cutoff == 1 else f"MRR@{of_task[0].cutoff}"
        lines = []
        for name, scores in results.items():
            against = results.get(rows[name].get("against"))
            cells = []
            for index, estimate in enumerate(scores[task]):
                low, high = estimate.interval()
                mark = sign(estimate - against[task][index]) if against else ""
                cells.append(f"{100 * estimate.value:.1f} ({100 * low:.1f} to {100 * high:.1f}){mark}")
            label = rows[name]["label"] + (f" (▲▼ {rows[rows[name]['against']]['label']})" if against else "")
            lines.append([label, str(len(rows[name].get("seeds", [0]))), *cells])
        text += f"\n**{TITLES.get(task, task)}**: {what}, {queries} queries {searched}\n\n"
        text += markdown_table(["model", "seeds", *map(str, DIMS)], lines)
    return text


if __name__ == "__main__":
    run(main)
