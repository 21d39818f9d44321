"""Packed batches give what padded ones give: values, gradients, embeddings, saved files."""

from __future__ import annotations

import filecmp
import logging

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from common.packing import jagged_attention, pack, packed_attention
from tests.helpers import tokens_seen
from training.utils.matryoshka_loss import MatryoshkaLoss

TEXTS = [
    "a man walks",
    "the quick brown fox jumps over the lazy dog near the river bank today",
    "no",
    "two dogs run fast in the wide park",
    "hello there my friend of old",
    "a man walks his dog",
    "",
    " ".join(["word"] * 100),
]
COLUMNS = (TEXTS[:5], TEXTS[1:6], TEXTS[3:])
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "DistilBert": DISTILBERT,
    "Electra": {**SIZES, "embedding_size": 32},
    "ModernBert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 4},
    "MPNet": SIZES,
    "Qwen2": {**SIZES, "num_key_value_heads": 2},
}
FALLS_BACK = ("MPNet", "Qwen2")  # relative positions; causal attention


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=list(specials.values())))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **specials)


@pytest.fixture(scope="module")
def build(tmp_path_factory, tokenizer):
    """``build("Bert", pooling="cls")``: a model with random weights, the same ones each time, and no dropout."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str, pooling: str = "mean", **tokenizer_options) -> SentenceTransformer:
        folder = root / name
        if not folder.exists():
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **ARCHITECTURES[name])
            transformers.AutoModel.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        transformer = Transformer(str(folder), **tokenizer_options)
        pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
        model = SentenceTransformer(modules=[transformer, pool], device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for attribute, value in list(vars(module).items()):
                if "dropout" in attribute and isinstance(value, float):
                    setattr(module, attribute, 0.0)
        return model

    return make


def loss_and_gradients(model: SentenceTransformer, loss: type, columns=COLUMNS):
    model.train()
    model.zero_grad()
    features = [model.preprocess(list(texts)) for texts in columns]
    value = loss(model, st.MultipleNegativesRankingLoss(model), [32, 16, 8])(features, None)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys() and first
    largest = max(float(gradient.abs().max()) for gradient in first.values())
    assert largest > 1e-3
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


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
@pytest.mark.parametrize("name", ["Bert", "MPNet"])
def test_every_way_of_pooling(build, name, pooling):
    plain, packed = build(name, pooling), pack(build(name, pooling))
    assert packed.encode(TEXTS) == pytest.approx(plain.encode(TEXTS), abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["Bert", "MPNet", "Qwen2"])
def test_padding_on_the_left(build, name):
    plain, packed = build(name, "lasttoken"), pack(build(name, "lasttoken"))
    for model in (plain, packed):
        model.tokenizer.padding_side = "left"
    right = build(name, "lasttoken").encode(TEXTS)
    if name != "Bert":  # whose positions count the padding, unless it is packed
        assert packed.encode(TEXTS) == pytest.approx(plain.encode(TEXTS), abs=2e-5, rel=1e-4)
    else:
        assert packed.encode(TEXTS) == pytest.approx(right, abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["Bert", "Qwen2"])
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
        model.encode(TEXTS)  # after which the library saves the tokenizer with its padding on
        model.save_pretrained(str(folder))
    names = sorted(p.relative_to(folders[0]).as_posix() for p in folders[0].rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(folders[1]).as_posix() for p in folders[1].rglob("*") if p.is_file())
    for name in names:
        if name != "README.md":
            assert filecmp.cmp(folders[0] / name, folders[1] / name, shallow=False), name
    again = SentenceTransformer(str(folders[1]), device="cpu")
    assert again[0].auto_model.config._attn_implementation != "packed_sdpa"
    assert again.encode(TEXTS) == pytest.approx(build("Bert").encode(TEXTS), abs=2e-5, rel=1e-4)


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


def test_the_kernel_for_gpus_gives_what_the_groups_give():
    """Values and gradients of the jagged form, which runs on a GPU only when training, tried on the CPU."""
    torch.manual_seed(0)
    groups, heads, head_dim = [(2, 3), (1, 5), (3, 9)], 4, 8
    lengths = torch.tensor([length for rows, length in groups for _ in range(rows)])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    states = [torch.randn(1, heads, int(lengths.sum()), head_dim, requires_grad=True) for _ in range(3)]
    weights = torch.randn(1, int(lengths.sum()), heads, head_dim)
    found = []
    for output in (
        packed_attention(None, *states, None, scaling=0.3, row_groups=groups)[0],
        jagged_attention(*states, groups, offsets, 0.3, 0.0),
    ):
        found.append([output.detach(), *torch.autograd.grad((output * weights).sum(), states)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
