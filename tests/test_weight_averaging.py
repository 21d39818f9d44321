"""The final model as the average of the weights before and after training."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.helpers import weights_of
from training.utils.weight_averaging import average_weights, copy_weights

FLAGS = ("--max_steps", "2", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2", "--dev_data", "none")


def test_the_average_is_taken_of_every_parameter(tiny_model):
    model = SentenceTransformer(str(tiny_model), device="cpu")
    start = copy_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average_weights(model, start, 0.25)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, start[name] + 0.75, atol=1e-6)


def test_the_key_averages_the_final_model(warm, hub, tmp_path):
    runs = {}
    for share in ("0", "0.5"):
        folder = tmp_path / share
        script = "training/matryoshka_nli.py"
        done = warm(script, "tiny/sentence-bert", "--start_share", share, *FLAGS, "--output_dir", folder)
        assert done.code == 0, done.err
        runs[share] = weights_of(folder / "final")
    before = weights_of(hub.root / "models/tiny/sentence-bert")
    moved = 0.0
    for name, trained in runs["0"].items():
        assert torch.allclose(runs["0.5"][name], (before[name] + trained) / 2, atol=1e-6)
        moved = max(moved, (trained - before[name]).abs().max().item())
    assert moved > 1e-3


@pytest.mark.parametrize(
    ("model", "share", "message"),
    [("tiny/sentence-bert", "1", "must be below 1"), ("static", "0.5", "needs a pretrained model")],
)
def test_a_share_that_makes_no_sense_is_refused(fails, model, share, message):
    fails(2, message, "training/matryoshka_nli.py", model, "--start_share", share)
