"""On a GPU, values and gradients are those of the CPU: packing, attention kernels, losses, GradCache, training and evaluation."""

from __future__ import annotations

import logging

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as st

from common.packing import efficient_attention, flash_attention, pack, packed_attention
from tests.helpers import finished, read_summary, triplets, write
from tests.loss_cases import CASES, DIMS, Embedded, classes, columns, gradients
from tests.packed_models import (
    ARCHITECTURES,
    FALLS_BACK,
    TEXTS,
    assert_same_gradients,
    builder,
    loss_and_gradients,
)
from training.utils.matryoshka_loss import MatryoshkaLoss
from training.utils.model_utils import choose_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

NLI, STS = "training/matryoshka_nli.py", "evaluation/evaluate_sts.py"
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return builder(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def full_float32():
    """Products of float32 matrices without TF32, as on a CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_values_and_gradients_are_those_of_the_padded_batch_on_a_cpu(build, name, caplog):
    expected, expected_gradients = loss_and_gradients(build(name), st.MatryoshkaLoss)
    with caplog.at_level(logging.INFO, "common.packing"):
        packed = pack(build(name).to("cuda"))
    assert ("cannot be packed" in caplog.text) == (name in FALLS_BACK)
    value, packed_gradients = loss_and_gradients(packed, MatryoshkaLoss)
    assert value == pytest.approx(expected, rel=1e-4)
    assert_same_gradients(expected_gradients, packed_gradients)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_are_those_of_the_cpu(build, name):
    expected = build(name).encode(TEXTS)
    assert pack(build(name).to("cuda")).encode(TEXTS) == pytest.approx(expected, abs=1e-4, rel=1e-3)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["Bert", "ModernBert", "Qwen3", "EmbeddingGemma"])
def test_training_in_half_precision_has_nearly_the_gradients_of_float32(build, name, dtype):
    expected, in_float32 = loss_and_gradients(build(name), st.MatryoshkaLoss)
    value, in_half = loss_and_gradients(pack(build(name).to("cuda"), train_dtype=dtype), MatryoshkaLoss)
    assert value != expected and value == pytest.approx(expected, rel=0.02)
    first, second = (torch.cat([one[key].flatten() for key in in_float32]) for one in (in_float32, in_half))
    assert torch.cosine_similarity(first, second, dim=0) > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 4])
def test_the_attention_kernel_gives_what_the_cpu_gives(window, causal, key_heads, dtype):
    groups, generator = [(3, 2), (2, 5), (1, 70)], torch.Generator().manual_seed(0)
    tokens = sum(rows * length for rows, length in groups)
    lengths = torch.tensor([length for rows, length in groups for _ in range(rows)])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    layer = torch.nn.Module()
    layer.is_causal = causal
    states = [torch.randn(1, heads, tokens, 32, generator=generator) for heads in (4, key_heads, key_heads)]
    weights = torch.randn(1, tokens, 4, 32, generator=generator)

    def run(device: str, kind: torch.dtype) -> list[torch.Tensor]:
        inputs = [state.to(device, kind).detach().requires_grad_() for state in states]
        output, _ = packed_attention(
            layer, *inputs, None, row_groups=groups, row_offsets=offsets.to(device), sliding_window=window
        )
        (output.float() * weights.to(device)).sum().backward()
        return [tensor.detach().float().cpu() for tensor in (output, *(state.grad for state in inputs))]

    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for actual, expected in zip(run("cuda", dtype), run("cpu", torch.float32), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("kernel", "dtype"), [(efficient_attention, torch.float32), (flash_attention, torch.bfloat16)])
def test_dropout_in_the_attention_kernel_keeps_the_mean(kernel, dtype):
    offsets = torch.arange(513, device="cuda", dtype=torch.int32) * 16
    query, key = (torch.randn(512 * 16, 4, 32, device="cuda", dtype=dtype) for _ in range(2))
    output = kernel(query, key, torch.ones_like(key), offsets, 16, None, 0.2).float()
    assert 0.05 < output.std() < 1 and float(output.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("weight", [0.0, 0.5], ids=["", "self-distillation"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_of_the_losses(case, weight):
    on_gpu, on_cpu = (gradients(device, *case, weight) for device in ("cuda", "cpu"))
    for actual, expected in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_gradients_of_a_classification_loss():
    model = Embedded()
    model.device = torch.device("cpu")
    heads = {dim: st.SoftmaxLoss(model, dim, 3) for dim in DIMS}
    results = []
    for device in ("cpu", "cuda"):
        loss = MatryoshkaLoss(model, heads, DIMS).to(device)
        loss.zero_grad()
        loss(columns(device, 2), classes(device)).backward()
        results.append([parameter.grad.cpu().clone() for head in heads.values() for parameter in head.parameters()])
    assert results[0]
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_gradients_with_gradcache_are_those_of_the_whole_batch_on_a_cpu(build):
    def cached(model, _, dims):
        return MatryoshkaLoss(model, st.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), dims)

    expected, expected_gradients = loss_and_gradients(build("Bert"), st.MatryoshkaLoss)
    value, cached_gradients = loss_and_gradients(pack(build("Bert").to("cuda")), cached)
    assert value == pytest.approx(expected, rel=1e-4)
    assert_same_gradients(expected_gradients, cached_gradients)


def test_the_precision_is_chosen_for_the_gpu(build):
    model = build("Bert").to("cuda")
    best = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    assert choose_precision("auto", model) == best
    assert choose_precision("fp16", model) == torch.float16
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_training_and_evaluation_from_the_command_line(precision, cli, tiny_model, groups, tmp_path):
    data = write(tmp_path / "train.jsonl", triplets(groups, "en")[:64])
    flags = ("--train_data", data, "--matryoshka_dims", "64", "32", "16", "--per_device_train_batch_size", "16")
    done = cli(NLI, tiny_model, *flags, "--precision", precision, "--output_dir", tmp_path / "run")
    final = finished(done, tmp_path / "run")
    assert f"training on cuda in {'bf16' if precision == 'auto' else precision}" in done.err
    scores = []
    for device, env in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        out = tmp_path / device
        done = cli(STS, "--model_name", final, "--task", "STS17", "--output_dir", out, env=env)
        assert done.code == 0, done.err
        scores.append(read_summary(out)["score"].tolist())
    assert len(scores[0]) > 1 and scores[0] == pytest.approx(scores[1], abs=1e-3)
