"""The Matryoshka loss equals the library's where the library has one, and otherwise an independent computation."""

from __future__ import annotations

import re

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as st
from torch.nn import functional as F

from common.keys import keys_of
from common.packing import pack
from tests.helpers import ROOT
from training.utils.losses import BUILDERS, Guide, loss_parameters, make_loss
from training.utils.matryoshka_loss import MatryoshkaLoss, merge, self_distillation
from training.utils.options import LOSSES as TABLE
from training.utils.options import DatasetEntry, HybridConfig, losses_with

DIMS, WEIGHTS = [64, 32, 8], [1.0, 0.5, 2.0]
COLUMNS = [
    ["a man walks", "the fox jumps over the lazy dog near the bank", "no", "two dogs run"],
    ["someone walks", "a fox", "not at all, never, by no means", "dogs are running"],
    ["nobody walks", "a cat sleeps in the sun all day long", "yes", "two dogs sleep"],
]
SCORES = torch.tensor([0.9, 0.1, 0.5, 0.7])
LOSSES = {
    "mnrl": (lambda model: st.MultipleNegativesRankingLoss(model, scale=7.0), 3, None),
    "mnrl of pairs": (st.MultipleNegativesRankingLoss, 2, None),
    "cosent": (lambda model: st.CoSENTLoss(model, scale=7.0), 2, SCORES),
    "angle": (lambda model: st.AnglELoss(model, scale=7.0), 2, SCORES),
    "cosine": (st.CosineSimilarityLoss, 2, SCORES),
    "gradient cache": (lambda model: st.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), 3, None),
}


@pytest.fixture(scope="module")
def model(tiny_model) -> SentenceTransformer:
    """Without dropout, so that two passes can be compared."""
    model = SentenceTransformer(str(tiny_model), device="cpu").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


def value_and_gradients(model, loss, columns, labels):
    model.zero_grad()
    value = loss([model.preprocess(list(texts)) for texts in columns], labels)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(first, second) -> None:
    assert second[0] == pytest.approx(first[0], rel=1e-5)
    assert first[1].keys() == second[1].keys() and first[1]
    largest = max(float(g.abs().max()) for g in first[1].values())
    assert largest > 1e-4
    for name, gradient in first[1].items():
        torch.testing.assert_close(second[1][name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_the_table_the_builders_and_the_documentation_name_the_same_losses():
    assert list(BUILDERS) == list(TABLE)
    assert all(builder.__doc__ for builder in BUILDERS.values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = readme.partition("| loss | data and its columns |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])] == list(TABLE)


def test_the_help_of_a_key_names_the_losses_that_take_it():
    keys = keys_of(DatasetEntry)
    for name in {name for loss in TABLE.values() for name in loss.keys}:
        words = re.findall(r"\w+", keys[name][1].help)
        assert [loss for loss in TABLE if loss in words] == losses_with(name)
    words = re.findall(r"\w+", keys_of(HybridConfig)["mini_batch_size"][1].help)
    assert [loss for loss in TABLE if loss in words] == [name for name, loss in TABLE.items() if loss.contrastive]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal weights", "weights"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_the_librarys(model, name, weights):
    make, columns, labels = LOSSES[name]
    ours, theirs = (cls(model, make(model), DIMS, weights) for cls in (MatryoshkaLoss, st.MatryoshkaLoss))
    expected = value_and_gradients(model, theirs, COLUMNS[:columns], labels)
    assert_same(expected, value_and_gradients(model, ours, COLUMNS[:columns], labels))
    if name != "gradient cache":
        assert sum(value.item() for value in ours.components.values()) == pytest.approx(expected[0], rel=1e-5)
        assert list(ours.components) == DIMS


def test_dimensions_in_any_order_keep_their_weights(model):
    inner = st.MultipleNegativesRankingLoss(model)
    first = value_and_gradients(model, MatryoshkaLoss(model, inner, [64, 8], [1, 3]), COLUMNS, None)
    second = value_and_gradients(model, MatryoshkaLoss(model, inner, [8, 64], [3, 1]), COLUMNS, None)
    assert_same(first, second)


def test_one_forward_pass_embeds_all_columns(model):
    calls = []
    handle = model[0].auto_model.embeddings.register_forward_hook(lambda *_: calls.append(1))
    value_and_gradients(model, MatryoshkaLoss(model, st.MultipleNegativesRankingLoss(model), DIMS), COLUMNS, None)
    handle.remove()
    assert len(calls) == 1


def test_the_model_is_itself_again_after_the_loss(model):
    expected = model.eval().encode(COLUMNS[0])
    model.train()
    value_and_gradients(model, MatryoshkaLoss(model, st.MultipleNegativesRankingLoss(model), DIMS), COLUMNS, None)

    class Boom(st.CosineSimilarityLoss):
        def forward(self, *_):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        value_and_gradients(model, MatryoshkaLoss(model, Boom(model), DIMS), COLUMNS[:2], SCORES)
    assert model.eval().encode(COLUMNS[0]) == pytest.approx(expected)
    model.train()


class Classes(dict):
    """Stands in for a data set: make_loss needs only its labels."""


def test_softmax_has_a_head_for_each_dimension(model):
    labels = torch.tensor([0, 2, 1, 2])
    entry = DatasetEntry("x", "softmax")
    torch.manual_seed(3)
    loss = make_loss(model, entry, Classes(label=labels.tolist()), DIMS, WEIGHTS)
    heads = {dim: loss.loss_at(dim).classifier for dim in DIMS}
    assert {dim: tuple(head.weight.shape) for dim, head in heads.items()} == {dim: (3, 3 * dim) for dim in DIMS}
    found = value_and_gradients(model, loss, COLUMNS[:2], labels)
    head_gradients = {dim: head.weight.grad.clone() for dim, head in heads.items()}

    def independent(features, labels):
        u, v = (model(f)["sentence_embedding"] for f in features)
        total = torch.zeros(())
        for dim, weight in zip(DIMS, WEIGHTS, strict=True):
            a, b = (x[:, :dim] / x[:, :dim].norm(dim=1, keepdim=True) for x in (u, v))
            logits = torch.cat([a, b, (a - b).abs()], dim=1) @ heads[dim].weight.T + heads[dim].bias
            total = total - weight * logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()
        return total

    for head in heads.values():
        head.weight.grad = None
    assert_same(value_and_gradients(model, independent, COLUMNS[:2], labels), found)
    for dim, head in heads.items():
        torch.testing.assert_close(head_gradients[dim], head.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def guide(tiny_model) -> SentenceTransformer:
    """Another model with the same tokenizer: it disagrees with the one that is trained."""
    guide = SentenceTransformer(str(tiny_model), device="cpu").eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return guide


@pytest.fixture
def guide_folder(guide, tmp_path) -> str:
    guide.save_pretrained(str(tmp_path / "guide"))
    return str(tmp_path / "guide")


@pytest.mark.parametrize("columns", [2, 3], ids=["pairs", "triplets"])
def test_gist_leaves_out_what_the_guide_finds_more_alike(model, guide, guide_folder, columns):
    """GISTEmbed, by hand: all similarities of anchors, positives and negatives, without those that the guide masks."""

    def independent(features, _):
        ours = [model(dict(column))["sentence_embedding"] for column in features]
        with torch.no_grad():
            guides = [F.normalize(guide(dict(column))["sentence_embedding"], dim=1) for column in features]

        def blocks(
            embeddings,
        ):  # anchors to positives, anchors to anchors, positives to positives, anchors to negatives
            a, p = embeddings[:2]
            return [a @ p.T, a @ a.T, p @ p.T, *(a @ n.T for n in embeddings[2:])]

        told = blocks(guides)
        masks = [block > told[0].diagonal()[:, None] for block in told]
        masks[0].fill_diagonal_(False)
        assert any(mask.any() for mask in masks[1:]) and not all(mask.all() for mask in masks)
        total = torch.zeros(())
        for dim, weight in zip(DIMS, WEIGHTS, strict=True):
            found = blocks([F.normalize(embedding[:, :dim], dim=1) for embedding in ours])
            logits = 7 * torch.cat(
                [block.masked_fill(mask, -torch.inf) for block, mask in zip(found, masks, strict=True)], dim=1
            )
            total = total + weight * F.cross_entropy(logits, torch.arange(4))
        return total

    expected = value_and_gradients(model, independent, COLUMNS[:columns], None)
    entry = DatasetEntry("x", "gist", scale=7.0, guide=guide_folder)
    for mini_batch_size in (None, 2):
        loss = make_loss(model, entry, Classes(), DIMS, WEIGHTS, mini_batch_size)
        assert_same(expected, value_and_gradients(model, loss, COLUMNS[:columns], None))
        assert set(loss.components) == set(DIMS)


@pytest.mark.parametrize("guide_name", [None, "distilroberta-base"], ids=["same tokenizer", "another"])
def test_gist_with_two_negatives_and_a_prompt_on_one(hub, model, guide_folder, guide_name):
    """The columns' features differ, so they cannot be one batch. The guide reads every text, and the prompt changes no value."""
    columns = [*COLUMNS, ["a prompt: no", "a prompt: yes it is so", "a prompt: perhaps", "a prompt: never"]]
    model.tokenizer.pad_token = "[SEP]"  # a padding token whose number is not 0
    loss = make_loss(model, DatasetEntry("x", "gist", guide=guide_name or guide_folder), Classes(), DIMS, WEIGHTS)

    def with_prompt(features, labels):
        return loss([*features[:-1], features[-1] | {"prompt_length": 3}], labels)

    read, preprocess = [], loss.loss.guide.preprocess
    loss.loss.guide.preprocess = lambda texts: read.extend(texts) or preprocess(texts)
    expected = value_and_gradients(model, loss, columns, None)
    assert_same(expected, value_and_gradients(model, with_prompt, columns, None))
    assert {text.replace(" ", "") for text in read} == (
        {text.replace(" ", "") for column in columns for text in column} if guide_name else set()
    )


def count_guide_rows(guide: SentenceTransformer) -> list[int]:
    rows = []
    guide[0].auto_model.embeddings.register_forward_hook(lambda _, inputs, output: rows.append(1))
    return rows


def test_the_guide_embeds_a_batch_once_for_all_dimensions(model, guide_folder):
    loss = make_loss(model, DatasetEntry("x", "gist", guide=guide_folder), Classes(), DIMS, WEIGHTS)
    calls = count_guide_rows(loss.loss.guide.model)
    value_and_gradients(model, loss, COLUMNS, None)
    assert len(calls) == 2  # the anchors; the positives and the negatives
    value_and_gradients(model, loss, [column[::-1] for column in COLUMNS], None)
    assert len(calls) == 4


def test_a_guide_with_another_tokenizer_reads_the_same_texts(hub, model):
    """From the token ids of packed batches, in one go and in small batches alike."""
    packed = pack(SentenceTransformer(str(hub.root / "models/tiny/sentence-bert"), device="cpu")).eval()
    entry = DatasetEntry("x", "gist", guide="distilroberta-base")
    values = []
    for mini_batch_size in (None, 2):
        loss = make_loss(packed, entry, Classes(), [64, 16], None, mini_batch_size)
        guide, read = loss.loss.guide, []
        preprocess = guide.preprocess
        guide.preprocess = lambda texts, read=read, preprocess=preprocess: read.extend(texts) or preprocess(texts)
        values.append(value_and_gradients(packed, loss, COLUMNS, None)[0])
        assert {text.replace(" ", "") for text in read} == {
            text.replace(" ", "") for column in COLUMNS for text in column
        }
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_without_a_guide_the_model_guides_as_it_was_before_training(tiny_model):
    student = SentenceTransformer(str(tiny_model), device="cpu")
    loss = make_loss(student, DatasetEntry("x", "gist"), Classes(), [64, 16])
    before = student.encode(COLUMNS[0])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    loss.train()
    guide = loss.loss.guide
    assert isinstance(guide, Guide)
    found = guide(student.preprocess(COLUMNS[0]))["sentence_embedding"]
    assert found.numpy() == pytest.approx(before, abs=1e-5)
    assert not torch.allclose(torch.tensor(student.encode(COLUMNS[0])), found, atol=1e-3)
    assert loss_parameters(loss, student) == {}
    assert {id(p) for p in loss.parameters()} == {id(p) for p in student.parameters()}


@pytest.mark.parametrize(
    ("directions", "mode"),
    [
        (["query_to_doc"], "joint"),
        (["query_to_doc", "doc_to_query"], "per_direction"),
        (["query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"], "joint"),
    ],
    ids=len,
)
def test_the_directions_of_mnrl(model, directions, mode):
    entry = DatasetEntry("x", "mnrl", scale=7.0, directions=directions)
    theirs = st.MultipleNegativesRankingLoss(model, scale=7.0, directions=tuple(directions), partition_mode=mode)
    expected = value_and_gradients(model, st.MatryoshkaLoss(model, theirs, DIMS, WEIGHTS), COLUMNS, None)
    for mini_batch_size in (None, 2):
        loss = make_loss(model, entry, Classes(), DIMS, WEIGHTS, mini_batch_size)
        assert_same(expected, value_and_gradients(model, loss, COLUMNS, None))


def test_both_directions_are_averaged(model):
    """Symmetric InfoNCE by hand: each anchor finds its positive, each positive its anchor."""
    loss = make_loss(
        model, DatasetEntry("x", "mnrl", directions=["query_to_doc", "doc_to_query"]), Classes(), DIMS, None
    )
    value_and_gradients(model, loss, COLUMNS[:2], None)
    with torch.no_grad():
        a, b = (model(model.preprocess(texts))["sentence_embedding"] for texts in COLUMNS[:2])
    for dim in DIMS:
        similarities = 20 * F.normalize(a[:, :dim], dim=1) @ F.normalize(b[:, :dim], dim=1).T
        right = torch.arange(4)
        expected = (F.cross_entropy(similarities, right) + F.cross_entropy(similarities.T, right)) / 2
        assert loss.components[dim].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("columns", [1, 2], ids=["sentences", "translations"])
def test_distillation_turns_every_column_towards_the_teachers_prefix(model, columns):
    torch.manual_seed(2)
    labels = torch.randn(4, 64)
    loss = make_loss(model, DatasetEntry("x", "distill"), Classes(), DIMS, WEIGHTS)

    def independent(features, labels):
        total = torch.zeros(())
        for column in features:
            found = model(dict(column))["sentence_embedding"]
            for dim, weight in zip(DIMS, WEIGHTS, strict=True):
                a, b = found[:, :dim], labels[:, :dim]
                cosine = (a * b).sum(dim=1) / a.norm(dim=1) / b.norm(dim=1)
                total = total + weight * (1 - cosine).mean() / columns
        return total

    expected = value_and_gradients(model, independent, COLUMNS[:columns], labels)
    assert_same(expected, value_and_gradients(model, loss, COLUMNS[:columns], labels))


# Self-distillation: the similarities at full width teach those at each prefix


def taught(embeddings: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """The definition, row by row: KL(full || prefix) over the other texts, mean over the texts, weighted sum over prefixes."""
    rows, total = len(embeddings), torch.zeros(())

    def probabilities(prefix, row):
        others = [other for other in range(rows) if other != row]
        cosine = torch.stack([F.cosine_similarity(prefix[row], prefix[other], dim=0) for other in others])
        return (20 * cosine).softmax(dim=0)

    for dim, weight in zip(DIMS[1:], weights[1:], strict=True):
        for row in range(rows):
            teacher = probabilities(embeddings.detach(), row)
            student = probabilities(embeddings[:, :dim], row)
            total = total + weight * (teacher * (teacher.log() - student.log())).sum() / rows
    return total


def test_self_distillation_by_its_definition():
    torch.manual_seed(4)
    one = torch.randn(6, 64, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    value, expected = self_distillation(one, DIMS, WEIGHTS), taught(other, WEIGHTS)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    assert one.grad[:, :8].abs().max() > 1e-3 and one.grad[:, 32:].abs().max() == 0  # the full width only teaches


def test_self_distillation_of_prefixes_that_agree_is_nothing():
    """If only the first numbers of the embeddings differ from 0, a prefix has the similarities of the full width."""
    embeddings = torch.cat([torch.randn(5, 8), torch.zeros(5, 56)], dim=1)
    assert self_distillation(embeddings, DIMS, WEIGHTS).item() == pytest.approx(0, abs=1e-5)
    assert self_distillation(torch.randn(5, 64), [64], [1.0]).item() == 0


@pytest.mark.parametrize("mini_batch_size", [None, 2], ids=["in one go", "gradient cache"])
@pytest.mark.parametrize("name", ["mnrl", "gist", "cosent"])
def test_self_distillation_is_added_to_a_loss(model, name, mini_batch_size):
    entry = DatasetEntry("x", name, scale=7.0)
    plain, ours = (make_loss(model, entry, Classes(), DIMS, WEIGHTS, mini_batch_size, weight) for weight in (0.0, 0.25))
    columns, labels = (COLUMNS[:2], SCORES) if name == "cosent" else (COLUMNS, None)

    def independent(features, labels):
        embeddings = torch.cat([model(dict(column))["sentence_embedding"] for column in features])
        return 0.25 * taught(embeddings, WEIGHTS)

    without, added = (value_and_gradients(model, loss, columns, labels) for loss in (plain, independent))
    both = without[0] + added[0], {key: without[1][key] + added[1][key] for key in added[1]}
    assert added[0] > 1e-3
    assert_same(both, value_and_gradients(model, ours, columns, labels))
    assert ours.components["self"].item() == pytest.approx(added[0], rel=1e-4)
    assert sum(value.item() for value in ours.components.values()) == pytest.approx(both[0], rel=1e-5)
    assert "self" not in plain.components


def test_the_parameters_of_a_loss_are_its_own_and_not_the_models(model):
    entry = DatasetEntry("x", "softmax")
    softmax = make_loss(model, entry, Classes(label=[0, 1]), DIMS, None)
    ranking = make_loss(model, DatasetEntry("x", "mnrl"), Classes(), DIMS, None)
    found = loss_parameters({"classes": softmax, "ranks": ranking}, model)
    assert len(found) == 2 * len(DIMS)
    assert all(name.startswith("classes.") for name in found)
    assert sorted({tuple(p.shape) for p in found.values()}) == sorted({(2,), *((2, 3 * dim) for dim in DIMS)})
    assert loss_parameters(ranking, model) == {}


@pytest.mark.parametrize(
    ("name", "cls", "columns"),
    [
        ("mnrl", st.MultipleNegativesRankingLoss, 3),
        ("cosent", st.CoSENTLoss, 2),
        ("angle", st.AnglELoss, 2),
        ("cosine", st.CosineSimilarityLoss, 2),
    ],
)
def test_a_loss_by_its_name(model, name, cls, columns):
    loss = make_loss(model, DatasetEntry("x", name, scale=11.0), Classes(), DIMS, WEIGHTS)
    inner = cls(model) if name == "cosine" else cls(model, scale=11.0)
    labels = None if name == "mnrl" else SCORES
    expected = value_and_gradients(model, st.MatryoshkaLoss(model, inner, DIMS, WEIGHTS), COLUMNS[:columns], labels)
    assert_same(expected, value_and_gradients(model, loss, COLUMNS[:columns], labels))


def test_labels_that_are_embeddings_are_cut(model):
    torch.manual_seed(1)
    for labels, columns in ((torch.randn(4, 64), COLUMNS[:1]), (torch.randn(4, 64), COLUMNS[:2])):
        ours, theirs = (cls(model, st.MSELoss(model), DIMS, WEIGHTS) for cls in (MatryoshkaLoss, st.MatryoshkaLoss))
        expected = value_and_gradients(model, theirs, columns, labels)
        assert_same(expected, value_and_gradients(model, ours, columns, labels))


def test_a_batch_as_large_as_the_model_is_wide_does_not_have_its_scores_cut(model):
    columns = [[f"{text} {i}" for i in range(16) for text in column] for column in COLUMNS[:2]]
    scores = torch.linspace(0, 1, 64)
    ours, theirs = (cls(model, st.CosineSimilarityLoss(model), DIMS) for cls in (MatryoshkaLoss, st.MatryoshkaLoss))
    assert_same(value_and_gradients(model, theirs, columns, scores), value_and_gradients(model, ours, columns, scores))


def test_wrong_dimensions(model):
    inner = st.MultipleNegativesRankingLoss(model)
    for dims, weights in (([128, 64], None), ([0], None), ([64, 32], [1.0])):
        with pytest.raises(ValueError):
            MatryoshkaLoss(model, inner, dims, weights)


def test_merged_columns_keep_their_rows():
    features = [
        {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
        {"input_ids": torch.tensor([[6, 0], [7, 8]]), "attention_mask": torch.tensor([[1, 0], [1, 1]])},
    ]
    merged = merge(features)
    assert merged["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    real = merged["attention_mask"].bool()
    assert merged["input_ids"][real].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert merge([features[0], {"input_ids": features[1]["input_ids"]}]) is None


def test_prefixes_are_normalised_and_cut(model):
    """The loss at a dimension is that of the normalised prefix, computed by hand."""
    loss = MatryoshkaLoss(model, st.MultipleNegativesRankingLoss(model, scale=20.0), DIMS)
    value_and_gradients(model, loss, COLUMNS[:2], None)
    with torch.no_grad():
        a, b = (model(model.preprocess(texts))["sentence_embedding"] for texts in COLUMNS[:2])
    for dim in DIMS:
        similarities = 20 * F.normalize(a[:, :dim], dim=1) @ F.normalize(b[:, :dim], dim=1).T
        expected = F.cross_entropy(similarities, torch.arange(4))
        assert loss.components[dim].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("rows", [3, 7])
def test_gradcache_has_the_value_and_gradients_of_the_loss_in_one_go(tiny_model, groups, rows):
    texts = [[g[key] for g in groups[:rows]] for key in ("premise_ar", "entailment_ar", "contradiction_ar")]
    found = []
    for mini_batch_size in (None, 2):
        model = pack(SentenceTransformer(str(tiny_model), device="cpu"))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        loss = make_loss(model, DatasetEntry("-", "mnrl"), None, [64, 16], [1.0, 0.5], mini_batch_size)
        value = loss([model.preprocess(column) for column in texts], None)
        value.backward()
        assert set(loss.components) == {64, 16}
        torch.testing.assert_close(sum(loss.components.values()), value.detach(), rtol=1e-5, atol=0)
        found.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mini_batch_size", [None, 2], ids=["in one go", "gradient cache"])
@pytest.mark.parametrize("name", ["mnrl", "gist"])
def test_contrastive_losses_see_the_rows_of_all_processes(model, monkeypatch, name, mini_batch_size):
    entry = DatasetEntry("x", name)
    assert make_loss(model, entry, None, DIMS, None, mini_batch_size).loss.gather_across_devices is False
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make_loss(model, entry, None, DIMS, None, mini_batch_size).loss.gather_across_devices is True
