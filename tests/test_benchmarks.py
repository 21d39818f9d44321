"""The benchmarks: each shows its command, accepts --output_dir and writes a record. Two run here, at a tiny size."""

from __future__ import annotations

import ast
import json
import re

import pytest

from benchmarks.skeleton import markdown_table, measure_in_new_process
from common.errors import RunError
from tests.helpers import ROOT

SCRIPTS = sorted(
    path
    for path in (ROOT / "benchmarks").glob("*.py")
    if re.search(r"^    run\(main\)$", path.read_text(encoding="utf-8"), re.MULTILINE)
)
HARDWARE = {"cpu", "cpu_features", "cores", "system", "memory_gib"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_is_the_docstring_with_the_command_and_the_default_folder(call, path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert f"\n    python benchmarks/{path.name}" in docstring
    done = call(f"benchmarks/{path.name}", "--help")
    assert done.code == 0 and docstring.splitlines()[0] in done.out
    shown = " ".join(done.out.split())
    assert "--output_dir OUTPUT_DIR" in shown and f"(default: results/{path.stem})" in shown


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_flags_of_its_docstring_and_of_the_reference_records_exist(call, path):
    commands = re.findall(rf"python benchmarks/{path.name}.*", path.read_text(encoding="utf-8"))
    for record in (ROOT / "results/reference").rglob("*.json"):
        command = json.loads(record.read_text(encoding="utf-8")).get("command", "")
        if f"benchmarks/{path.name}" in command:
            commands.append(command)
    shown = call(f"benchmarks/{path.name}", "--help").out
    for command in commands:
        for flag in re.findall(r"(?<= )--\w+", command.partition(" -- ")[0]):
            assert re.search(rf"{flag}\b", shown), flag


def test_a_wrong_flag_ends_in_one_line(fails):
    fails(2, "--outptu_dir", "benchmarks/eval_coverage.py", "--outptu_dir", "x")
    fails(2, "model_name", "benchmarks/train_throughput.py")


def checked_record(folder, name: str) -> dict:
    """The record of a run, which has what every record has."""
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["wall_time_s"] > 0
    assert {"command", "started", "git", "config"} <= record.keys()
    assert {"python", "torch", "sentence-transformers"} <= record["versions"].keys()
    assert record["hardware"].keys() >= HARDWARE
    return record


def test_a_run_leaves_a_table_and_a_record(call, tmp_path):
    flags = ("--trials", "20", "--pairs", "60", "--correlations", "0.5", "--output_dir", tmp_path)
    done = call("benchmarks/eval_coverage.py", *flags)
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coverage.json", "coverage.md"]
    assert done.out.strip() == (tmp_path / "coverage.md").read_text(encoding="utf-8").strip()
    record = checked_record(tmp_path, "coverage")
    assert record["command"].startswith("python benchmarks/eval_coverage.py --trials 20")
    assert record["config"] == {
        "output_dir": str(tmp_path),
        "trials": 20,
        "pairs": 60,
        "correlations": [0.5],
        "seed": 1,
    }
    [result] = record["results"]
    assert result["coverage"] + result["below"] + result["above"] == pytest.approx(100)
    assert result["coverage"] >= 70  # 7 or more of 20 intervals at 95% miss with a probability of 1 in 30,000


@pytest.mark.slow
def test_a_script_measures_in_a_new_process(warm, tmp_path):
    flags = ("--sizes", "200", "--width", "16", "--dims", "16", "8", "--words", "5", "--output_dir", tmp_path)
    done = warm("benchmarks/eval_memory.py", *flags)
    assert done.code == 0, done.err
    record = checked_record(tmp_path, "memory")
    [result] = record["results"]
    assert result["texts"] == 200 and result["score"] > 0.9  # each query is a text of the corpus
    assert "| 200 | 0 |" in (tmp_path / "memory.md").read_text(encoding="utf-8")


def fail(how: str) -> dict:
    import os

    if how == "dies":
        os._exit(9)
    raise RunError("no data")


@pytest.mark.parametrize(("how", "message"), [("dies", "how.*dies"), ("raises", "no data")])
def test_a_measurement_that_fails_says_so(how, message):
    with pytest.raises(RunError, match=message):
        measure_in_new_process(fail, how=how)


def test_tables_align_numbers_to_the_right():
    table = markdown_table(["run", "kind", "s"], [["a", "b", "1"]], text_columns=2)
    assert table == "| run | kind | s |\n|---|---|---:|\n| a | b | 1 |\n"


def test_the_profile_of_a_step_adds_up_and_finds_the_matrix_products():
    import torch

    from benchmarks.train_throughput import profile_parts

    left, right = torch.ones(1000, 1000, requires_grad=True), torch.ones(1000, 1000)

    def step():
        torch.nn.functional.gelu((left @ right)[:5]).sum().backward()

    step()  # the first call allocates and compiles
    with torch.profiler.profile() as profile:
        for _ in range(5):
            step()
    shares = profile_parts(profile.key_averages())
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert next(iter(shares)) == "matrix products" and 0 < shares["GELU, softmax, layer norm"] < 0.5


def test_repeated_data_has_no_text_twice():
    from datasets import Dataset

    from benchmarks.train_throughput import repeat

    dataset = Dataset.from_dict({"anchor": ["a", "b", "c"], "positive": ["d", "e", "f"]})
    repeated = repeat(dataset, 8)
    assert repeated["anchor"][:] == ["a", "b", "c", "1 a", "1 b", "1 c", "2 a", "2 b"]
    assert repeated["positive"][:] == ["d", "e", "f", "1 d", "1 e", "1 f", "2 d", "2 e"]
    assert repeat(dataset, 2)["anchor"][:] == ["a", "b"]
