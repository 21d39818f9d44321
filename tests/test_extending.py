"""The diffs of docs/extending.md apply to this repository, and what they add works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
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
        assert done.returncode == 0, f"{done.stderr}\nmake the diff of docs/extending.md anew"
    return copy


def run(copy: Path, *command: object) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=copy, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_there_is_a_diff_for_a_loss_and_one_for_a_section():
    assert len(DIFFS) == 2 and "BUILDERS" in DIFFS[0] and "SECTIONS" in DIFFS[1]


def test_the_loss_trains(extended, hub, groups, tiny_model, tmp_path):
    rows = [row | {"label": int(row["label"] == 0)} for row in classes(groups)[:24]]
    entry = {"path": str(write(tmp_path / "pairs.jsonl", rows)), "loss": "contrastive"}
    config = {"datasets": {"pairs": entry}, "dev_data": ["none"], "max_steps": 2, "per_device_train_batch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | {"matryoshka_dims": [64, 16]}))
    flags = ("--config", tmp_path / "config.json", "--output_dir", tmp_path / "run")
    done = run(extended, "training/hybrid_training.py", tiny_model, *flags)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run/final")
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["datasets"]["pairs"]["loss"] == "contrastive"


def test_the_section_is_in_the_report(extended, hub, pairs, tiny_model, tmp_path):
    data = write(tmp_path / "pairs.jsonl", scored(pairs, "en-en", slice(30)))
    flags = ("--data", data, "--dims", "64", "16", "--calibration_data", "none", "--output_dir", tmp_path / "out")
    run(extended, "evaluation/evaluate_sts.py", "--model_name", tiny_model, *flags)
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    section = report[report.index("## Memory of a million vectors") :]
    assert re.search(r"\| 64 \| 0\.24 \|", section) and re.search(r"\| 16 \| 0\.06 \|", section)
    assert "Memory of a million vectors" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
