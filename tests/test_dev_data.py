"""Dev sets from any source, without test pairs, and the interval of their mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from common.data_files import is_hub_spec, parse_hub_spec
from common.errors import RunError, UsageError
from evaluation.utils.analysis.calibration import calibration_id
from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
from tests.helpers import static_model, write_dataset
from training.utils.dev_data import (
    label_of,
    load_dev_dataset,
    without_test_pairs,
)
from training.utils.options import DevEntry

PAIRS = {"sentence1": ["A", "C", "E", "G"], "sentence2": ["B", "D", "F", "H"], "score": [0.1, 0.5, 0.9, 0.3]}


def test_test_pairs_are_removed_in_either_order_and_shared_sentences_counted():
    tests = {
        "STS17 en-en": {"sentence1": ["b!", "E"], "sentence2": ["a", "x"], "score": [1.0, 2.0]},
        "own-test": {"sentence1": ["B"], "sentence2": ["A"], "score": [1.0]},
    }
    kept, record = without_test_pairs({"dev": PAIRS}, tests)
    assert kept["dev"] == {"sentence1": ["C", "E", "G"], "sentence2": ["D", "F", "H"], "score": [0.5, 0.9, 0.3]}
    assert record == {
        "dev": {"rows": 3, "test_pairs_removed": {"STS17 en-en": 1, "own-test": 1}, "share_a_sentence": 1}
    }


def test_a_dev_set_of_two_pairs_is_too_small():
    rows = {column: values[:2] for column, values in PAIRS.items()}
    with pytest.raises(RunError, match="dev set dev: 2 pairs are too few; use a set with at least 3"):
        without_test_pairs({"dev": rows}, {})


def test_a_dev_set_that_is_a_test_set_is_an_error():
    with pytest.raises(RunError, match="dev set dev: only 0 of 4 pairs are not test pairs"):
        without_test_pairs({"dev": PAIRS}, {"test": PAIRS})


@pytest.mark.parametrize(
    ("text", "entry", "label"),
    [
        ("o/x", DevEntry("o/x"), "x"),
        ("o/x:en-ar", DevEntry("o/x", "en-ar"), "x-en-ar"),
        ("o/x:en-ar:dev", DevEntry("o/x", "en-ar", "dev"), "x-en-ar-dev"),
        ("o/x::test", DevEntry("o/x", None, "test"), "x-test"),
    ],
)
def test_a_data_set_is_named_with_its_config_and_split(text, entry, label):
    assert is_hub_spec(text) and label_of(text) == label
    assert DevEntry(*parse_hub_spec(text, "validation")) == entry


@pytest.mark.parametrize("name", ["auto", "none", "en-ar", "pairs.jsonl", "folder/pairs.csv", "a/b/c.tsv"])
def test_names_and_files_are_no_hub_data_sets(name):
    assert not is_hub_spec(name)


@pytest.mark.parametrize("text", ["o/x:a:b:c", "o/x:a:"])
def test_a_malformed_name_is_a_usage_error(text):
    with pytest.raises(UsageError, match="use path, path:config or path:config:split"):
        parse_hub_spec(text, "validation")
    with pytest.raises(UsageError, match="use path, path:config or path:config:split"):
        calibration_id(text)


@pytest.fixture(scope="module")
def graded(hub, pairs):
    """A data set of graded pairs and one of translations, in columns of other names."""
    rows = [{"left": p["sentence1"], "right": p["sentence2"], "grade": p["score"]} for p in pairs[-40:]]
    write_dataset(hub.root / "datasets/tiny/graded", {"en-ar": {"validation": rows}})
    texts = [{"english": p["sentence1"], "non_english": p["sentence2"]} for p in pairs[-20:]]
    write_dataset(hub.root / "datasets/tiny/translated", {"default": {"dev": texts}})


def test_columns_of_other_names_are_mapped(graded, pairs):
    columns = {"sentence1": "left", "sentence2": "right", "score": "grade"}
    rows = load_dev_dataset(DevEntry("tiny/graded", "en-ar", columns=columns))
    assert rows["sentence1"] == [p["sentence1"] for p in pairs[-40:]]
    assert rows["score"] == [p["score"] for p in pairs[-40:]]
    with pytest.raises(RunError, match="no column for 'sentence1'; the columns are left, right, grade"):
        load_dev_dataset(DevEntry("tiny/graded", "en-ar"))
    assert list(load_dev_dataset(DevEntry("tiny/translated", split="dev"))) == ["source", "target"]


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("nulls", [*({"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i} for i in range(4)), {"sentence1": None, "sentence2": "b", "score": 1}], ["sentence1", "sentence2", "score"]),
        ("null-translations", [*({"english": f"a{i}", "non_english": f"b{i}"} for i in range(4)), {"english": "a", "non_english": None}], ["source", "target"]),
    ],
)  # fmt: skip
def test_incomplete_rows_of_a_hub_data_set_are_removed_and_counted(hub, caplog, name, rows, columns):
    write_dataset(hub.root / f"datasets/tiny/{name}", {"default": {"validation": rows}})
    with caplog.at_level("WARNING"):
        kept = load_dev_dataset(DevEntry(f"tiny/{name}"))
    assert list(kept) == columns and all(len(values) == 4 for values in kept.values())
    assert "1 of 5 rows are unusable and removed" in caplog.text


def test_the_estimate_is_the_evaluators_mean_and_its_interval_holds_it(tiny_model, pairs):
    model = SentenceTransformer(str(tiny_model), device="cpu")
    columns = ("sentence1", "sentence2", "score")
    scored = {column: [p[column] for p in pairs[:60]] for column in columns}
    translated = {"source": scored["sentence1"][:30], "target": scored["sentence2"][:30]}
    sets, dims = {"scored": scored, "translated": translated}, [64, 16]
    evaluator = MatryoshkaEvaluator(sets, dims)
    score = evaluator(model)["mean_score"]
    estimate = evaluator.estimate()
    assert estimate.value == pytest.approx(score, abs=1e-6)
    low, high = estimate.interval()
    assert low < estimate.value < high
    first, second = (model.encode(scored[c])[:, :16] for c in columns[:2])
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    alone = MatryoshkaEvaluator({"scored": scored}, [16])
    alone(model)
    assert alone.estimate().value == pytest.approx(spearmanr(cosine, scored["score"]).statistic, abs=1e-6)


def test_translations_are_compared_in_blocks(monkeypatch):
    """A large set, whose similarities would not fit in memory, gives the same hits."""
    from evaluation.utils import dev_evaluator

    draw = np.random.default_rng(0)
    first, noise = draw.normal(size=(2, 50, 4))
    texts = [f"text {row % 45}" for row in range(50)]  # some texts occur twice
    arguments = (first, first + noise, texts, texts[::-1])
    whole = dev_evaluator.translation_hits(*arguments)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in arguments[:2]]
    nearest = (unit[0] @ unit[1].T).argmax(axis=1)
    assert whole[0].tolist() == [texts[::-1][row] == texts[::-1][near] for row, near in enumerate(nearest)]
    monkeypatch.setattr(dev_evaluator, "ROWS", 7)
    for in_blocks, hits in zip(dev_evaluator.translation_hits(*arguments), whole, strict=True):
        assert in_blocks.tolist() == hits.tolist() and 0 < hits.sum() < 50


def test_a_run_takes_dev_sets_of_all_kinds_and_records_what_was_removed(graded, warm, hub, tmp_path, pairs):
    config = tmp_path / "config.json"
    columns = {"sentence1": "left", "sentence2": "right", "score": "grade"}
    entry = {"path": "tiny/graded", "name": "en-ar", "columns": columns}
    config.write_text(json.dumps({"dev_datasets": {"graded": entry}}), encoding="utf-8")
    sts17 = [p for p in pairs if p["subset"] == "en-en"]
    leaking = tmp_path / "leaking.jsonl"
    rows = [p for start in range(7) for p in sts17[start::7]][50:90]  # the first 60 are STS17
    leaking.write_text("".join(json.dumps({k: p[k] for k in ("sentence1", "sentence2", "score")}) + "\n" for p in rows))
    done = warm(
        "training/matryoshka_nli.py", "tiny/sentence-bert", "--config", config, "--max_steps", "1",
        "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "run",
        "--dev_data", "en", "tiny/translated::dev", leaking,
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "run/run.json").read_text())
    checked = record["leaks"]["dev_sets"]
    assert set(checked) == {"sts-en-dev", "translated-dev", "graded", "leaking"}
    assert checked["leaking"]["test_pairs_removed"]["STS17 en-en"] == 10 and checked["leaking"]["rows"] == 30
    assert record["dev_and_test_rows"]["leaking"] == 30
    low, high = record["dev_interval"]
    assert low < record["scores"]["dev_mean_score"] < high


def test_what_is_not_a_dev_set_is_one_line(fails, graded, tmp_path):
    command = ("training/matryoshka_nli.py", "--output_dir", tmp_path / "run", "--dev_data")
    fails(1, "not found on the Hub", *command, "tiny/absent")
    fails(2, "use path, path:config", *command, "tiny/graded:a:b:c")
    fails(2, "'none' cannot be combined", *command, "none", "tiny/graded")


def test_an_undefined_correlation_names_the_dev_set():
    model = static_model()
    with torch.no_grad():
        model[0].embedding.weight.copy_(torch.ones_like(model[0].embedding.weight))
    rows = {
        "sentence1": ["word1", "word2", "word3"],
        "sentence2": ["word4", "word5", "word6"],
        "score": [0.1, 0.5, 0.9],
    }
    with pytest.raises(
        RunError, match="mine at 32 dimensions: the cosine correlation is undefined: every pair has the same"
    ):
        MatryoshkaEvaluator({"mine": rows}, [32, 8])(model)
