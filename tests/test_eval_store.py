"""Each text is encoded once, and embeddings and scores are never mixed up."""

import resource

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from common.config import load_config
from common.errors import RunError
from common.models import ModelIdentity, identify
from common.packing import pack
from evaluation.utils.options import MTEBConfig
from evaluation.utils.scoring import embeddings as module
from evaluation.utils.scoring.embeddings import EmbeddingStore, cache_folder, open_store
from evaluation.utils.scoring.rows import ScoredModel
from tests.helpers import Counting, static_model, texts_of, tokens_seen


def test_each_distinct_text_is_encoded_once_for_all_dimensions_and_calls(tmp_path):
    model = static_model()
    expected = {text: model.encode(text) for text in texts_of(60)}
    counting = Counting(model)
    store = EmbeddingStore(model, tmp_path / "s")
    texts = [*texts_of(60), *texts_of(30)]
    for dim in (32, 16, 8):
        found = store.encode(iter_again(texts), dim)
        assert found.shape == (90, dim)
        np.testing.assert_allclose(found, np.stack([expected[t] for t in texts])[:, :dim], rtol=1e-6)
    again = EmbeddingStore(model, tmp_path / "s")
    again.encode(texts[::-1])
    assert sorted(counting.texts) == sorted(set(texts)) and again.encoded == 0


class iter_again:  # can be iterated repeatedly, but is not a list
    def __init__(self, texts):
        self.texts = texts

    def __iter__(self):
        return iter(self.texts)


def test_evaluation_pads_nothing(tmp_path, tiny_model):
    config = load_config(MTEBConfig, "", ["--model_name", str(tiny_model)])
    config.output_dir = str(tmp_path)
    store = open_store(ScoredModel(identify(str(tiny_model))), config)
    texts = ["one", "one two three", "one two three four five six seven"]
    lengths = [len(ids) for ids in store.model.tokenizer(texts)["input_ids"]]
    assert len(set(lengths)) == 3 and tokens_seen(store.model, texts) == sum(lengths)


@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_several_devices_share_the_texts_and_give_the_same_embeddings(tmp_path, tiny_model, packed):
    texts = texts_of(400)
    model = pack(SentenceTransformer(str(tiny_model), device="cpu")) if packed else static_model()
    alone = EmbeddingStore(model, tmp_path / "one").encode(texts)
    store = EmbeddingStore(model, tmp_path / "two", devices=["cpu", "cpu"])
    try:
        shared = store.encode(texts)
        assert len(store._pool["processes"]) == 2
        assert all(process.is_alive() for process in store._pool["processes"])
    finally:
        store.close()
    np.testing.assert_allclose(shared, alone, atol=1e-6)
    assert store.encoded == len(set(texts)) and store._pool is None


def test_prompts_and_roles_are_kept_apart(tmp_path):
    model = static_model(prompts={"query": "word1 word2 ", "document": "word3 "})
    store = EmbeddingStore(model, tmp_path / "s")
    texts = texts_of(5)
    plain, query, document = (
        store.encode(texts),
        store.encode(texts, role="query"),
        store.encode(texts, role="document"),
    )
    prompted = store.encode(texts, prompt="word4 word5 ")
    np.testing.assert_allclose(query, model.encode_query(texts), rtol=1e-6)
    np.testing.assert_allclose(document, model.encode_document(texts), rtol=1e-6)
    np.testing.assert_allclose(prompted, model.encode(texts, prompt="word4 word5 "), rtol=1e-6)
    for one, other in ((plain, query), (query, document), (plain, prompted)):
        assert not np.allclose(one, other)


def test_models_revisions_and_precisions_have_folders_of_their_own(tmp_path):
    identities = [ModelIdentity("a/b", "1", ""), ModelIdentity("a/b", "2", ""), ModelIdentity("a/c", "1", "")]
    folders = {cache_folder(tmp_path, ScoredModel(i, dtype)) for i in identities for dtype in ("float32", "bfloat16")}
    assert len(folders) == 6


def test_an_interrupted_encode_continues_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    texts = texts_of(35)
    model = static_model()
    store = EmbeddingStore(model, tmp_path / "s")
    forward, calls = store._forward, []

    def fails_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(store, "_forward", fails_third)
    with pytest.raises(KeyboardInterrupt):
        store.encode(texts)
    rows = next((tmp_path / "s").glob("*.f32"))
    with rows.open("ab") as file:
        file.write(b"torn")  # part of a row
    again = EmbeddingStore(model, tmp_path / "s")
    np.testing.assert_allclose(again.encode(texts), model.encode(texts), rtol=1e-6)
    assert again.encoded == 15


def test_a_full_disk_names_the_file_and_keeps_what_was_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    texts = texts_of(35)
    model = static_model()
    store = EmbeddingStore(model, tmp_path / "s")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25 * 4 * 32, hard))  # 25 rows: the third chunk does not fit
    try:
        with pytest.raises(OSError, match=r"too large.*/s/\w+\.f32"):
            store.encode(texts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = EmbeddingStore(model, tmp_path / "s")
    np.testing.assert_allclose(again.encode(texts), model.encode(texts), rtol=1e-6)
    assert again.encoded == 15


def test_a_large_corpus_is_a_view_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VIEW_FROM", 20)
    monkeypatch.setattr(module, "CHUNK", 16)
    model = static_model()
    store = EmbeddingStore(model, tmp_path / "s")
    texts = list(dict.fromkeys(texts_of(100)))
    found = store.encode(texts, 8)
    assert isinstance(found, np.memmap) and not found.flags.writeable
    np.testing.assert_allclose(found, model.encode(texts)[:, :8], rtol=1e-6)
    shuffled = store.encode(texts[::-1], 8)
    np.testing.assert_allclose(shuffled, np.asarray(found)[::-1], rtol=1e-6)


def test_nan_is_refused_and_nothing_of_it_is_kept(tmp_path):
    model = static_model()
    model[0].embedding.weight.data[5] = float("nan")
    store = EmbeddingStore(model, tmp_path / "s")
    with pytest.raises(RunError, match="word4"):
        store.encode(["word1", "word4"])
    assert store.encode(["word1"]).shape == (1, 32)
