"""A teacher's embeddings are the targets of distillation: computed once, stored on disk, and reused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from common.errors import RunError
from training.utils import teacher as module
from training.utils.teacher import add_targets

SENTENCES = ["two dogs run", "السماء صافية اليوم", "a man walks", "two dogs run"]


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"sentence": SENTENCES, "translation": [f"{text}!" for text in SENTENCES]})


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The teachers that are loaded."""
    loaded, load = [], module.load_model
    monkeypatch.setattr(module, "load_model", lambda source, identity: loaded.append(source) or load(source, identity))
    return loaded


def test_the_targets_are_the_teachers_embeddings_of_the_sentences(rows, tiny_model):
    found = add_targets(rows, str(tiny_model), 64)
    assert found.column_names == ["sentence", "translation", "label"]
    assert found["translation"][:] == rows["translation"][:]
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(SENTENCES)
    assert np.array(found["label"][:]) == pytest.approx(expected, abs=1e-5)
    assert found.features["label"].feature.dtype == "float32" and found.features["label"].length == 64


def test_they_are_computed_once_and_read_from_disk(tiny_model, loads):
    teacher, texts = str(tiny_model), {"sentence": ["one dog", "two dogs", "three dogs"]}
    first = add_targets(Dataset.from_dict(texts), teacher, 64)
    again = add_targets(Dataset.from_dict(texts), teacher, 64)  # as in a resumed run
    assert len(loads) == 1
    assert again.cache_files == first.cache_files != []
    assert again[:] == first[:]
    add_targets(Dataset.from_dict(texts).select([2, 1]), teacher, 64)
    assert len(loads) == 2


def test_another_teacher_of_the_same_name_has_targets_of_its_own(rows, tiny_model, tmp_path, loads):
    """For example, when the model in a folder is trained again."""
    model = SentenceTransformer(str(tiny_model), device="cpu")
    found = []
    for _ in range(2):
        model.save_pretrained(str(tmp_path / "teacher"))
        found.append(np.array(add_targets(rows, str(tmp_path / "teacher"), 64)["label"][:]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    assert len(loads) == 2 and np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.parametrize("harm", ["truncated", "empty", "a row less"])
def test_corrupt_targets_are_set_aside_and_computed_again(tiny_model, harm, loads, caplog):
    rows = Dataset.from_dict({"sentence": [f"{harm} {number}" for number in range(9)]})
    expected = add_targets(rows, str(tiny_model), 64)
    path = Path(expected.cache_files[0]["filename"])
    expected = expected.with_format("numpy")["label"][:]
    if harm == "a row less":
        path.unlink()
        Dataset.from_dict({"sentence": ["x"], "label": [[0.0] * 64]}).map(lambda row: row, cache_file_name=str(path))
    else:
        path.write_bytes(path.read_bytes()[:-700] if harm == "truncated" else b"")
    found = add_targets(rows, str(tiny_model), 64)
    assert np.array_equal(found.with_format("numpy")["label"][:], expected) and len(loads) == 2
    assert str(path) in caplog.text and path.with_name(f"{path.name}.corrupt").exists()


def test_a_teacher_of_another_width(rows, tiny_model, hub):
    with pytest.raises(RunError, match="width 64, .* width 768: distill"):
        add_targets(rows, str(tiny_model), 768)


def test_a_teacher_whose_embeddings_are_not_finite(rows, tiny_model, tmp_path):
    model = SentenceTransformer(str(tiny_model), device="cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    model.save_pretrained(str(tmp_path / "broken"))
    with pytest.raises(RunError, match="NaN or infinite"):
        add_targets(rows, str(tmp_path / "broken"), 64)
