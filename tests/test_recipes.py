"""The recipes under configs/ and the rows of benchmarks/recipes.json: each parses; each recipe trains a few steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.recipes import ROWS as TABLE
from benchmarks.recipes import resolve
from common.config import load_config, read_json
from tests.helpers import ROOT
from training.utils.option_checks import check_mixture, check_training
from training.utils.options import HybridConfig, MatryoshkaNLIConfig

NLI, HYBRID = "training/matryoshka_nli.py", "training/hybrid_training.py"
RECIPES = {
    "multilingual.json": HYBRID,
    "arabic.json": HYBRID,
    "gate_arabert.json": HYBRID,
    "hybrid_arabert.json": HYBRID,
    "crosslingual.json": HYBRID,
    "static.json": NLI,
    "quickstart.json": HYBRID,
}
ROWS = json.loads(TABLE.read_text(encoding="utf-8"))
SMALL = ("--matryoshka_dims", "64", "16", "--per_device_train_batch_size", "8", "--max_train_samples", "24")
STATIC = ("--static_embedding_dim", "64", "--static_vocab_size", "300")


def checked(path: Path, script: str):
    """The configuration of a script with a file, as the script checks it."""
    cls = HybridConfig if script == HYBRID else MatryoshkaNLIConfig
    config = load_config(cls, "", ["--config", str(path)], positional="model_name")
    check_training(config)
    if script == HYBRID:
        check_mixture(config)
    return config


def test_every_recipe_is_tried_here():
    found = {path.name for path in (ROOT / "configs").glob("*.json")}
    assert found == {*RECIPES, "training_config.json", "eval_config.json", "export_config.json", "mining_config.json"}


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "model" not in row])
def test_the_rows_of_the_table_parse(tmp_path, name):
    row, whole = ROWS[name], resolve(ROWS[name], ROWS)
    file = tmp_path / "row.json"
    file.write_text(json.dumps(whole["config"]), encoding="utf-8")
    config = checked(file, whole["script"])
    for key, value in row.get("config", {}).items():
        if key not in ("datasets", "dev_datasets"):
            assert getattr(config, key) == value
    assert not set(row.get("without", ())) & set(getattr(config, "datasets", ()))
    assert row.get("against", name) in ROWS


@pytest.mark.parametrize("name", RECIPES)
def test_the_readme_gives_its_command(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if name == "quickstart.json":  # a script runs it
        assert f"{RECIPES[name]} --config configs/{name}" in (ROOT / "scripts/quickstart.sh").read_text(
            encoding="utf-8"
        )
        assert "bash scripts/quickstart.sh" in readme
    else:
        assert f"python {RECIPES[name]} --config configs/{name}" in readme


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_a_few_steps(call, tmp_path, name):
    config, folder = checked(ROOT / "configs" / name, RECIPES[name]), tmp_path / "run"
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
