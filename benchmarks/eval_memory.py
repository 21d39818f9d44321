"""Measures the memory that an evaluation needs in addition to the loaded model, for corpora of growing size.

    python benchmarks/eval_memory.py --sizes 10000 100000

A random static embedding model searches a synthetic corpus that mteb reads from disk. Encoding and search go through mteb as in
evaluate_mteb.py; each size runs in a new process. Growth counts anonymous memory, which the system cannot reclaim; pages of
memory-mapped files (RssFile) have a separate column. Writes memory.json and memory.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import tempfile
import threading
import time

from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from common.errors import run

logger = logging.getLogger(__name__)

WORDS = 5000


def memory() -> dict[str, float]:
    """Return the anonymous memory and the mapped files of this process, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def measure(size: int, width: int, dims: list[int], words: int, folder: Path) -> dict[str, float]:
    """Score one retrieval task on a corpus of ``size`` texts and return memory growth, time and score."""
    import numpy as np
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    from common.models import ModelIdentity
    from evaluation.utils.scoring.embeddings import EmbeddingStore, cache_folder
    from evaluation.utils.scoring.mteb_run import MTEBRun
    from evaluation.utils.scoring.rows import ScoredModel

    def texts(count: int, seed: int):
        rng = np.random.default_rng(seed)
        for _ in range(count):
            yield " ".join(f"w{i}" for i in rng.integers(0, WORDS, words))

    def rows():
        for i, text in enumerate(texts(size, 1)):
            yield {"id": f"d{i}", "text": text, "title": ""}

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Corpus{size}", description="synthetic", type="Retrieval", category="t2t", modalities=["text"],
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
            dataset={"path": "synthetic/corpus", "revision": "1"},
        )  # fmt: skip

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)} | {"[UNK]": WORDS}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((WORDS + 1, width)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    corpus = Dataset.from_generator(rows, cache_dir=str(folder / "corpus"))
    queries = list(texts(20, 1))
    task = Task()
    task.dataset = {"default": {"test": {
        "corpus": corpus,
        "queries": Dataset.from_dict({"id": [f"q{i}" for i in range(20)], "text": queries}),
        "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(20)},
        "top_ranked": None,
    }}}  # fmt: skip
    task.data_loaded = True
    task.load_data = lambda **_: None
    model.encode(queries)  # so that what the libraries load on first use is not counted

    peak, done = memory(), threading.Event()
    start = dict(peak)

    def watch() -> None:
        while not done.wait(0.01):
            for name, value in memory().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    identity = ModelIdentity("local/static", "0" * 40, "")
    scored_model = ScoredModel(identity)
    store = EmbeddingStore(model, cache_folder(folder, scored_model))
    scores = MTEBRun(store, scored_model, dims, folder).score([task])
    done.set()
    watcher.join()
    return {"texts": size, "anonymous_growth_mib": peak["RssAnon"] - start["RssAnon"], "mapped_growth_mib":
            peak["RssFile"] - start["RssFile"], "embeddings_mib": size * width * 4 / 2**20, "model_mib": weights.nbytes / 2**20,
            "seconds": time.perf_counter() - began, "score": scores[0].score}  # fmt: skip


def measure_in_temporary_folder(size: int, width: int, dims: list[int], words: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return measure(size, width, dims, words, Path(folder))


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[10_000, 30_000, 100_000],
        help="texts in the corpus (default: %(default)s)",
    )
    parser.add_argument("--width", type=int, default=384, help="embedding width of the model (default: %(default)s)")
    parser.add_argument(
        "--dims", type=int, nargs="+", default=[384, 64], help="dimensions to score (default: %(default)s)"
    )
    parser.add_argument("--words", type=int, default=20, help="words in a text (default: %(default)s)")
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    results = []
    for size in options.sizes:
        shared = {"width": options.width, "dims": options.dims, "words": options.words}
        results.append(measure_in_new_process(measure_in_temporary_folder, size=size, **shared))
        logger.info("%d texts: %.0f MiB of anonymous memory", size, results[-1]["anonymous_growth_mib"])
        record.write(results=results)
    head = ["texts", "embeddings, MiB", "anonymous growth, MiB", "mapped files, MiB", "seconds"]
    shown = ("texts", "embeddings_mib", "anonymous_growth_mib", "mapped_growth_mib", "seconds")
    rows = [[f"{row[key]:.0f}" for key in shown] for row in results]
    finish(record, markdown_table(head, rows, text_columns=0))


if __name__ == "__main__":
    run(main)
