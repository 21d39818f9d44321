"""How much memory an evaluation takes above the loaded model, for corpora of growing size.

    python benchmarks/eval_memory.py --sizes 10000 100000

A static embedding model made here, and a retrieval task made here that reads its corpus from disk: encoded and searched
through mteb as evaluate_mteb.py does it, each size in a process of its own. Counted is anonymous memory, which the system
cannot take back; pages of memory-mapped files (RssFile) are shown beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

WORDS = 5000


def memory() -> dict[str, float]:
    """MiB of anonymous memory and of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def measure(size: int, width: int, dims: list[int], words: int, folder: Path) -> dict[str, float]:
    import mteb
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
            name=f"Corpus{size}", description="made here", type="Retrieval", category="t2t", modalities=["text"],
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
            dataset={"path": "made/here", "revision": "1"},
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
    model.encode(queries)  # what the libraries load at the first call
    assert mteb.__version__

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="texts in the corpus")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 64])
    parser.add_argument("--words", type=int, default=20, help="words in a text")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(arguments.one, arguments.width, arguments.dims, arguments.words, Path(folder))))
        return
    found = []
    print(
        "| texts | embeddings, MiB | anonymous growth, MiB | mapped files, MiB | seconds |\n|---:|---:|---:|---:|---:|"
    )
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--width", str(arguments.width), "--words", str(arguments.words),
                   "--dims", *map(str, arguments.dims)]  # fmt: skip
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
        row = found[-1]
        print(f"| {size} | {row['embeddings_mib']:.0f} | {row['anonymous_growth_mib']:.0f} | {row['mapped_growth_mib']:.0f} | "
              f"{row['seconds']:.0f} |", flush=True)  # fmt: skip
    if arguments.output:
        from common.records import versions, write_atomically

        write_atomically(arguments.output, json.dumps({"width": arguments.width, "dims": arguments.dims, "results": found,
                                                       "versions": versions()}, indent=2) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
