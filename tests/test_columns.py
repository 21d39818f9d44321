"""How columns are read: negatives in several columns or lists, labelled pairs, and rows with missing values."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from common.data_files import find_blank, is_text
from common.errors import RunError
from tests.helpers import write_dataset
from training.utils.data_loading import load_training_data
from training.utils.losses import make_loss
from training.utils.options import DatasetEntry
from training.utils.sampling import Collator, GlobalBatchSampler

NLI = "training/matryoshka_nli.py"


def load(tmp_path, rows, loss="mnrl", drop=False, **more):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_training_data(DatasetEntry(str(path), loss, **more), drop_unusable_rows=drop)


def pair(i: int, **more) -> dict:
    return {"anchor": f"a{i}", "positive": f"p{i}", **more}


@pytest.mark.parametrize("loss", ["mnrl", "gist"])
def test_numbered_negatives_are_all_used_in_the_order_of_their_numbers(tmp_path, hub, loss):
    numbers = (10, 2, 1)
    dataset = load(tmp_path, [pair(i) | {f"negative_{n}": f"n{i}-{n}" for n in numbers} for i in range(3)], loss)
    assert dataset.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert [dataset[f"negative_{place}"][0] for place in (1, 2, 3)] == ["n0-1", "n0-2", "n0-10"]


def test_a_column_negative_comes_before_the_numbered_ones(tmp_path, hub):
    dataset = load(tmp_path, [pair(i, negative_1=f"m{i}", negative=f"n{i}") for i in range(2)])
    assert dataset[0] == {"anchor": "a0", "positive": "p0", "negative_1": "n0", "negative_2": "m0"}


def test_capitals_in_the_names_of_negatives_do_not_matter(tmp_path, hub):
    rows = [{"Anchor": f"a{i}", "Positive": f"p{i}", "Negative_2": f"m{i}", "Negative_1": f"n{i}"} for i in range(2)]
    assert load(tmp_path, rows)[0] == {"anchor": "a0", "positive": "p0", "negative_1": "n0", "negative_2": "m0"}


def test_hard_negatives_are_negatives(tmp_path, hub):
    dataset = load(tmp_path, [pair(i, hard_negatives=[f"n{i}", f"m{i}"]) for i in range(2)])
    assert dataset[0] == {"anchor": "a0", "positive": "p0", "negative_1": "n0", "negative_2": "m0"}


@pytest.mark.parametrize("cells", [('["a b", "c"]', "[]"), ("['a b', 'c']", "['d']")], ids=["JSON", "Python"])
def test_lists_written_as_text_are_refused(tmp_path, hub, cells):
    with pytest.raises(RunError, match="column 'negative' holds lists written as text.*JSONL or Parquet"):
        load(tmp_path, [pair(i, negatives=cell) for i, cell in enumerate(cells)])
    # text in brackets is not necessarily a list of texts
    dataset = load(tmp_path, [pair(0, negative="[sic] a [b]"), pair(1, negative="[1]")])
    assert dataset["negative"][:] == ["[sic] a [b]", "[1]"]


@pytest.mark.parametrize("column", ["anchor", "positive", "negative"])
@pytest.mark.parametrize("cell", ['["x", null]', '[{"text": "x"}]', "['x', None]", '[["x"]]', ' ["a\\d"] '])
def test_a_list_written_as_text_in_some_rows_is_refused(tmp_path, hub, column, cell):
    rows = [pair(i, negative=f"n{i}") for i in range(30)]
    rows[24][column] = cell
    with pytest.raises(RunError, match=f"row 25: column '{column}' holds a list written as text, .*; correct the row"):
        load(tmp_path, rows)
    dataset = load(tmp_path, rows, drop=True)
    assert dataset["anchor"][:] == [f"a{i}" for i in range(30) if i != 24]
    for row in rows[:16]:
        row[column] = cell
    with pytest.raises(RunError, match=f"row 1: column '{column}' holds lists written as text, such as"):
        load(tmp_path, rows, drop=True)


@pytest.mark.parametrize("cell", ["[1, 2]", "[[0.5], [1]]", "[x]", "[a] and [b]", '{"a": "b"}', "[" * 5000 + "]"])
def test_other_text_in_brackets_is_text(tmp_path, hub, cell):
    assert load(tmp_path, [pair(0, negative=cell), pair(1, negative="n")])["negative"][:] == [cell, "n"]


@pytest.mark.parametrize("name", ["neg_1", "hard_negative_1", "negative-1", "Hard Negatives 1", "negative1", "neg1"])
def test_numbered_negatives_have_many_names(tmp_path, hub, name):
    rows = [{**pair(i), name.replace("1", "10"): f"m{i}", name: f"n{i}"} for i in range(2)]
    assert load(tmp_path, rows)[0] == {"anchor": "a0", "positive": "p0", "negative_1": "n0", "negative_2": "m0"}


def test_unused_columns_that_look_like_negatives_are_named_in_a_warning(tmp_path, hub, caplog):
    rows = [pair(i, neg_text="x", negative_a=["y"], neg_scores=[0.5], negation="z", hard_neg="w") for i in range(2)]
    assert load(tmp_path, rows).column_names == ["anchor", "positive"]
    assert "the name suggests negatives: neg_text, negative_a, hard_neg; rename" in caplog.text
    caplog.clear()
    load(tmp_path, rows, columns={"anchor": "anchor", "positive": "positive"})
    assert "suggests" not in caplog.text


def test_of_two_columns_that_fit_a_role_the_used_one_is_named(tmp_path, hub, caplog):
    rows = [
        {"query": f"q{i}", "answer": "Paris", "pos": [f"p{i}"], "neg": ["n"], "contradiction": "c"} for i in range(2)
    ]
    dataset = load(tmp_path, rows)
    assert dataset[:] == {"anchor": ["q0", "q1"], "positive": ["p0", "p1"], "negative": ["n", "n"]}
    assert "2 columns fit 'positive'; 'pos' is used, and 'answer' is not" in caplog.text
    assert "2 columns fit 'negative'; 'neg' is used, and 'contradiction' is not" in caplog.text
    caplog.clear()
    load(tmp_path, rows, columns={"anchor": "query", "positive": "answer"})
    load(tmp_path, [{"premise": "a", "hypothesis": "b", "label": i} for i in range(2)], "softmax")
    assert not caplog.records
    rows = [{"sentence1": "a", "sentence2": "b", "label": 1 - i, "Score": i} for i in range(2)]
    assert load(tmp_path, rows, "cosent")["score"][:] == [0, 1]
    assert "2 columns fit 'score'; 'Score' is used, and 'label' is not" in caplog.text


@pytest.mark.parametrize("blank", [None, "", "\u200b\u200f"])
@pytest.mark.parametrize("name", ["negative", "negative_1", "contradiction"])
def test_a_row_without_its_only_negative_is_a_pair(tmp_path, hub, caplog, name, blank):
    rows = [pair(i, **{name: None if i == 0 else blank if i == 2 else f"n{i}"}) for i in range(4)]
    write_dataset(hub.root / f"datasets/someone/{tmp_path.name.split('[')[0]}", {"default": {"train": rows}})
    with caplog.at_level(logging.INFO):
        for dataset in (
            load(tmp_path, rows),
            load_training_data(DatasetEntry(f"someone/{tmp_path.name.split('[')[0]}", "mnrl")),
        ):
            assert dataset["anchor"][:] == ["a0", "a1", "a2", "a3"] and dataset["negative"][:] == ["", "n1", "", "n3"]
    assert caplog.text.count("2 of 4 rows have no negative and are used as pairs") == 2
    assert load(tmp_path, [pair(i, **{name: blank}) for i in range(4)]).column_names == ["anchor", "positive"]
    with pytest.raises(RunError, match="holds int64 instead of text"):
        load(tmp_path, [pair(i, **{name: 5}) for i in range(4)])


def test_rows_may_lack_keys_that_nobody_reads_and_their_negatives(tmp_path, hub, caplog):
    rows = [{"query": "a", "pos": ["p"], "neg": ["n"]}, {"query": "b", "pos": ["q"], "source": "x"}]
    with caplog.at_level(logging.INFO):
        assert load(tmp_path, rows)["negative"][:] == ["n", ""]
    assert "1 of 2 rows have no negative" in caplog.text
    with pytest.raises(RunError, match="row 2: column 'positive' holds no text"):
        load(tmp_path, [rows[0], {"query": "b", "neg": ["q"]}])
    with pytest.raises(RunError, match="row 3: column 'positive' has no value"):
        load(tmp_path, [pair(0), pair(1), {"anchor": "b"}])


def test_invisible_texts_in_lists_are_empty(tmp_path, hub, caplog):
    rows = [{"query": "a", "pos": ["p", "\u200f"], "neg": ["\u200b"]}, {"query": "b", "pos": ["q"], "neg": ["n"]}]
    with pytest.raises(RunError, match="row 1: column 'positive' holds an empty text"):
        load(tmp_path, rows)
    assert load(tmp_path, rows, drop=True)[:] == {"anchor": ["a", "b"], "positive": ["p", "q"], "negative": ["", "n"]}
    assert "removed 2 empty texts" in caplog.text


def test_a_text_in_a_list_is_empty_exactly_if_it_is_empty_in_a_column():
    texts = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000] + [
        "\ufeff",
        "\U000e0001",
        "",
        "a\u200b",
        None,
    ]
    blank = find_blank("x", Dataset.from_dict({"text": texts}), "text")
    assert [is_text(text) for text in texts] == (~blank).tolist()


def test_a_negative_that_is_its_own_positive_is_counted(tmp_path, hub, caplog):
    rows = [
        pair(0, negative_1="p0", negative_2="x"),
        pair(1, negative_1="x", negative_2="a1"),
        pair(2, negative_1="x", negative_2="p0"),
    ]
    load(tmp_path, rows)
    assert "in 2 of 3 rows, a negative is also the anchor or the positive of its row" in caplog.text


@pytest.mark.parametrize("absent", [None, "", " "])
def test_negatives_that_a_row_lacks_are_empty_and_last(tmp_path, hub, absent):
    rows = [
        pair(0, negative_1="x", negative_2=absent, negative_3="y"),
        pair(1, negative_1=absent, negative_2=absent, negative_3=absent),
    ]
    dataset = load(tmp_path, rows)
    assert dataset.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert dataset["negative_1"][:] == ["x", ""] and dataset["negative_2"][:] == ["y", ""]


def test_lists_of_fixed_length_are_lists(tmp_path, hub):
    import pyarrow as pa
    import pyarrow.parquet as pq

    negatives = pa.array([["x", "y"], ["z", "w"]], pa.list_(pa.string(), 2))
    columns = {"anchor": ["a", "b"], "positive": pa.array(["c", "d"], pa.string_view()), "negatives": negatives}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    dataset = load_training_data(DatasetEntry(str(tmp_path / "x.parquet"), "mnrl"))
    assert dataset[:] == {
        "anchor": ["a", "b"],
        "positive": ["c", "d"],
        "negative_1": ["x", "z"],
        "negative_2": ["y", "w"],
    }


def test_labels_become_consecutive_classes_in_their_order(tmp_path, hub):
    """The head of the softmax loss has a row for each class: a label such as 20240000 must not make it as large."""
    labels = [7, 20240000, 0, 7, 0]
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "label": label} for i, label in enumerate(labels)]
    assert load(tmp_path, rows, "softmax")["label"][:] == [1, 2, 0, 1, 0]


def test_capitals_in_the_names_of_columns_do_not_matter(tmp_path, hub):
    rows = [{"Anchor": f"a{i}", "Positive": f"p{i}", "Negative": f"n{i}", "positive_note": "x"} for i in range(2)]
    dataset = load(tmp_path, rows)
    assert dataset[0] == {"anchor": "a0", "positive": "p0", "negative": "n0"}
    with pytest.raises(
        RunError, match='map them in a --config file with "columns": {"anchor": "COLUMN", "positive": "COLUMN"}'
    ):
        load(tmp_path, [{"q": "a", "p": "b"}])


def test_keys_of_numbered_negatives_may_be_missing(tmp_path, hub):
    dataset = load(tmp_path, [pair(0, negative_1="x"), pair(1, negative_1="x", negative_2="y")])
    assert dataset["negative_2"][:] == ["", "y"]


@pytest.mark.parametrize("names", [("positive", "negative"), ("positives", "negatives"), ("pos", "neg")])
def test_lists_of_positives_and_negatives(tmp_path, hub, names):
    rows = [
        {"query": "a", names[0]: ["p", "q"], names[1]: ["x"]},
        {"query": "b", names[0]: ["r"], names[1]: ["y", "z"]},
    ]
    assert load(tmp_path, rows)[:] == {
        "anchor": ["a", "a", "b"],
        "positive": ["p", "q", "r"],
        "negative_1": ["x", "x", "y"],
        "negative_2": ["", "", "z"],
    }


def test_a_list_of_labels_says_which_texts_are_positive(tmp_path, hub):
    rows = [{"query": q, "answer": [f"{q}1", f"{q}2", f"{q}3"], "labels": [1, 0, 0]} for q in "ab"]
    assert load(tmp_path, rows)[0] == {"anchor": "a", "positive": "a1", "negative_1": "a2", "negative_2": "a3"}
    for labels, message in (([1, 0], "for each text"), ([1, 0, 2], "must hold a 0 or 1")):
        with pytest.raises(RunError, match=f"row 1: .*{message}"):
            load(tmp_path, [rows[0] | {"labels": labels}, rows[1]])


def test_lists_with_scores_do_not_say_which_texts_are_positive(tmp_path, hub):
    rows = [{"query": q, "answer": [f"{q}1", f"{q}2"], "scores": [0.9, 0.1]} for q in "ab"]
    with pytest.raises(RunError, match="column 'positive' holds lists, but 'scores' does not show which"):
        load(tmp_path, rows)


@pytest.mark.parametrize("columns", [None, {"anchor": "anchor", "positive": "positive"}], ids=["recognised", "mapped"])
@pytest.mark.parametrize("name", ["label", "labels", "Label"])
@pytest.mark.parametrize(
    "values", [(0, 1), (0.0, 1.0), ("0", "1"), (False, True), ("False", "True"), ("false", "true")], ids=str
)
def test_pairs_with_label_0_are_removed_and_counted(tmp_path, hub, caplog, values, name, columns):
    with caplog.at_level(logging.INFO):
        dataset = load(tmp_path, [pair(i, **{name: values[i % 2]}) for i in range(7)], columns=columns)
    assert dataset[:] == {"anchor": ["a1", "a3", "a5"], "positive": ["p1", "p3", "p5"]}
    assert "3 of 7 rows have the label 1 and are kept as positive pairs; 4 with label 0 are removed" in caplog.text


@pytest.mark.parametrize("missing", [None, -1, "-1", ""])
@pytest.mark.parametrize("columns", [None, {"anchor": "anchor", "positive": "positive"}], ids=["recognised", "mapped"])
def test_a_missing_label_says_nothing_about_the_other_labels(tmp_path, hub, caplog, missing, columns):
    """Naming the columns must not turn the rows with label 0 into positive pairs."""
    labels = ["1", "0", missing, "1"] if isinstance(missing, str) else [1, 0, missing, 1]
    rows = [pair(i, label=label) for i, label in enumerate(labels)]
    with pytest.raises(RunError, match="row 3: column 'label' "):
        load(tmp_path, rows, columns=columns)
    assert load(tmp_path, rows, columns=columns, drop=True)["anchor"][:] == ["a0", "a3"]
    assert "1 of 4 rows are unusable and removed: 1 without a label (missing or -1)" in caplog.text
    assert "whatever its" not in caplog.text


@pytest.mark.parametrize("name", ["Label", "Score", "labels"])
def test_graded_labels_that_are_not_read_are_named_in_a_warning(tmp_path, hub, caplog, name):
    columns = {"anchor": "anchor", "positive": "positive"}
    assert len(load(tmp_path, [pair(i, **{name: i / 2}) for i in range(3)], columns=columns)) == 3
    assert f"every row is used as a positive pair, whatever its {name}" in caplog.text


@pytest.mark.parametrize("loss", ["cosent", "angle"])
def test_scores_that_are_all_the_same_teach_nothing(tmp_path, hub, loss):
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": 4} for i in range(3)]
    with pytest.raises(RunError, match=f"every score is the same; {loss} learns from scores that differ"):
        load(tmp_path, rows, loss, score_range=[1, 5])
    assert load(tmp_path, rows, "cosine", score_range=[1, 5])["score"][:] == [0.75] * 3


def test_labels_under_a_contrastive_loss_that_are_no_0_or_1(tmp_path, hub, caplog):
    with pytest.raises(RunError, match="row 3: column 'label' must be 1 .positive pair. or 0 .* not 2"):
        load(tmp_path, [pair(i, label=i) for i in range(3)])
    with pytest.raises(RunError, match="no row has the label 1"):
        load(tmp_path, [pair(i, label=0) for i in range(3)])
    columns = {"anchor": "anchor", "positive": "positive"}
    assert len(load(tmp_path, [pair(i, label=i) for i in range(3)], columns=columns)) == 3
    assert "every row is used as a positive pair, whatever its label" in caplog.text
    assert len(load(tmp_path, [pair(i, label=i % 2) for i in range(6)], columns=columns)) == 3


@pytest.mark.parametrize(
    ("loss", "row", "unused"),
    [
        ("mnrl", pair(0, id="7", score=0.5), "id, score"),
        ("mnrl", pair(0, negative="n", scores=[0.5, 0.1]), "scores"),
        (
            "cosent",
            {"sentence1": "a", "sentence2": "b", "score": 0.5, "genre": "x", "negative_1": "y"},
            "genre, negative_1",
        ),
        ("distill", {"sentence": "a", "score": 1}, "score"),
    ],
)
def test_columns_that_are_not_used_are_named(tmp_path, hub, caplog, loss, row, unused):
    with caplog.at_level(logging.INFO):
        load(tmp_path, [row, row | {"score": 0.1}] if "score" in row else [row, row], loss)
    assert f"; columns not used: {unused}" in caplog.text


# Rows that lack a value

SOFT = ("softmax", [{"premise": f"a{i}", "hypothesis": f"b{i}", "label": i % 2} for i in range(6)])
SCORED = ("cosent", [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i / 6} for i in range(6)])
PAIRS = ("mnrl", [pair(i) for i in range(6)])
LABELLED = ("mnrl", [pair(i, label=1) for i in range(6)])
LISTS = ("mnrl", [{"anchor": f"a{i}", "positive": [f"p{i}", f"q{i}"]} for i in range(6)])


@pytest.mark.parametrize(
    ("data", "column", "value", "message", "removed"),
    [
        (SOFT, "label", -1, "'label' must be a non-negative integer, not -1", "1 without a label (missing or -1)"),
        (SOFT, "label", None, "'label' has no value", "1 without a label (missing or -1)"),
        (SOFT, "premise", None, "'sentence1' has no value", "1 without 'sentence1'"),
        (SOFT, "premise", " ", "'sentence1' is empty", "1 without 'sentence1'"),
        (SCORED, "score", None, "'score' has no value", "1 without 'score'"),
        (SCORED, "score", float("nan"), "'score' must be a finite number, not nan", "1 without 'score'"),
        (PAIRS, "positive", None, "'positive' has no value", "1 without 'positive'"),
        (
            PAIRS,
            "positive",
            '["p", null]',
            "'positive' holds a list written as text, '[",
            "1 with a list written as text in 'positive'",
        ),
        (
            SCORED,
            "sentence2",
            "['a']",
            "'sentence2' holds a list written as text",
            "1 with a list written as text in 'sentence2'",
        ),
        (LABELLED, "label", None, "'label' has no value", "1 without a label (missing or -1)"),
        (LABELLED, "label", -1, "'label' must be 1 (positive pair) or 0, not -1", "1 without a label (missing or -1)"),
        (LISTS, "positive", ["p", ""], "'positive' holds an empty text", "1 empty texts"),
        (LISTS, "positive", ["p", "\u200f"], "'positive' holds an empty text", "1 empty texts"),
        (LISTS, "positive", [], "'positive' holds no text", "1 empty texts or lists"),
    ],
)
def test_a_row_that_lacks_a_value(tmp_path, hub, caplog, data, column, value, message, removed):
    loss, rows = data
    rows = [row | {column: value} if i == 3 else row for i, row in enumerate(rows)]
    with pytest.raises(RunError, match="row 4: column ") as error:
        load(tmp_path, rows, loss)
    assert message in str(error.value) and "add --drop_unusable_rows to remove such rows" in str(error.value)

    write_dataset(hub.root / f"datasets/someone/{tmp_path.name.replace('[', '')}", {"default": {"train": rows}})
    hub_entry = DatasetEntry(f"someone/{tmp_path.name.replace('[', '')}", loss)
    whole = len(load(tmp_path, data[1], loss))
    for dataset in (load(tmp_path, rows, loss, drop=True), load_training_data(hub_entry)):
        assert len(dataset) == whole - {"p": 1}.get(
            (value or [""])[0] if isinstance(value, list) else "", 2 if value == [] else 1
        )
    assert caplog.text.count(removed) == 2


def test_a_score_outside_of_the_range_is_a_mistake_on_the_hub_too(tmp_path, hub):
    write_dataset(
        hub.root / "datasets/someone/scores", {"default": {"train": [row | {"score": 4.0} for row in SCORED[1]]}}
    )
    with pytest.raises(RunError, match="row 1: the score 4.0 is outside 0..1; set 'score_range' for this data set"):
        load_training_data(DatasetEntry("someone/scores", "cosent"))


# The losses of several negatives


def independent_loss(anchors, positives, negatives, scale: float) -> float:
    """Return the mean over the anchors of -log of the positive's share of exp(scale * cosine) over all texts present."""
    texts = torch.nn.functional.normalize(torch.cat([positives, *negatives]), dim=1)
    anchors = torch.nn.functional.normalize(anchors, dim=1)
    losses = []
    for index, anchor in enumerate(anchors):
        weights = [float((scale * anchor @ text).exp()) for text in texts]
        losses.append(-torch.tensor(weights[index] / sum(weights)).log())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("mini", [None, 2])
@pytest.mark.parametrize("loss_name", ["mnrl", "gist"])
def test_uneven_negatives_have_the_loss_of_a_softmax_over_those_that_are_there(
    tmp_path, hub, tiny_model, groups, loss_name, mini
):
    keys = ("neutral_en", "contradiction_en", "premise_en")
    rows = [
        {"anchor": g["premise_ar"], "positive": g["entailment_ar"], "negatives": [g[key] for key in keys[: i % 4]]}
        for i, g in enumerate(groups[:20])
    ]
    dataset = load(tmp_path, rows, loss_name)
    model = SentenceTransformer(str(tiny_model), device="cpu").double().eval()
    entry = DatasetEntry("-", loss_name)
    loss = make_loss(model, entry, dataset, [64, 16], None, mini)
    if loss_name == "gist":  # a guide for which nothing is more similar than the positive, so that nothing is removed
        guide = loss.loss_at(64).guide
        guide.model = None
        type(guide).__call__, kept = constant_guide, type(guide).__call__
    collate = Collator(model.preprocess)
    try:
        for step in GlobalBatchSampler(dataset, 8).steps(0):
            inputs = collate([dataset[row] for row in step])
            columns = [name.removesuffix("input_ids") for name in inputs if name.endswith("input_ids")]
            assert len(columns) == 2 + len(rows[step[0]]["negatives"])
            features = [{k.removeprefix(c): v for k, v in inputs.items() if k.startswith(c)} for c in columns]
            value = float(loss([dict(column) for column in features], None).detach())
            texts = [[row["anchor"], row["positive"], *row["negatives"]] for row in (rows[index] for index in step)]
            embeddings = [model.encode(list(column), convert_to_tensor=True) for column in zip(*texts, strict=True)]
            wanted = 0.0
            for dim in (64, 16):
                anchors, positives, *negatives = (column[:, :dim] for column in embeddings)
                if loss_name == "mnrl":
                    wanted += independent_loss(anchors, positives, negatives, 20.0)
                else:
                    wanted += independent_gist(anchors, positives, negatives, 20.0)
            assert value == pytest.approx(wanted, rel=1e-5), len(columns)
    finally:
        if loss_name == "gist":
            type(guide).__call__ = kept


def constant_guide(self, features):
    """Embed all texts alike, so that none is more similar to the anchor than the positive."""
    return {"sentence_embedding": torch.ones(len(features["input_ids"]), 4, dtype=torch.double)}


def independent_gist(anchors, positives, negatives, scale: float) -> float:
    """As :func:`independent_loss`, but also contrasting each anchor with all anchors, and its positive with all positives."""
    normalized = [torch.nn.functional.normalize(column, dim=1) for column in (anchors, positives, *negatives)]
    anchors, positives, *negatives = normalized
    losses = []
    for index, anchor in enumerate(anchors):
        against = [anchor @ text for column in negatives for text in column]
        against += [anchor @ text for text in positives] + [anchor @ text for text in anchors]
        against += [positives[index] @ text for text in positives]
        weights = [float((scale * similarity).exp()) for similarity in against]
        losses.append(-((scale * anchor @ positives[index]).exp() / sum(weights)).log())
    return float(torch.stack(losses).mean())


def test_a_run_with_uneven_negatives_trains_and_says_what_it_reads(call, tiny_model, tmp_path, groups):
    rows = [
        {"anchor": g["premise_en"], "positive": g["entailment_en"], "negative_1": g["contradiction_en"]}
        | ({"negative_2": g["neutral_en"]} if i % 2 else {})
        for i, g in enumerate(groups[:24])
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        "--dev_data",
        "none",
        "--precision",
        "fp32",
        "--per_device_train_batch_size",
        "8",
        "--matryoshka_dims",
        "64",
        "16",
    )
    done = call(
        "training/matryoshka_nli.py", tiny_model, "--train_data", path, *flags, "--output_dir", tmp_path / "run"
    )
    assert done.code == 0, done.err
    assert "24 rows of anchor, positive, negative_1, negative_2; every column is used" in done.err
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["steps"] == 4


def test_the_columns_of_train_data_can_be_named(call, fails, tmp_path, tiny_model):
    rows = [{"q": f"the man {i}", "a": f"man number {i}", "n": f"a dog {i}"} for i in range(8)]
    data, config = tmp_path / "rows.jsonl", tmp_path / "c.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(json.dumps({"columns": {"anchor": "q", "positive": "a", "negative": "n"}}))
    flags = ("--dev_data", "none", "--max_steps", "1", "--per_device_train_batch_size", "4", "--matryoshka_dims", "16")
    flags += ("--output_dir", tmp_path / "run", "--config", config)
    fails(2, "'columns' … --train_data", NLI, tiny_model, *flags)
    done = call(NLI, tiny_model, *flags, "--train_data", data)
    assert done.code == 0, done.err
    (dataset,) = json.loads((tmp_path / "run/run.json").read_text())["datasets"].values()
    assert dataset["columns"] == ["anchor", "positive", "negative"]
