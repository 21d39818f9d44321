"""The diffs of docs/extending.md apply to this repository, and what they add works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT, classes, scored, write

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the repository with both diffs."""
    copy = tmp_path_factory.mktemp("extended") / "repository"
    for folder in ("common", "configs", "data", "evaluation", "training"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        done = subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=copy, capture_output=True)
        assert done.returncode == 0, f"{done.stderr}\nupdate the diff in docs/extending.md"
    return copy


def test_there_is_a_diff_for_a_loss_and_one_for_a_section():
    assert len(DIFFS) == 2 and "BUILDERS" in DIFFS[0] and "SECTIONS" in DIFFS[1]


def test_the_loss_trains(extended, warm, groups, tiny_model, tmp_path):
    rows = [row | {"label": int(row["label"] == 0)} for row in classes(groups)[:24]]
    entry = {"path": str(write(tmp_path / "pairs.jsonl", rows)), "loss": "contrastive"}
    config = {"datasets": {"pairs": entry}, "dev_data": ["none"], "max_steps": 2, "per_device_train_batch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | {"matryoshka_dims": [64, 16]}))
    flags = ("--config", tmp_path / "config.json", "--output_dir", tmp_path / "run")
    done = warm(extended / "training/hybrid_training.py", tiny_model, *flags, cwd=extended)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == str(tmp_path / "run/final")
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["datasets"]["pairs"]["loss"] == "contrastive"


def test_the_section_is_in_the_report(extended, warm, pairs, tiny_model, tmp_path):
    data = write(tmp_path / "pairs.jsonl", scored(pairs, "en-en", slice(30)))
    flags = ("--data", data, "--dims", "64", "16", "--calibration_data", "none", "--output_dir", tmp_path / "out")
    done = warm(extended / "evaluation/evaluate_sts.py", "--model_name", tiny_model, *flags, cwd=extended)
    assert done.code == 0, done.err
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    section = report[report.index("## Memory of a million vectors") :]
    assert re.search(r"\| 64 \| 0\.24 \|", section) and re.search(r"\| 16 \| 0\.06 \|", section)
    assert "Memory of a million vectors" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
