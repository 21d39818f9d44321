"""Cross-lingual rows from a data set and parallel sentences."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from common.errors import RunError
from training.utils.crosslingual import translate_rows

WORDS = {"a": "ا", "b": "ب", "c": "ت"}
ROWS = {"anchor": ["a", "a ", "b"], "positive": ["b", "x", "c"], "negative": ["c", "c", "a"]}


def rows_of(dataset: Dataset) -> list[tuple]:
    return [tuple(row.values()) for row in dataset]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (["first"], [("ا", "b", "c"), ("ا", "x", "c"), ("ب", "c", "a")]),
        (["others"], [("a", "ب", "ت"), ("b", "ت", "ا")]),
        (["all", "others"], [("ا", "ب", "ت"), ("ب", "ت", "ا"), ("a", "ب", "ت"), ("b", "ت", "ا")]),
    ],
)
def test_texts_are_replaced_where_all_of_them_have_a_translation(which, expected):
    assert rows_of(translate_rows(Dataset.from_dict(ROWS), WORDS, which)) == expected


def test_scores_stay():
    dataset = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "score": [0.5]})
    assert rows_of(translate_rows(dataset, WORDS, ["others"])) == [("a", "ب", 0.5)]


def test_rows_with_fewer_negatives_stay():
    rows = Dataset.from_dict(
        {"anchor": ["a", "a"], "positive": ["b", "b"], "negative_1": ["c", "c"], "negative_2": ["d", ""]}
    )
    translated = translate_rows(rows, {text: text.upper() for text in "abcd"}, ["all"])
    assert translated["negative_2"][:] == ["D", ""] and translated["negative_1"][:] == ["C", "C"]


def test_no_translation_at_all_is_an_error():
    with pytest.raises(RunError, match="no row has a translation"):
        translate_rows(Dataset.from_dict(ROWS), {}, ["first"])


def test_a_mixture_has_rows_across_languages(warm, hub, groups, tmp_path):
    sample = "data/sample/nli_groups.jsonl"
    columns = {"anchor": "premise_en", "positive": "entailment_en", "negative": "contradiction_en"}
    parallel = tmp_path / "parallel.jsonl"
    texts = [(g[f"{part}_en"], g[f"{part}_ar"]) for g in groups for part in ("entailment", "contradiction")]
    lines = [json.dumps({"english": en, "non_english": ar}) + "\n" for en, ar in texts]
    parallel.write_text("".join(lines), encoding="utf-8")
    entry = {"path": sample, "loss": "mnrl", "columns": columns}
    across = entry | {"translations": str(parallel), "translate": ["others"]}
    config = {
        "model_name": "tiny/sentence-bert",
        "dev_data": ["none"],
        "datasets": {"english": entry, "across": across},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    flags = ("--max_steps", "2", "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "run")
    done = warm("training/hybrid_training.py", "--config", tmp_path / "config.json", *flags)
    assert done.code == 0, done.err
    rows = {
        name: found["rows"] for name, found in json.loads((tmp_path / "run/run.json").read_text())["datasets"].items()
    }
    assert rows == {"english": len(groups), "across": len(groups)}

    config["datasets"]["across"].pop("translations")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = warm("training/hybrid_training.py", "--config", tmp_path / "config.json", *flags)
    assert done.code == 2 and "'translate' needs 'translations'" in done.err
