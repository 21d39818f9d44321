"""Sentences of the dev and test sets are found in the training data, whatever their spelling, and removed."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset

from common.errors import RunError
from tests.helpers import scored
from training.utils import leaks
from training.utils.leaks import drop_leaks, find_leaks, normalise
from training.utils.options import DatasetEntry

FILE = DatasetEntry("mine.csv", "mnrl")
HELD = {"dev": {"sentence1": ["A man walks."], "sentence2": ["ذَهَبَ أحمدُ إلى البَيـت"], "score": [0.5]}}


def rows(anchors: list[str], **more: list) -> Dataset:
    return Dataset.from_dict({"anchor": anchors, "positive": [f"positive {i}" for i in range(len(anchors))]} | more)


@pytest.mark.parametrize(
    "same",
    [
        ("A man walks.", "a man  walks", "A MAN WALKS!", "a-man\u200b walks", "\u201ca man walks\u201d"),
        ("ذَهَبَ أحمدُ إلى البَيـت", "ذهب احمد الى البيت", "ذهب أحمد إلى البيت؟", "ذهب ٱحمد الى البيت،"),
        ("آمال", "امال", "أمال", "إمال"),
        ("ﷲ أكبر", "الله اكبر"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("café", "cafe\u0301", "CAFÉ"),
    ],
    ids=lambda texts: texts[-1],
)
def test_ways_to_write_the_same(same):
    assert len({normalise(text) for text in same}) == 1


def test_what_differs_stays_apart():
    texts = ["a man walks", "a man walked", "two men walk", "ذهب أحمد", "ذهبت أحمد", "...", "?", "10", "100"]
    texts += ["काम", "कम", "कमी", "กา", "กี"]  # Hindi and Thai words that differ in a vowel sign
    assert len({normalise(text) for text in texts}) == len(texts)


def test_rows_that_share_a_sentence_are_removed(caplog):
    dataset = rows(["one", "a man walks", "two", "ذهب احمد الى البيت", "three"], label=[0, 1, 2, 3, 4])
    with caplog.at_level(logging.INFO):
        kept, record = drop_leaks({"mine": (FILE, dataset)}, HELD, keep=False)
    assert kept["mine"]["anchor"][:] == ["one", "two", "three"] and kept["mine"]["label"][:] == [0, 2, 4]
    assert record == {"kept": False, "rows": {"mine": {"dev": 2}}, "not_checked": []}
    assert caplog.messages == ["mine: 2 of 5 rows share sentences with dev (2) and are removed"]


@pytest.mark.parametrize(("loss", "column"), [("cosent", "score"), ("angle", "score"), ("softmax", "label")])
def test_the_remaining_scores_or_labels_must_differ(loss, column):
    """The losses learn nothing from equal ones."""
    dataset = rows(["one", "a man walks", "two"], **{column: [0, 1, 0]})
    train = {"mine": (DatasetEntry("mine.csv", loss), dataset)}
    with pytest.raises(RunError, match=f"mine: every {column} is the same, after removing .* add --keep_leaks"):
        drop_leaks(train, HELD, keep=False)
    assert drop_leaks(train, HELD, keep=True)[0]["mine"] is dataset


def test_they_may_be_kept_and_are_counted_all_the_same(caplog):
    dataset = rows(["one", "a man walks", "two"])
    with caplog.at_level(logging.INFO):
        kept, record = drop_leaks({"mine": (FILE, dataset)}, HELD, keep=True)
    assert kept["mine"] is dataset
    assert record == {"kept": True, "rows": {"mine": {"dev": 1}}, "not_checked": []}
    assert "1 of 3 rows share sentences with dev (1) and are kept (--keep_leaks)" in caplog.text


def test_a_row_counts_once_for_each_set_and_any_column_counts(monkeypatch):
    monkeypatch.setattr(leaks, "ROWS", 2)  # so that rows are looked up in several parts
    dataset = (
        rows(["x", "a", "y", "z", "b"]).remove_columns("positive").add_column("positive", ["b", "a", "q", "r", "s"])
    )
    dataset = dataset.select([4, 3, 2, 1, 0])  # not in the order in which they lie on disk
    found, counts = find_leaks(dataset, {"a": {"one"}, "b": {"one", "two"}}, ["two", "one", "none"])
    assert found.tolist() == [True, False, False, True, True]
    assert counts == {"two": 2, "one": 3}


def test_a_data_set_that_is_all_leaks():
    with pytest.raises(RunError, match="mine: fewer than 2 rows remain .* add --keep_leaks"):
        drop_leaks({"mine": (FILE, rows(["a man walks", "A man walks", "one"]))}, HELD, keep=False)


def test_the_benchmark_sets_are_checked_if_training_data_comes_from_the_hub(hub, pairs):
    test = {name: scored(pairs, name, slice(0, 60))[0]["sentence1"] for name in ("ar-ar", "en-ar", "en-en")}
    english = scored(pairs, "en-en", slice(136, 176))[0]["sentence2"]
    dataset = rows([*test.values(), english, "one", "two"])
    entry = DatasetEntry("sentence-transformers/all-nli", "mnrl")
    kept, record = drop_leaks({"nli": (entry, dataset)}, {}, keep=False)
    assert kept["nli"]["anchor"][:] == ["one", "two"]
    assert record["rows"]["nli"].keys() == {"STS17 ar-ar", "STS17 en-ar", "STS17 en-en", "STSBenchmark"}
    assert record["not_checked"] == []
    asked = len(hub.requests)
    kept, record = drop_leaks({"mine": (FILE, dataset)}, {}, keep=False)
    assert kept["mine"] is dataset and record["rows"] == {"mine": {}}
    assert len(hub.requests) == asked, "files of one's own need no Hub"


def test_a_benchmark_that_cannot_be_had_is_a_warning(hub, monkeypatch, caplog):
    def fail(task, *_, **__):
        raise (RunError(f"task {task}: gone") if task == "STS17" else KeyError(task))

    monkeypatch.setattr(leaks, "load_pairs", fail)
    dataset = rows(["one", "two"])
    kept, record = drop_leaks({"nli": (DatasetEntry("org/name", "mnrl"), dataset)}, {}, keep=False)
    assert kept["nli"] is dataset
    assert record["not_checked"] == ["STS17", "STS22.v2", "STSBenchmark"]
    assert "training rows are not compared with STS17: task STS17: gone" in caplog.messages
