"""Similarities as the target of distillation: the value by hand, at every prefix the teacher's full width."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sentence_transformers import SentenceTransformer

from training.utils.losses import make_loss
from training.utils.options import DatasetEntry
from training.utils.similarity_distillation import similarity_divergence


def by_hand(student: np.ndarray, teacher: np.ndarray, scale: float) -> float:
    """Mean over the texts of the divergence between the distributions over the other texts."""

    def rows(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines = scale * unit @ unit.T
        return [log_softmax(np.delete(row, i)) for i, row in enumerate(cosines)]

    return float(np.mean([(np.exp(t) * (t - s)).sum() for s, t in zip(rows(student), rows(teacher), strict=True)]))


@pytest.mark.parametrize("scale", [5.0, 20.0])
def test_the_divergence_is_the_one_by_hand(scale):
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(12, 16)), draw.normal(size=(12, 40))
    found = similarity_divergence(torch.tensor(student), torch.tensor(teacher), scale)
    assert float(found) == pytest.approx(by_hand(student, teacher, scale), abs=1e-8)
    assert float(similarity_divergence(torch.tensor(teacher), torch.tensor(teacher), scale)) == pytest.approx(
        0, abs=1e-12
    )


def test_every_prefix_learns_the_teachers_full_width_and_translations_its_sentences(tiny_model):
    """Also where the teacher is as wide as the model, whose labels distill of embeddings cuts to each prefix."""
    model = SentenceTransformer(str(tiny_model), device="cpu").eval()
    sentences, translations = ["two dogs run", "a man walks", "a bird"], ["كلبان يركضان", "رجل يمشي", "طائر"]
    labels = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    entry = DatasetEntry("x", "distill", target="similarities")
    loss = make_loss(model, entry, None, [64, 16], [1.0, 2.0])
    features = [model.preprocess(texts) for texts in (sentences, translations)]
    embeddings = model.encode([*sentences, *translations], batch_size=6)
    teacher = labels.repeat(2, 1).numpy()
    expected = by_hand(embeddings, teacher, 20) + 2 * by_hand(embeddings[:, :16], teacher, 20)
    assert loss(features, labels).item() == pytest.approx(expected, rel=1e-4)


def run(warm, tmp_path, entry: dict):
    path = "sentence-transformers/parallel-sentences-tatoeba"
    config = {"model_name": "tiny/sentence-bert", "datasets": {"taught": {"path": path, "name": "en-ar", **entry}}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return warm(
        "training/hybrid_training.py", "--config", tmp_path / "config.json", "--max_steps", "2",
        "--per_device_train_batch_size", "8", "--dev_data", "none", "--output_dir", tmp_path / "run",
    )  # fmt: skip


def test_a_teacher_of_another_width_teaches_similarities(warm, hub, tmp_path):
    """Not embeddings: distilroberta-base is 768 wide, and the model 64."""
    done = run(warm, tmp_path, {"loss": "distill", "teacher": "distilroberta-base", "target": "similarities"})
    assert done.code == 0, done.err
    done = run(warm, tmp_path, {"loss": "distill", "teacher": "distilroberta-base", "scale": 30})
    assert done.code == 2 and "only where its 'target' is similarities" in done.err
