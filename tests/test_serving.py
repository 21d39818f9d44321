"""A trained model's folder in the format that servers read."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from common.model_cards import usage, with_recommendation, with_scores, with_section
from tests.helpers import NLI, write
from training.utils.serving import get_matryoshka_dimensions, set_matryoshka_dimensions, write_known_names

TEXTS = ["The sky is clear today", "a longer text of nine words, and not one", "السماء صافية اليوم"]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_config_states_the_dimensions_and_keeps_them(trained, tmp_path):
    assert config_of(trained)["matryoshka_dimensions"] == [64, 32, 16]
    SentenceTransformer(str(trained), device="cpu").save_pretrained(str(tmp_path / "again"))
    assert config_of(tmp_path / "again")["matryoshka_dimensions"] == [64, 32, 16]


def test_another_training_states_its_own(trained, call, groups, tmp_path):
    rows = [{"anchor": group["premise_en"], "positive": group["entailment_en"]} for group in groups[:20]]
    data = write(tmp_path / "pairs.jsonl", rows)
    flags = ("--train_data", data, "--dev_data", "none", "--max_steps", "1", "--per_device_train_batch_size", "8")
    done = call(NLI, trained, *flags, "--matryoshka_dims", "8", "--precision", "fp32", "--output_dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert config_of(tmp_path / "run/final")["matryoshka_dimensions"] == [64, 8]


def test_dimensions_can_be_withdrawn(trained):
    model = SentenceTransformer(str(trained), device="cpu")
    assert get_matryoshka_dimensions(model) == [64, 32, 16]
    set_matryoshka_dimensions(model, [])
    assert (
        get_matryoshka_dimensions(model) == [] and "matryoshka_dimensions" not in model[0].auto_model.config.to_dict()
    )


def test_modules_have_the_names_that_servers_know(trained):
    """As vLLM's ``get_pooling_config`` and text-embeddings-inference look for them."""
    modules = json.loads((trained / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{n}" for n in ("Transformer", "Pooling")
    ]
    pooling = json.loads((trained / modules[1]["path"] / "config.json").read_text())
    assert next(key for key, value in pooling.items() if value is True) == "pooling_mode_mean_tokens"
    assert pooling["word_embedding_dimension"] == 64


@pytest.mark.parametrize("mode", [*Pooling.POOLING_MODES, ("mean", "cls"), ("cls", "max")])
def test_older_names_give_the_same_embeddings(tiny_model, tmp_path, mode):
    pooling = Pooling(64, pooling_mode=mode)
    dense = Dense(pooling.get_embedding_dimension(), 24)
    model = SentenceTransformer(modules=[Transformer(str(tiny_model)), pooling, dense, Normalize()], device="cpu")
    model.save_pretrained(str(tmp_path / "model"))
    write_known_names(tmp_path / "model")
    assert "pooling_mode" not in json.loads((tmp_path / "model/1_Pooling/config.json").read_text()) or len(mode) == 2
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_array_equal(loaded.encode(TEXTS), model.encode(TEXTS))


def test_the_card_has_the_tag_and_a_snippet_that_runs(trained, tmp_path, monkeypatch):
    text = (trained / "README.md").read_text()
    assert "matryoshka" in ModelCard(text).data.tags
    snippet = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "truncate_dim" in code)
    shutil.copytree(trained, tmp_path / "sentence_transformers_model_id")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    embeddings = names["embeddings"]
    expected = SentenceTransformer(str(trained), device="cpu").encode(["The sky is clear today"])[:, :32]
    np.testing.assert_allclose(embeddings, expected / np.linalg.norm(expected), atol=1e-6)
    assert '"dimensions": 32' in text


def test_a_section_comes_before_the_usage_and_replaces_the_earlier_one():
    card = "---\ntags: [x]\n---\n\n# A model\n\nWhat it is.\n\n## Usage\n\ntext\n"
    first = with_section(card, [64, 32], usage("me/a", [64, 32], served=True))
    second = with_section(first, [64, 8], usage("me/a", [64, 8], served=False))
    assert first.index("## Fewer dimensions") < first.index("## Usage") and "vllm serve me/a" in first
    assert second.count("## Fewer dimensions") == 1 and "truncate_dim=8" in second and "vllm" not in second
    for text in (first, second):
        assert text.startswith("---\ntags: [x]\n---\n\n# A model\n\nWhat it is.\n") and text.endswith(
            "## Usage\n\ntext\n"
        )


def test_a_recommendation_changes_the_code_and_nothing_else():
    card = with_section("# A model\n\n## Usage\n", [64, 32, 16], usage("me/a", [64, 32, 16], served=True))
    card = with_scores(card, [64, 32, 16], {"sts": [0.8, 0.75, 0.7], "translations": [1.0, 0.5, 0.25]})
    smaller = with_recommendation(card, 16)
    assert "| 32 | 128 | 75.00 | 50.00 |" in smaller and smaller.index("| 32 | 128") < smaller.index("## Usage")
    assert "recommends 16" in smaller and "truncate_dim=16" in smaller and '"dimensions": 16' in smaller
    full = with_recommendation(smaller, 64)
    assert "recommends 64" in full and "truncate_dim=32" in full  # the example code still truncates
    assert with_recommendation("# Another card\n", 16) == "# Another card\n"


def test_an_evaluation_writes_its_recommendation_into_the_card(trained, call, pairs, tmp_path):
    shutil.copytree(trained, tmp_path / "run/final")
    rows, model = pairs[:60], SentenceTransformer(str(trained), device="cpu")
    first, second = (
        model.encode([row[key] for row in rows], normalize_embeddings=True) for key in ("sentence1", "sentence2")
    )
    gold = (first * second).sum(1)  # so that the full width scores 1
    keys = ("sentence1", "sentence2")
    scored = [{key: row[key] for key in keys} | {"score": float(s)} for row, s in zip(rows, gold, strict=True)]
    data = write(tmp_path / "scored.jsonl", scored)
    flags = ("--data", data, "--dims", "64", "32", "--calibration_data", "none")
    flags += ("--update_model_card", "--output_dir", tmp_path / "out")
    done = call("evaluation/evaluate_sts.py", "--model_name", tmp_path / "run/final", *flags)
    assert done.code == 0, done.err
    text = (tmp_path / "run/final/README.md").read_text()
    [dim] = re.findall(r"The evaluation of this model recommends (\d+)", text)
    assert f"{dim} dimensions" in (tmp_path / "out/report.md").read_text() and "model-index" in text
