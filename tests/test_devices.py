"""What would run on a GPU, traced without one: tensors are on the right device, and no step waits for a value.

On the meta device PyTorch computes shapes and types but no values: an operation on tensors of two devices fails, and so does reading
a value, which would make a GPU wait. A packed model is traced on the CPU instead, where every operation that would wait is refused.
"""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as st
from torch.utils._python_dispatch import TorchDispatchMode

from common.packing import HOST_MASK, efficient_attention, flash_attention, pack
from tests.loss_cases import CASES, DIMS, ROWS, Embedded, classes, columns, gradients
from tests.packed_models import TEXTS, builder
from training.utils.matryoshka_loss import MatryoshkaLoss
from training.utils.sampling import Collator

# operations whose result has a size, or is a number, that the CPU must read from the GPU
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave.Tensor", "equal.default")


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


class NoWaiting(TorchDispatchMode):
    """Refuses operations for which the CPU would have to wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        indices = args[1] if name == "aten.index.Tensor" else ()
        if any(wait in name for wait in WAITS) or any(i is not None and i.dtype == torch.bool for i in indices):
            raise AssertionError(f"{name} would wait for the GPU")
        return function(*args, **(kwargs or {}))


def collated(model) -> list[dict]:
    """Return the features of each column of a batch, as the trainer passes them to the loss."""
    names = ("anchor", "positive", "negative")
    rows = [
        dict(zip(names, texts, strict=True))
        for texts in zip(TEXTS[:3], TEXTS[1:4], TEXTS[-1:] + TEXTS[4:6], strict=True)
    ]
    batch = Collator(preprocess_fn=model.preprocess)(rows)
    return [
        {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}
        for name in names
    ]


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "ModernBert", "Qwen3"])
def test_a_packed_step_never_waits_for_the_gpu(name, pooling, tmp_path):
    model = pack(builder(tmp_path)(name, pooling=pooling))
    model.train()
    loss = MatryoshkaLoss(model, st.MultipleNegativesRankingLoss(model), DIMS)
    features = collated(model)
    assert all(column[HOST_MASK].shape == column["attention_mask"].shape for column in features)
    with NoWaiting():
        value = loss(features, None)
        value.backward()
    value = value.item()
    for column in features:
        del column[HOST_MASK]
    assert value == float(loss(features, None))
    with NoWaiting(), pytest.raises(AssertionError, match="would wait"):
        float(loss(features, None))


def test_a_mask_of_other_rows_is_not_used(tmp_path):
    """GradCache takes some rows of the tensors of a batch, but leaves the mask on the CPU as it is."""
    model = pack(builder(tmp_path)("Bert"))
    columns_of_batch = collated(model)
    part = {key: value[:2] if key != HOST_MASK else value for key, value in columns_of_batch[0].items()}
    of_batch, of_part = (model(dict(batch))["sentence_embedding"] for batch in (columns_of_batch[0], part))
    torch.testing.assert_close(of_part, of_batch[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [flash_attention, efficient_attention])
@pytest.mark.parametrize("causal", [False, True])
def test_pytorch_has_the_attention_kernels_and_their_gradients(kernel, causal):
    dtype = torch.bfloat16 if kernel is flash_attention else torch.float32
    states = [torch.empty(9, 4, 32, dtype=dtype, device="meta", requires_grad=True) for _ in range(3)]
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    output = kernel(*states, offsets, 5, None, 0.1, causal)
    assert output.shape == (9, 4, 32) and output.dtype == dtype
    output.sum().backward()
    assert all(state.grad.shape == state.shape for state in states)
