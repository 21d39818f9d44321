"""The shell scripts, at tiny size, with the interpreter that runs the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import ROOT, says

FAST = ("--per_device_train_batch_size", "16", "--precision", "fp32", "--dev_data", "none", "--max_steps", "2")


@pytest.fixture(scope="session")
def bash(hub):
    def run(script: str | Path, *args: str | Path, cwd: Path, **env: str):
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / script), *map(str, args)],
            cwd=cwd,
            env=os.environ | {"PYTHON": sys.executable} | env,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


def test_run_training_trains_and_evaluates_what_was_trained(bash, warm_python, tiny_model, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(warm_python)} "$@"\n')
    python.chmod(0o755)
    flags = (*FAST, "--output_dir", "my run")
    done = bash("run_training.sh", tiny_model, *flags, cwd=tmp_path, PYTHON=str(python), NPROC_PER_NODE="1")
    assert done.returncode == 0, done.stderr
    assert "my run/final" in done.stdout.splitlines()
    table = pd.read_csv(tmp_path / "results/summary.csv")
    assert set(table["task"]) == {"STS17", "STS22", "STS22.v2"} and set(table["dim"]) == {64}
    assert set(table["model"]) == {"local/my_run"}
    assert "| local/my_run | STS17 | ar-ar |" in done.stdout


def test_run_training_with_another_script_stops_where_that_fails(bash, tmp_path):
    for args, code, said in (
        (["--no_such_flag", "1"], 2, "error: unknown flag --no_such_flag"),
        (["--language", "ar"], 2, "error: unknown flag --language"),  # it belongs to matryoshka_nli.py
    ):
        done = bash("run_training.sh", *args, cwd=tmp_path, SCRIPT="training/hybrid_training.py", NPROC_PER_NODE="1")
        assert done.returncode == code and said in done.stderr and done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_run_evaluation_passes_its_arguments_on(bash, tmp_path):
    """The interpreter only prints its arguments: evaluate_mteb.py itself runs in the test of run_training.sh above."""
    printer = tmp_path / "python"
    printer.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    printer.chmod(0o755)
    flags = ("--tasks", "STS17", "--dims", "32", "--output_dir", "a folder")
    done = bash("run_evaluation.sh", "a model", *flags, cwd=tmp_path, PYTHON=str(printer))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ROOT / "evaluation/evaluate_mteb.py"), "--model_name", "a model", *flags]


@pytest.mark.parametrize("script", ["training/hybrid_training.py", str(ROOT / "training/hybrid_training.py")])
def test_run_training_shows_the_help_of_the_script_and_evaluates_nothing(bash, tmp_path, script):
    done = bash("run_training.sh", "--help", cwd=tmp_path, SCRIPT=script, NPROC_PER_NODE="1")
    assert done.returncode == 0 and done.stdout.startswith("usage: hybrid_training.py") and done.stderr == ""


def test_run_evaluation_with_flags_alone_scores_the_released_model(bash, tmp_path):
    printer = tmp_path / "python"
    printer.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    printer.chmod(0o755)
    done = bash("run_evaluation.sh", "--tasks", "STS17", cwd=tmp_path, PYTHON=str(printer))
    released = "Omartificial-Intelligence-Space/GATE-AraBert-v0"
    assert done.stdout.splitlines()[1:] == ["--model_name", released, "--tasks", "STS17"]


def test_run_evaluation_without_arguments_means_the_released_model(bash, tmp_path):
    done = bash("run_evaluation.sh", cwd=tmp_path)  # the tests' Hub does not have the released model
    assert done.returncode == 1
    assert says(done.stderr, "error: … Omartificial-Intelligence-Space/GATE-AraBert-v0 … not found")


@pytest.mark.parametrize("script", ["setup.sh", "quickstart.sh"])
def test_an_old_python_is_refused(bash, tmp_path, script):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.1; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    done = bash(script, cwd=tmp_path, PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert done.returncode == 1 and says(done.stderr, "Python 3.11 … Python 3.9.1")
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
def test_run_training_on_two_processes(bash, tiny_model, tmp_path):
    done = bash("run_training.sh", tiny_model, *FAST, "--output_dir", "run", cwd=tmp_path, NPROC_PER_NODE="2")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "finished" and record["steps"] == 2
    assert set(pd.read_csv(tmp_path / "results/summary.csv")["model"]) == {"local/run"}


@pytest.mark.slow
def test_the_quick_start_in_a_copy_of_the_repository(bash, tmp_path):
    """Everything but the installation: the copy uses this environment, marked as installed."""
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns(".git", ".venv*", "output", "results", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignore)
    venv = copy / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin/python").chmod(0o755)
    sums = subprocess.run("cat requirements*.txt | cksum | cut -d' ' -f1", shell=True, cwd=copy, capture_output=True)
    (venv / f".installed-{sums.stdout.decode().strip()}-requirements.txt").touch()
    done = bash(copy / "scripts/quickstart.sh", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "installing" not in done.stderr
    assert "not on an MTEB task" in done.stdout
    table = pd.read_csv(copy / "results/quickstart/summary.csv")
    assert set(table["subset"]) == {"ar-ar", "en-ar", "en-en"}
    assert set(table["dim"]) == {768, 512, 256, 128, 64}
    scores = table.pivot(index=["subset", "dim"], columns="model", values="cosine_spearman")
    lift = scores["local/quickstart"] - scores["local/quickstart-untrained"]
    assert (lift["en-ar"] > 0.2).all() and (lift["en-en"] > 0).all() and (lift > -0.05).all(), scores
    assert (copy / "results/quickstart/plot.png").stat().st_size > 5000
