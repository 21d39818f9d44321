"""A trained model's folder as a server reads it."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from common.model_cards import usage_section, with_section
from training.utils.serving import get_matryoshka_dimensions, set_matryoshka_dimensions, write_known_names

NLI = "training/matryoshka_nli.py"
TEXTS = ["The sky is clear today", "a longer text of nine words, and not one", "السماء صافية اليوم"]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_config_states_the_dimensions_and_keeps_them(trained, tmp_path):
    assert config_of(trained)["matryoshka_dimensions"] == [64, 32, 16]
    SentenceTransformer(str(trained), device="cpu").save_pretrained(str(tmp_path / "again"))
    assert config_of(tmp_path / "again")["matryoshka_dimensions"] == [64, 32, 16]


def test_another_training_states_its_own(trained, call, groups, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "".join(json.dumps({"anchor": g["premise_en"], "positive": g["entailment_en"]}) + "\n" for g in groups[:20])
    )
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


def test_a_section_replaces_the_earlier_one():
    card = "---\ntags: [x]\n---\n\n# A model\n\nWhat it is.\n\n## Usage\n\ntext\n"
    first = with_section(card, usage_section("me/a", [64, 32], 32, recommended=False, served=True))
    second = with_section(first, usage_section("me/a", [64, 32], 32, recommended=True, served=False))
    assert first.index("## Fewer dimensions") < first.index("## Usage") and "vllm serve me/a" in first
    assert second.count("## Fewer dimensions") == 1 and "an evaluation recommends" in second and "vllm" not in second
    assert second.startswith("---\ntags: [x]\n---\n\n# A model\n\nWhat it is.\n") and second.endswith(
        "## Usage\n\ntext\n"
    )
