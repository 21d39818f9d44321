"""The recipes under configs/: each parses, and each trains a few steps with the command that the README gives."""

from __future__ import annotations

import json
import math

import pytest

from common.config import load_config, read_json
from tests.conftest import ROOT
from training.utils.options import HybridConfig, MatryoshkaNLIConfig, check_mixture, check_training

NLI, HYBRID = "training/matryoshka_nli.py", "training/hybrid_training.py"
RECIPES = {
    "gate_arabert.json": HYBRID,
    "hybrid_arabert.json": HYBRID,
    "crosslingual.json": HYBRID,
    "static.json": NLI,
    "quickstart.json": HYBRID,
}
SMALL = ("--matryoshka_dims", "64", "16", "--per_device_train_batch_size", "8", "--max_train_samples", "24")
STATIC = ("--static_embedding_dim", "64", "--static_vocab_size", "300")


def config_of(name: str):
    own, sibling = (
        (HybridConfig, MatryoshkaNLIConfig) if RECIPES[name] == HYBRID else (MatryoshkaNLIConfig, HybridConfig)
    )
    arguments = ["--config", str(ROOT / "configs" / name)]
    return load_config(own, "training_config.json", "", arguments, (sibling,), positional="model_name")[0]


def test_every_recipe_is_tried_here():
    found = {path.name for path in (ROOT / "configs").glob("*.json")}
    assert found == {*RECIPES, "training_config.json", "eval_config.json"}


@pytest.mark.parametrize("name", RECIPES)
def test_it_parses(name):
    config = config_of(name)
    check_training(config)
    if RECIPES[name] == HYBRID:
        check_mixture(config)


@pytest.mark.parametrize("name", RECIPES)
def test_the_readme_gives_its_command(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"python {RECIPES[name]} --config configs/{name}" in readme


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_a_few_steps(call, tmp_path, name):
    config, folder = config_of(name), tmp_path / "run"
    flags = ("--max_steps", "4", "--logging_steps", "1", "--eval_steps", "2", "--output_dir", folder)
    static = STATIC if config.model_name == "static" else ()
    done = call(RECIPES[name], "--config", ROOT / "configs" / name, *SMALL, *static, *flags)
    assert done.code == 0, done.err
    assert done.out.strip() == str(folder / "final")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["steps"] == 4
    assert record["config"]["model_name"] == read_json(ROOT / "configs" / name)["model_name"]
    if RECIPES[name] == HYBRID:
        assert set(record["datasets"]) == set(config.datasets)
    history = json.loads((folder / "checkpoint-4/trainer_state.json").read_text())["log_history"]
    losses = [value for entry in history for key, value in entry.items() if key.startswith("loss_")]
    assert len(losses) >= 4 * 2 and all(map(math.isfinite, losses))
    assert any(key.endswith("_self") for entry in history for key in entry) == (config.self_distillation_weight > 0)
