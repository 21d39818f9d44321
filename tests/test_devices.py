"""The losses on a device that is not the CPU: every tensor they create is on that device, and they never wait for a value.

No GPU is needed. On the meta device PyTorch computes shapes and types but no values: an operation on tensors of two devices fails,
and so does reading a value, which would make a GPU wait. The packed attention of a GPU cannot be traced in this way.
"""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as st

from tests.loss_cases import CASES, DIMS, ROWS, Embedded, classes, columns, gradients
from training.utils.matryoshka_loss import MatryoshkaLoss


@pytest.mark.parametrize("weight", [0.0, 0.5], ids=["", "self-distillation"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_loss_stays_on_its_device(case, weight):
    on_device = gradients("meta", *case, weight)
    on_cpu = gradients("cpu", *case, weight)
    assert [g.device.type for g in on_device] == ["meta"] * case[2]
    assert [(g.shape, g.dtype) for g in on_device] == [(g.shape, g.dtype) for g in on_cpu]
    assert all(g.abs().sum() > 0 for g in on_cpu)


def test_the_heads_of_a_classification_loss_stay_on_their_device():
    heads = {dim: st.SoftmaxLoss(Embedded(), dim, 3).to("meta") for dim in DIMS}
    loss = MatryoshkaLoss(Embedded(), heads, DIMS)
    batch = columns("meta", 2)
    loss(batch, classes("meta")).backward()
    parameters = [parameter for head in heads.values() for parameter in head.parameters()]
    assert parameters and all(p.grad is not None and p.grad.device.type == "meta" for p in parameters)


def test_a_tensor_on_the_wrong_device_is_noticed():
    def misplaced(device: str) -> torch.Tensor:
        return torch.linspace(0, 1, ROWS)  # as if a loss had forgotten the device

    with pytest.raises(RuntimeError, match="device"):
        gradients("meta", st.CosineSimilarityLoss, {}, 2, misplaced, 0.0)
