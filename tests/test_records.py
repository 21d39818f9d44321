"""Run records: their content, and that a reader never sees an incomplete one."""

from __future__ import annotations

import json
import os
import platform
import stat
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from common.errors import RunError, UsageError, one_line, run
from common.records import RunRecord, command_line, git_state, hardware, versions, write_atomically
from tests.helpers import ROOT


def test_a_record_says_what_the_run_was_made_with(tmp_path):
    path = tmp_path / "deep" / "run.json"
    record = RunRecord(path, {"seed": 1, "text": "عربي"}, seed=1)
    record.write()
    started = json.loads(path.read_text(encoding="utf-8"))
    assert started["status"] == "running"
    record.finish(scores={"x": 0.5})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["status"] == "finished" and found["scores"] == {"x": 0.5} and found["seed"] == 1
    assert found["config"] == {"seed": 1, "text": "عربي"}
    assert found["started"] == started["started"] and found["wall_time_s"] >= started["wall_time_s"] >= 0
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["python"] == platform.python_version()
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["cpu"]


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="not x86-64 Linux")
def test_the_record_has_the_processor_s_extensions():
    expected = {
        "avx2": torch.cpu._is_avx2_supported(),
        "avx512f": torch.cpu._is_avx512_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_tile": torch.cpu._is_amx_tile_supported(),
    }
    recorded = hardware()["cpu_features"]
    assert {name: name in recorded for name in expected} == expected


def test_versions_are_of_the_packages_that_scores_depend_on():
    assert {"torch", "transformers", "sentence-transformers", "datasets", "mteb", "numpy", "scipy"} <= set(versions())


def test_the_command_is_shown_so_that_it_can_be_typed(monkeypatch):
    script = ROOT / "training" / "matryoshka_nli.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--output_dir", "a folder", "--seed", "1"])
    assert command_line() == "python training/matryoshka_nli.py --output_dir 'a folder' --seed 1"


def test_git_state_follows_the_checkout(tmp_path, monkeypatch):
    def git(*args):
        return subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True, capture_output=True
        ).stdout.decode()

    monkeypatch.setattr("common.records.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == {}
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "new").write_text("not tracked")
    assert git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("2")
    assert git_state() == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state() == {}


def test_a_file_is_replaced_atomically(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RunError("it is wrong"), 1, "error: it is wrong\n"),
        (UsageError("it is\nwrong"), 2, "error: it is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (FileNotFoundError(2, "No such file", "x.csv"), 1, "error: [Errno 2] No such file: 'x.csv'\n"),
        (ModuleNotFoundError("No module named 'mteb'", name="mteb"), 1, "mteb is not installed: run `pip install"),
    ],
)
def test_how_a_run_ends(capsys, error, code, said):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    out, err = capsys.readouterr()
    assert stop.value.code == code and said in err and out == "" and err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ModuleNotFoundError("No module named 'training.x'", name="training.x")]
)
def test_our_own_mistakes_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        run(main)
    assert run(lambda: None) is None


def test_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 50), 10) == "x" * 9 + "…"
