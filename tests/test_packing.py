"""Packed batches are equivalent to padded ones: values, gradients, embeddings, saved files."""

from __future__ import annotations

import filecmp
import logging
import pickle

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    StaticEmbedding,
    WeightedLayerPooling,
)

from common import packing
from common.errors import RunError
from common.packing import pack, packed_attention
from tests.helpers import tokens_seen
from tests.packed_models import (
    ARCHITECTURES,
    FALLS_BACK,
    TEXTS,
    assert_same_gradients,
    builder,
    loss_and_gradients,
    make_tokenizer,
)
from training.utils.matryoshka_loss import MatryoshkaLoss


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return builder(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_gradients_are_those_of_the_padded_batch(build, name, caplog):
    plain = build(name)
    with caplog.at_level(logging.INFO, "common.packing"):
        packed = pack(build(name))
    assert ("cannot be packed" in caplog.text) == (name in FALLS_BACK)
    expected, gradients = loss_and_gradients(plain, st.MatryoshkaLoss)
    value, found = loss_and_gradients(packed, MatryoshkaLoss)
    assert value == pytest.approx(expected, rel=1e-5)
    assert_same_gradients(gradients, found)
    assert loss_and_gradients(packed, st.MatryoshkaLoss)[0] == pytest.approx(expected, rel=1e-5)


def test_wrong_attention_in_the_precision_of_training_is_noticed(build, monkeypatch):
    """On a GPU, half precision has its own attention kernel, so it is tried before training."""
    monkeypatch.setattr(packing, "TRIAL", packing.TRIAL[:3])  # many processors are slow in bfloat16
    model = pack(build("Qwen3"), train_dtype=torch.bfloat16).eval()
    alone = torch.cat([packing._embed(model, [text]) for text in packing.TRIAL])
    assert packing._same_in_training_precision(alone, model) and not model[0].training
    right = packing.packed_attention

    def wrong(module, query, key, value, *args, **kwargs):
        """A kernel that is wrong in half precision alone."""
        output, weights = right(module, query, key, value, *args, **kwargs)
        return (-9 * output if output.dtype == torch.bfloat16 else output), weights

    transformers.AttentionInterface.register(packing.ATTENTION, wrong)
    try:
        assert torch.equal(alone, torch.cat([packing._embed(model, [text]) for text in packing.TRIAL]))
        assert not packing._same_in_training_precision(alone, model)
    finally:
        packing.register()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encode_gives_the_same(build, name):
    plain, packed = build(name), pack(build(name))
    for texts in (TEXTS * 6, TEXTS[:1], TEXTS[::-1]):
        expected = plain.encode(texts, batch_size=5)
        assert packed.encode(texts, batch_size=5) == pytest.approx(expected, abs=2e-5, rel=1e-4)
    one_by_one = torch.stack([packed.encode([text], convert_to_tensor=True)[0] for text in TEXTS])
    torch.testing.assert_close(one_by_one, packed.encode(TEXTS, convert_to_tensor=True), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in FALLS_BACK])
def test_only_real_tokens_are_worked_on(build, name):
    plain, packed = build(name), pack(build(name))
    mask = plain.preprocess(TEXTS)["attention_mask"]
    assert tokens_seen(packed, TEXTS) == int(mask.sum())
    assert tokens_seen(plain, TEXTS) == mask.numel()


@pytest.mark.parametrize("pooling", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("name", ["Bert", "MPNet", "Qwen3"])
def test_every_way_of_pooling(build, name, pooling):
    plain, packed = build(name, pooling), pack(build(name, pooling))
    assert packed.encode(TEXTS) == pytest.approx(plain.encode(TEXTS), abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["Bert", "MPNet"])
def test_a_weighted_mean_of_the_layers(build, name):
    plain, packed = build(name), build(name)
    for model in (plain, packed):
        model[0].auto_model.config.output_hidden_states = True
        weights = torch.nn.Parameter(torch.tensor([3.0, 1.0, 0.5]))
        model.insert(1, WeightedLayerPooling(32, num_hidden_layers=2, layer_start=0, layer_weights=weights))
    expected = plain.encode(TEXTS)
    assert abs(expected - build(name).encode(TEXTS)).max() > 1e-3  # the layers matter
    assert pack(packed).encode(TEXTS) == pytest.approx(expected, abs=2e-5, rel=1e-4)
    value, gradients = loss_and_gradients(packed, MatryoshkaLoss)
    wanted, wanted_gradients = loss_and_gradients(plain, st.MatryoshkaLoss)
    assert value == pytest.approx(wanted, rel=1e-5) and "1.layer_weights" in gradients
    assert_same_gradients(wanted_gradients, gradients)


def test_modules_that_see_neighbouring_texts_get_padded_batches(build, caplog):
    """A convolution reaches beyond a text's last token, so an embedding depends on the padding."""
    plain, packed = build("Bert"), build("Bert")
    torch.manual_seed(0)
    convolution = CNN(32, out_channels=32, kernel_sizes=[3])
    for model in (plain, packed):
        model.insert(1, convolution)
    with caplog.at_level(logging.INFO, "common.packing"):
        pack(packed)
    assert "processing padded batches" in caplog.text
    assert packed.encode(TEXTS) == pytest.approx(plain.encode(TEXTS), abs=1e-6)
    assert pickle.loads(pickle.dumps(packed)).encode(TEXTS) == pytest.approx(plain.encode(TEXTS), abs=1e-6)


@pytest.mark.parametrize("name", ["Bert", "Qwen3", "GPT2", "Gemma3Text", "Gemma2"])
def test_padding_on_the_left(build, name):
    """The embeddings are those of the texts alone, even where a padded batch would count padding in the positions."""
    packed = pack(build(name, "lasttoken"))
    packed.tokenizer.padding_side = "left"
    assert packed.encode(TEXTS) == pytest.approx(build(name, "lasttoken").encode(TEXTS), abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["Bert", "Qwen3", "EmbeddingGemma"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(build, name, dtype, caplog):
    plain, packed = (build(name, model_kwargs={"dtype": dtype}) for _ in range(2))
    with caplog.at_level(logging.INFO, "common.packing"):
        pack(packed)
    assert "cannot be packed" not in caplog.text
    assert next(packed.parameters()).dtype == dtype
    found, expected = (model.encode(TEXTS, convert_to_tensor=True).float() for model in (packed, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_the_padding_token_may_end_texts_too(build):
    """A decoder that is padded with its end-of-text token, which the tokenizer also appends to each text."""
    plain, packed = build("Qwen3", "lasttoken"), pack(build("Qwen3", "lasttoken"))
    for model in (plain, packed):
        model.tokenizer.pad_token, model.tokenizer.eos_token = "[SEP]", "[SEP]"
    found, expected = packed.encode(TEXTS), plain.encode(TEXTS)
    assert found == pytest.approx(expected, abs=2e-5, rel=1e-4)
    assert found == pytest.approx(build("Qwen3", "lasttoken").encode(TEXTS), abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["Bert", "Qwen2", "Gemma2"])
def test_columns_padded_on_the_left_train_the_same(build, name, monkeypatch):
    """The columns of a batch are of different widths, and run as one."""
    monkeypatch.setattr("common.packing.CHUNK_ROWS", 2)
    model = build(name, "lasttoken")
    right = loss_and_gradients(pack(model), MatryoshkaLoss)
    model.tokenizer.padding_side = "left"
    left = loss_and_gradients(model, MatryoshkaLoss)
    assert left[0] == pytest.approx(right[0], rel=1e-4)
    assert_same_gradients(left[1], right[1])


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(build, include_prompt):
    plain, packed = build("Bert"), pack(build("Bert"))
    for model in (plain, packed):
        model.set_pooling_include_prompt(include_prompt)
    found, expected = (model.encode(TEXTS, prompt="two dogs ") for model in (packed, plain))
    assert found == pytest.approx(expected, abs=2e-5, rel=1e-4)


def test_what_is_saved_is_the_same(build, tmp_path):
    folders = [tmp_path / "plain", tmp_path / "packed"]
    for folder, model in zip(folders, (build("Bert"), pack(build("Bert"))), strict=True):
        model.encode(TEXTS)  # makes the library save the tokenizer with padding enabled
        model.save_pretrained(str(folder))
    names = sorted(p.relative_to(folders[0]).as_posix() for p in folders[0].rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(folders[1]).as_posix() for p in folders[1].rglob("*") if p.is_file())
    for name in names:
        if name != "README.md":
            assert filecmp.cmp(folders[0] / name, folders[1] / name, shallow=False), name
    again = SentenceTransformer(str(folders[1]), device="cpu")
    assert again[0].auto_model.config._attn_implementation != "packed_sdpa"
    assert again.encode(TEXTS) == pytest.approx(build("Bert").encode(TEXTS), abs=2e-5, rel=1e-4)


def test_a_model_that_cannot_embed_its_own_tokens_is_refused(build):
    model = build("Bert")
    model[0].auto_model.set_input_embeddings(torch.nn.Embedding(4, 32))
    with pytest.raises(RunError, match="the model cannot embed a text: IndexError"):
        pack(model)


def test_packing_twice_changes_nothing_more(build):
    packed = pack(build("Bert"))
    expected = packed.encode(TEXTS)
    assert pack(packed) is packed
    assert packed.encode(TEXTS) == pytest.approx(expected, abs=1e-7)


def test_a_static_model_is_left_as_it_is(tokenizer):
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu")
    expected = model.encode(TEXTS[:6])
    assert pack(model).encode(TEXTS[:6]) == pytest.approx(expected)


def test_training_in_bfloat16_leaves_weights_and_encoding_alone(build):
    plain, packed = build("Bert"), pack(build("Bert"), train_dtype=torch.bfloat16)
    value, gradients = loss_and_gradients(packed, MatryoshkaLoss)
    expected, _ = loss_and_gradients(plain, st.MatryoshkaLoss)
    assert value != expected and value == pytest.approx(expected, rel=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    packed.eval()
    assert packed.encode(TEXTS) == pytest.approx(plain.eval().encode(TEXTS), abs=2e-5, rel=1e-4)


def test_dropout_is_at_work_while_training(build):
    model = pack(build("Bert"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    torch.manual_seed(0)
    first, second = (loss_and_gradients(model, MatryoshkaLoss)[0] for _ in range(2))
    assert first != second
    model.eval()
    assert model.encode(TEXTS) == pytest.approx(model.encode(TEXTS), abs=1e-7)


def test_the_models_of_the_suite_can_be_packed(hub, caplog):
    root = hub.root / "models"
    for name in ("distilroberta-base", "aubmindlab/bert-base-arabertv02", "tiny/sentence-bert"):
        model = SentenceTransformer(str(root / name), device="cpu")
        expected = model.encode(TEXTS)
        with caplog.at_level(logging.INFO, "common.packing"):
            assert pack(model).encode(TEXTS) == pytest.approx(expected, abs=2e-5, rel=1e-4)
    assert "cannot be packed" not in caplog.text


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_against_its_definition(causal, window):
    """Each row of a packed sequence against a softmax written out, with the mask built token by token."""
    torch.manual_seed(0)
    groups, heads, head_dim = [(2, 2), (1, 7)], 2, 4
    query, key, value = (torch.randn(1, heads, 11, head_dim) for _ in range(3))
    found = packed_attention(
        None, query, key, value, None, scaling=0.5, row_groups=groups, is_causal=causal, sliding_window=window
    )[0]
    start = 0
    for length in (2, 2, 7):
        row = slice(start, start + length)
        for head in range(heads):
            for i in range(length):
                seen = [j for j in range(length) if (j <= i or not causal) and (window is None or abs(i - j) < window)]
                scores = 0.5 * key[0, head, row][seen] @ query[0, head, start + i]
                expected = torch.softmax(scores, 0) @ value[0, head, row][seen]
                torch.testing.assert_close(found[0, start + i, head], expected, rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_attention_refuses_what_it_does_not_compute(option):
    states = [torch.randn(1, 2, 3, 4) for _ in range(3)]
    with pytest.raises(ValueError, match=option):
        packed_attention(None, *states, None, row_groups=[(1, 3)], **{option: torch.ones(1)})
