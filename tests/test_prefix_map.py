"""The map after training: orthogonal, better for the prefixes, and part of the model that is saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from common.errors import RunError
from tests.helpers import write_pairs
from training.utils import prefix_map
from training.utils.prefix_map import (
    add_prefix_map,
    check_prefix_map,
    insert_rotation,
    learn_prefix_map,
    sample_texts,
    similarity_errors,
)

WIDTH, DIMS = 32, [32, 16, 8]


@pytest.fixture
def embeddings() -> torch.Tensor:
    """Texts whose similarities lie in the last 8 of 32 numbers, which no prefix sees."""
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(400, 8, generator=generator)
    return torch.cat([0.3 * torch.randn(400, 24, generator=generator), meaning], dim=1)


def cosines(rows: torch.Tensor) -> torch.Tensor:
    rows = torch.nn.functional.normalize(rows.double(), dim=-1)
    return rows @ rows.T


def test_the_error_is_the_squared_difference_of_the_similarities_most_of_all_of_alike_texts(embeddings):
    rows = embeddings[:30]
    [error] = similarity_errors(rows, [8])
    full, prefix = cosines(rows).numpy(), cosines(rows[:, :8]).numpy()
    pairs = [(full[i, j], prefix[i, j]) for i in range(30) for j in range(30) if i != j]
    mean, spread = np.mean([f for f, _ in pairs]), np.std([f for f, _ in pairs], ddof=1)
    weights = [1 / (1 + np.exp(-2 * ((f - mean) / spread - 1))) for f, _ in pairs]
    expected = np.average([(p - f) ** 2 for f, p in pairs], weights=weights)
    assert float(error) == pytest.approx(expected, rel=1e-4)


def test_texts_of_a_row_follow_one_another():
    first = Dataset.from_dict(
        {"anchor": ["a1", "a2", "a3"], "positive": ["b1", "b2", "b3"], "label": [[1.0], [2.0], [3.0]]}
    )
    texts = sample_texts([first, Dataset.from_dict({"text": ["a1", "c"]})], 100, seed=1)
    assert sorted(texts) == ["a1", "a2", "a3", "b1", "b2", "b3", "c"]
    assert texts[texts.index("a2") + 1] == "b2" and texts[texts.index("a3") + 1] == "b3"
    assert len(sample_texts([first], 4, seed=1)) == 4


def test_the_map_is_orthogonal_helps_every_prefix_and_leaves_the_full_width_alone(embeddings):
    learnt = learn_prefix_map(embeddings, DIMS, steps=200)
    identity = learnt.rotation.double() @ learnt.rotation.double().T
    assert torch.allclose(identity, torch.eye(WIDTH).double(), atol=1e-6)
    assert (cosines(embeddings @ learnt.rotation) - cosines(embeddings)).abs().max() < 1e-6
    for dim in (8, 16):
        assert learnt.errors_after[dim] < 0.5 * learnt.errors_before[dim]


def test_between_two_dimensions_the_axes_are_in_the_order_of_their_size(embeddings):
    rotated = embeddings @ learn_prefix_map(embeddings, DIMS, steps=20).rotation
    sizes = torch.nn.functional.normalize(rotated, dim=-1)[:360].square().mean(dim=0)
    for start, end in ((0, 8), (8, 16), (16, 32)):
        assert (sizes[start : end - 1] >= sizes[start + 1 : end] - 1e-6).all()


def test_the_same_seed_gives_the_same_map(embeddings):
    first, again = (learn_prefix_map(embeddings, DIMS, steps=5, seed=3).rotation for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("dims", "texts", "message"),
    [
        ("64", 40, "needs a dimension below the full width, 64: add one to --matryoshka_dims"),
        ("16", 16, "learns from at least 20 different training texts, but there are only 16"),
    ],
)
def test_what_cannot_be_learnt_is_an_error_before_training(fails, tiny_model, tmp_path, dims, texts, message):
    rows = [{"anchor": f"word{n}", "positive": f"other{n}"} for n in range(texts // 2)]
    data = write_pairs(tmp_path / "few.jsonl", rows)
    flags = ("--prefix_map", "--matryoshka_dims", dims, "--dev_data", "none", "--output_dir", tmp_path / "run")
    fails(1, message, "training/matryoshka_nli.py", tiny_model, "--train_data", data, *flags)
    assert not (tmp_path / "run/run.json").exists()


def test_a_model_without_pooling_has_no_place_for_the_map():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"after a pooling module, but the model has none \(its modules: Linear\)"):
        check_prefix_map(model, [], DIMS)


def test_the_rotation_is_saved_with_a_transformer_before_its_normalisation(tiny_model, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = SentenceTransformer(str(tiny_model), device="cpu")
    model.append(Normalize())
    texts = ["two dogs run", "السماء صافية اليوم", "a man walks"]
    before = model.encode(texts)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1))).Q
    insert_rotation(model, rotation)
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Dense", "Normalize"]
    model.save_pretrained(str(tmp_path / "model"))
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    assert saved == pytest.approx(before @ rotation.numpy(), abs=1e-5)
    assert np.abs(saved @ saved.T - before @ before.T).max() < 1e-6


def test_it_is_folded_into_the_table_of_static_embeddings():
    from training.utils.model_utils import make_static_model

    texts = ["two dogs run", "a man walks", "the dogs walk"]
    model = make_static_model(texts, 64, 100, seed=0)
    before = model.encode(texts)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1))).Q
    insert_rotation(model, rotation)
    assert [type(module).__name__ for module in model] == ["StaticEmbedding"]
    assert model.encode(texts) == pytest.approx(before @ rotation.numpy(), abs=1e-5)


@pytest.mark.parametrize("static", [False, True])
def test_the_rotation_follows_every_module_that_is_not_a_normalisation_at_the_end(tiny_model, static):
    """A normalisation, or a table of embeddings, may come before another layer, which does not commute with a rotation."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    from training.utils.model_utils import make_static_model

    texts = ["two dogs run", "a man walks", "the dogs walk"]
    model = make_static_model(texts, 64, 100, seed=0) if static else SentenceTransformer(str(tiny_model), device="cpu")
    torch.manual_seed(2)
    for module in (Normalize(), Dense(64, 48), Normalize()):
        model.append(module)
    before, modules = model.encode(texts), [type(module).__name__ for module in model]
    rotation = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(1))).Q
    insert_rotation(model, rotation)
    assert [type(module).__name__ for module in model] == [*modules[:-1], "Dense", "Normalize"]
    assert model.encode(texts) == pytest.approx(before @ rotation.numpy(), abs=1e-5)


def test_a_map_that_does_not_help_is_not_used(tiny_model, monkeypatch, caplog):
    model = SentenceTransformer(str(tiny_model), device="cpu")
    worse = prefix_map.PrefixMap(torch.eye(64), {16: 0.1}, {16: 0.2})
    monkeypatch.setattr(prefix_map, "learn_prefix_map", lambda *args: worse)
    assert add_prefix_map(model, [Dataset.from_dict({"text": ["one", "two"]})], [64, 16]) is None
    assert len(list(model)) == 2 and "is not used" in caplog.text


def test_the_key_maps_the_final_model(warm, hub, tmp_path):
    folder = tmp_path / "run"
    done = warm(
        "training/matryoshka_nli.py", "tiny/sentence-bert", "--prefix_map", "--matryoshka_dims", "32", "16",
        "--max_steps", "1", "--per_device_train_batch_size", "8", "--output_dir", folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    kinds = [type(module).__name__ for module in SentenceTransformer(str(folder / "final"), device="cpu")]
    assert kinds == ["Transformer", "Pooling", "Dense"]
