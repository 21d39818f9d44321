"""The code blocks of docs/deploying.md run unchanged, section by section, and give the promised results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from benchmarks.postgres import postgres
from common.errors import RunError
from tests.helpers import ROOT

PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
QUERY = "The sky is clear today"


def blocks(section: str) -> list[tuple[str, str]]:
    """The language and the text of each block of code in a section."""
    [text] = re.findall(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(python|sql)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_block_of_code_is_run_by_a_test_below():
    tested = ("sentence-transformers", "onnxruntime, without torch", "int8 and binary vectors", "Two-stage search",
              "PostgreSQL with pgvector")  # fmt: skip
    assert sum(len(blocks(section)) for section in tested) == len(re.findall(r"^```\w+", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def place(tiny_model, groups, tmp_path_factory) -> Path:
    """A folder as the page expects it: a model with 384 dimensions, and sentences."""
    folder = tmp_path_factory.mktemp("deploying")
    transformer = Transformer(str(tiny_model))
    pooling = Pooling(transformer.get_embedding_dimension())
    dense = Dense(pooling.get_embedding_dimension(), 384, bias=False, activation_function=None)
    model = SentenceTransformer(modules=[transformer, pooling, dense], device="cpu")
    model.save_pretrained(str(folder / "output/multilingual/final"))
    texts = dict.fromkeys(text for group in groups for text in re.findall(r"'([^']{9,})'", str(group)))
    (folder / "sentences.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return folder


@pytest.fixture
def run_section(place, monkeypatch, capsys):
    """``run_section(name, names)`` runs the Python blocks of a section; returns the names it defines and what it prints."""
    monkeypatch.chdir(place)

    def run(section: str, names: dict | None = None, sql=None) -> tuple[dict, str]:
        names = {} if names is None else names
        capsys.readouterr()
        for language, code in blocks(section):
            if language == "python":
                exec(compile(code, f"docs/deploying.md, {section}", "exec"), names)
            else:
                sql(code)
        return names, capsys.readouterr().out

    return run


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_sentence_transformers(run_section, place):
    names, _ = run_section("sentence-transformers")
    full = SentenceTransformer(str(place / "output/multilingual/final"), device="cpu").encode(
        ["السماء صافية اليوم", QUERY]
    )
    np.testing.assert_allclose(names["embeddings"], unit(full[:, :256]), atol=1e-6)


def test_onnxruntime(run_section, place, call):
    command = re.search(r"python (training/export_model\.py .*--format onnx.*)", PAGE)[1].split()
    done = call(command[0], *command[1:])
    assert done.code == 0, done.err
    names, out = run_section("onnxruntime, without torch")
    assert out == "(2, 256)\n"
    full = SentenceTransformer(str(place / "output/multilingual/final"), device="cpu").encode([QUERY])
    assert float((names["embed"]([QUERY])[0] * unit(full[0, :256])).sum()) > 0.99  # int8


def test_int8_and_binary_vectors(run_section, place):
    """They rank the sentences nearly as the float32 vectors do."""
    names, _ = run_section("int8 and binary vectors")
    embeddings = unit(names["embeddings"])
    exact = embeddings @ embeddings[0]
    assert names["int8"].nbytes == 256 * len(exact) and names["binary"].nbytes == 32 * len(exact)
    np.testing.assert_allclose(names["similarities"][0].numpy(), exact, atol=0.02)
    assert (names["distances"] == ((names["embeddings"] > 0) != (names["embeddings"][0] > 0)).sum(axis=1)).all()


def nearest(place: Path, count: int) -> list[tuple[float, str]]:
    """The nearest sentences by full-width cosine, computed for all of them."""
    model = SentenceTransformer(str(place / "output/multilingual/final"), device="cpu")
    sentences = (place / "sentences.txt").read_text(encoding="utf-8").splitlines()
    scores = unit(model.encode(sentences)) @ unit(model.encode(QUERY))
    return [(float(scores[i]), sentences[i]) for i in np.argsort(-scores, kind="stable")[:count]]


def test_two_stage_search(run_section, place):
    pytest.importorskip("usearch", reason="usearch is not installed")
    names, out = run_section("Two-stage search")
    assert len(out.splitlines()) == 10
    index, sentences = names["index"], names["sentences"]
    vector = names["model"].encode(QUERY, normalize_embeddings=True)
    # the index is approximate: it may miss a few sentences even if asked for all
    reached = {sentences[key] for key in index.search(vector[:64], len(sentences)).keys.astype(int)}
    assert len(reached) > 0.9 * len(set(sentences))
    best = names["search"](QUERY, count=10, shortlist=len(sentences))
    expected = [score for score, sentence in nearest(place, len(sentences)) if sentence in reached][:10]
    assert [score for score, _ in best] == pytest.approx(expected, abs=1e-5)
    shortlist = {sentences[key] for key in index.search(vector[:64], 20).keys.astype(int)}
    assert {sentence for _, sentence in names["search"](QUERY, count=20, shortlist=20)} == shortlist


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of PostgreSQL with pgvector."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(postgres())
        except RunError as error:
            pytest.skip(str(error))
        yield address


def test_postgres_with_pgvector(run_section, place, database, monkeypatch):
    import psycopg

    monkeypatch.setenv("DATABASE_URL", database)
    names, _ = run_section("Two-stage search")
    with psycopg.connect(database, autocommit=True) as admin:
        names, out = run_section("PostgreSQL with pgvector", names, sql=admin.execute)
        print(admin.execute("SELECT version()").fetchone()[0])
        print("pgvector", admin.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0])
        count = admin.execute("SELECT count(*) FROM sentences").fetchone()[0]
    assert count == len(names["sentences"]) and len(out.splitlines()) == 10

    # the query takes its shortlist from the index, and no other plan
    connection, vector = names["connection"], names["HalfVector"](names["model"].encode(QUERY))
    connection.execute("SET enable_seqscan = off")
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {names['QUERY']}", {"query": vector}).fetchall())
    assert "Index Scan using sentences_by_prefix" in plan

    # the index is approximate: its shortlist contains most of the 100 nearest sentences by prefix
    rows = names["search_database"](QUERY)
    connection.execute("SET enable_seqscan = on")
    connection.execute("SET enable_indexscan = off")
    exact = names["search_database"](QUERY)
    connection.close()
    full, query = np.load("full.npy"), names["model"].encode(QUERY, normalize_embeddings=True)
    distances = dict(zip(names["sentences"], (1 - full @ query).tolist(), strict=True))
    assert [row[2] for row in rows] == pytest.approx([distances[row[1]] for row in rows], abs=2e-3)  # halfvec
    assert [row[2] for row in rows] == sorted(row[2] for row in rows)
    by_prefix = np.argsort(-(unit(full[:, :64]) @ unit(query[:64])), kind="stable")[:100]
    nearest = sorted(by_prefix, key=lambda i: 1 - full[i] @ query)[:10]
    assert len({names["sentences"][i] for i in nearest} & {row[1] for row in rows}) >= 6

    # without the index, the shortlist is exact, and ordered by all dimensions
    expected = sorted(float(1 - full[i] @ query) for i in by_prefix)[:10]
    assert [row[2] for row in exact] == pytest.approx(expected, abs=2e-3)  # halfvec
