"""Distillation of similarities: the value computed by hand, and the teacher's full width as the target of every prefix."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sentence_transformers import SentenceTransformer

from training.utils.losses import make_loss
from training.utils.options import DatasetEntry
from training.utils.similarity_distillation import similarity_correlation


def by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    """Pearson's correlation over the pairs of different texts, each pair once."""

    def similarities(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return [float(unit[i] @ unit[j]) for i in range(len(unit)) for j in range(i)]

    return float(pearsonr(similarities(student), similarities(teacher)).statistic)


def test_the_correlation_is_the_one_by_hand():
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(12, 16)), draw.normal(size=(12, 40))
    found = similarity_correlation(torch.tensor(student), torch.tensor(teacher))
    assert float(found) == pytest.approx(by_hand(student, teacher), abs=1e-8)


def test_a_students_range_does_not_matter():
    """Similarities between 0.7 and 1 that follow the teacher's are as good as the teacher's own."""
    teacher = torch.nn.functional.normalize(torch.randn(12, 40, generator=torch.Generator().manual_seed(0)), dim=-1)
    shifted = torch.cat([teacher, torch.full((12, 1), 2.0)], dim=1)
    assert float(similarity_correlation(shifted, teacher)) == pytest.approx(1, abs=1e-5)


def test_every_prefix_learns_the_teachers_full_width_and_translations_its_sentences(tiny_model):
    """Even if the teacher is as wide as the model; distilling embeddings would truncate the labels to each prefix."""
    model = SentenceTransformer(str(tiny_model), device="cpu").eval()
    sentences, translations = ["two dogs run", "a man walks", "a bird"], ["كلبان يركضان", "رجل يمشي", "طائر"]
    labels = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    entry = DatasetEntry("x", "distill", target="similarities")
    loss = make_loss(model, entry, None, [64, 16], [1.0, 2.0])
    features = [model.preprocess(texts) for texts in (sentences, translations)]
    embeddings = model.encode([*sentences, *translations], batch_size=6)
    teacher = labels.repeat(2, 1).numpy()
    expected = 3 * (1 - by_hand(embeddings, teacher)) + 2 * 3 * (1 - by_hand(embeddings[:, :16], teacher))
    assert loss(features, labels).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (1, 2), (5, 1)])
def test_similarities_that_are_all_the_same_teach_nothing(tiny_model, rows, columns):
    """Such as the only similarity of two texts, with which an epoch may end."""
    model = SentenceTransformer(str(tiny_model), device="cpu").train()
    loss = make_loss(model, DatasetEntry("x", "distill", target="similarities"), None, [64, 16])
    texts = ["two dogs run", "a man walks", "a bird", "a cat sleeps", "they sing"]
    features = [model.preprocess(texts[column : column + rows]) for column in range(columns)]
    value = loss(features, torch.eye(64)[:rows])  # the teacher finds all texts equally unlike
    value.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert value.isfinite() and gradients and all((gradient == 0).all() for gradient in gradients)


def run(warm, tmp_path, entry: dict):
    path = "sentence-transformers/parallel-sentences-tatoeba"
    config = {"model_name": "tiny/sentence-bert", "datasets": {"taught": {"path": path, "name": "en-ar", **entry}}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return warm(
        "training/hybrid_training.py", "--config", tmp_path / "config.json", "--max_steps", "2",
        "--per_device_train_batch_size", "8", "--dev_data", "none", "--output_dir", tmp_path / "run",
    )  # fmt: skip


def test_a_teacher_of_another_width_teaches_similarities(warm, hub, tmp_path):
    """It cannot teach embeddings: distilroberta-base is 768 wide, the model 64."""
    done = run(warm, tmp_path, {"loss": "distill", "teacher": "distilroberta-base", "target": "similarities"})
    assert done.code == 0, done.err
    done = run(warm, tmp_path, {"loss": "mnrl", "target": "similarities"})
    assert done.code == 2 and "'target' is for distill" in done.err
