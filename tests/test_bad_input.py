"""Unusual input through the real command line: either refused in one line that names it, with no file changed, or handled correctly.

A case has the files to write, the command line, and the expected result. ``{d}`` is the case's folder, ``{model}`` a good model, and
``{good}`` a good file of graded pairs.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import HYBRID, NLI, no_nan, pairs_of, read_summary, says, static_model

MTEB, STS = "evaluation/evaluate_mteb.py", "evaluation/evaluate_sts.py"
TRAIN = (
    "{model} --dev_data none --precision fp32 --per_device_train_batch_size 4 --output_dir {d}/out --train_data {d}/"
)
SCORE = "--calibration_data none --dims 32 8 --output_dir {d}/out --model_name {model} --data {d}/"
HEAD = "sentence1,sentence2,score\n"
THREE = HEAD + "word1,word2,1\nword3,word4 word1,2\nword5 word6,word6,3\n"
TRIPLETS = "anchor,positive\nword1,word2\nword3,word4\nword5,word6\nword7,word8\n"


@dataclass
class Case:
    """``said`` is what the error line must contain (see ``says``); None, with exit code 0, if the input is good."""

    script: str
    args: str
    said: str | None = None
    code: int = 1
    files: dict[str, str | bytes] = field(default_factory=dict)
    rows: int | None = None  # number of pairs that the summary must report


def usage(script: str, args: str, said: str, **files: str | bytes) -> Case:
    return Case(script, args, said, 2, {name.replace("_", "."): content for name, content in files.items()})


def config(script: str, content: str | dict[str, Any] | bytes, said: str, code: int = 2, args: str = "") -> Case:
    content = json.dumps(content) if isinstance(content, dict) else content
    return Case(script, f"--config {{d}}/c.json --output_dir {{d}}/out {args}", said, code, {"c.json": content})


def pairs(name: str, content: str | bytes, said: str | None, code: int = 1, rows: int | None = None) -> Case:
    return Case(STS, SCORE + name, said, code if said else 0, {name: content}, rows)


def training(name: str, content: str | bytes, said: str | None, more: str = "") -> Case:
    return Case(NLI, f"{TRAIN}{name} {more}", said, 1 if said else 0, {name: content})


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def mixture(**entry: Any) -> dict[str, Any]:
    return {"datasets": {"x": {"path": "{d}/x.csv", "loss": "mnrl"} | entry}}


SURROGATE = '{"sentence1": "\\ud800", "sentence2": "b", "score": 1}\n'
GOOD_ROWS = [{"sentence1": f"word{i} word{i + 9}", "sentence2": f"word{2 * i}", "score": i} for i in range(1, 9)]
MIXED = [{"sentence1": "word1", "sentence2": "word2", "score": 1}, {"sentence1": 5, "sentence2": "word2", "score": 2}]
NO_FOLDER = 1 if os.access("/proc", os.W_OK) else 2  # root may write anywhere, and fails later
MEGABYTE = "word1 word2 " * 87_000

CASES = {
    # flags
    "unknown flag": usage(NLI, "--epochs 3", "unknown flag --epochs"),
    "misspelt flag": usage(MTEB, "--model-name x", "did you mean --model_name?"),
    "flag without its value": usage(STS, "--model_name", "--model_name"),
    "two models": usage(NLI, "a b", "unexpected argument 'b'"),
    "number that is a word": usage(NLI, "--seed seven", "'seven'"),
    "infinite number": usage(NLI, "--learning_rate inf", "--learning_rate"),
    "number out of range": usage(NLI, "--learning_rate -1", "--learning_rate … above 0"),
    "switch that is neither": usage(MTEB, "--overwrite maybe --model_name x", "'maybe'"),
    "choice that is none": usage(NLI, "--precision fp8", "--precision … auto, fp32, bf16, fp16 … 'fp8'"),
    "number of thousands of digits": usage(NLI, f"--seed {'9' * 5000}", "--seed"),
    "dims zero": usage(STS, "--model_name x --task STS17 --dims 0", "--dims … positive … 0"),
    "dims negative": usage(NLI, "--matryoshka_dims 64 -8", "--matryoshka_dims … positive … -8"),
    "dims repeated": usage(HYBRID, "--matryoshka_dims 64 64", "--matryoshka_dims … 64"),
    "dims above the width": Case(STS, SCORE + "x.csv --dims 33", "33 … above … 32", 2, {"x.csv": THREE}),
    "dims unsorted": Case(STS, SCORE + "x.csv --dims 8 32 16", files={"x.csv": THREE}, code=0, rows=3),
    "neither task nor data": usage(STS, "--model_name x", "--task"),
    "task and benchmark": usage(MTEB, "--model_name x --tasks STS17 --benchmark y", "--tasks … --benchmark"),
    # configurations
    "config that is missing": usage(NLI, "--config {d}/none.json", "none.json … no such"),
    "config that is a folder": usage(NLI, "--config {d}", "is a folder"),
    "config empty": config(NLI, "", "line 1 … JSON"),
    "config truncated": config(NLI, '{"seed": 1, "mo', "line 1 … JSON"),
    "config in UTF-16": config(NLI, '{"seed": 1}'.encode("utf-16"), "line 1 … UTF-8 … 0xff"),
    "config that is a list": config(NLI, "[1]", "JSON object"),
    "config with an unknown key": config(NLI, {"sede": 1}, "'sede' … did you mean seed?"),
    "config with a key twice": config(NLI, '{"seed": 1, "seed": 1}', "'seed'"),
    "config with a wrong type": config(NLI, {"seed": "1"}, "'seed' … integer"),
    "config with null": config(NLI, {"seed": None}, "'seed' … integer … null"),
    "config with NaN": config(NLI, '{"scale": NaN}', "NaN"),
    "config nested too deeply": config(NLI, "[" * 100_000, "nested too deeply"),
    "config with a lone surrogate": config(NLI, '{"model_name": "a\\ud800"}', "character"),
    "config with a NUL": config(NLI, {"hub_model_id": "a\0b"}, "character"),
    "config with a byte-order mark": config(NLI, b'\xef\xbb\xbf{"sede": 1}', "did you mean seed?"),  # read, then refused
    "mixture without data sets": config(HYBRID, {"datasets": {}}, "'datasets' … empty"),
    "mixture with an unknown loss": config(HYBRID, mixture(loss="mnlr"), "did you mean mnrl?"),
    "mixture with an unknown key": config(HYBRID, mixture(wieght=1), "did you mean weight?"),
    "mixture with a range that is none": config(HYBRID, mixture(loss="cosent", score_range=[1, 1]), "score_range"),
    "data set outside the cache": config(HYBRID, mixture(path="../../etc"), "data set ../../etc", 1, "{model}"),
    "data set with an absolute path": config(HYBRID, mixture(path="/no/such"), "data set /no/such", 1, "{model}"),
    "data set in a URL with a token": config(HYBRID, mixture(path="https://me:secret@host/x"), "https://***@host/x", 1, "{model}"),
    "token in the training arguments": config(NLI, {"training_arguments": {"hub_token": "x"}}, "'hub_token' … checkpoint", 2, "{model} --dev_data none --train_data {good_triplets}"),
    # data: refused
    "data that is missing": Case(STS, SCORE + "none.csv", "none.csv … no such file", 2),
    "data that is a folder": Case(STS, SCORE, "the folder has no file … .csv … save_to_disk", 2),
    "data of another ending": pairs("x.xlsx", "a", "x.xlsx … .csv", 2),
    "empty csv": pairs("x.csv", "", "empty"),
    "empty jsonl": pairs("x.jsonl", "", "empty"),
    "empty parquet": pairs("x.parquet", "", "empty"),
    "header alone": pairs("x.tsv", HEAD.replace(",", "\t"), "has no rows"),
    "truncated csv": pairs("x.csv", THREE + "word1,wo", "line 5 … 2 … 3"),
    "open quote": pairs("x.csv", THREE + '"word1,word2,3\n', "line 5"),
    "truncated jsonl": pairs("x.jsonl", '{"sentence1": "a', "line 1 … JSON"),
    "truncated parquet": pairs("x.parquet", b"PAR1" + b"\0" * 40, "Parquet"),
    "csv in UTF-16": pairs("x.csv", THREE.encode("utf-16"), "UTF-8"),
    "tsv in Latin-1": pairs("x.tsv", "sentence1\tsentence2\tscore\né\tb\t1\n".encode("latin-1"), "UTF-8"),
    "jsonl in Windows-1256": pairs("x.jsonl", '{"sentence1": "سلام"}\n'.encode("cp1256"), "UTF-8"),
    "binary csv": pairs("x.csv", bytes(range(256)) * 4, "x.csv"),
    "missing column": pairs("x.csv", THREE.replace("score", "gold"), "'score' … sentence1, sentence2, gold"),
    "column twice": pairs("x.csv", THREE.replace("sentence2", "sentence1"), "column name"),
    "semicolons": pairs("x.csv", THREE.replace(",", ";"), "'sentence1;sentence2;score' … commas"),
    "null text": pairs("x.jsonl", jsonl(*GOOD_ROWS, GOOD_ROWS[0] | {"sentence1": None}), "row 9 … 'sentence1' has no value"),
    "null score": pairs("x.jsonl", jsonl(*GOOD_ROWS, GOOD_ROWS[0] | {"score": None}), "row 9 … 'score' … finite"),
    "empty text": pairs("x.csv", THREE + " ,word1,3\n", "row 4 … 'sentence1' … empty"),
    "text of zero-width spaces": pairs("x.csv", THREE + "\u200b\u200f\ufeff,word1,3\n", "row 4 … 'sentence1' … empty"),
    "score that is a word": pairs("x.csv", THREE + "word1,word2,high\n", "row 4 … 'score' … 'high'"),
    "infinite score": pairs("x.csv", THREE + "word1,word2,-inf\n", "row 4 … 'score' … finite … '-inf'"),
    "score of NaN": pairs("x.jsonl", jsonl(*GOOD_ROWS, GOOD_ROWS[0] | {"score": float("nan")}), "row 9 … 'score' … finite"),
    "score that is true": pairs("x.jsonl", jsonl(*[r | {"score": True} for r in GOOD_ROWS]), "row 1 … 'score' … True"),
    "mixed types": pairs("x.jsonl", jsonl(*MIXED), "column 'sentence1' holds text and, in row 2, a number"),
    "rows of other keys": pairs("x.jsonl", jsonl(GOOD_ROWS[0], {"sentence1": "a"}), "row 2 … 'sentence2' has no value"),
    "row that is a list": pairs("x.jsonl", jsonl(GOOD_ROWS[0]) + "[1]\n", "line 2 … JSON object"),
    "lone surrogate": pairs("x.jsonl", SURROGATE, "line 1 … 'sentence1' … surrogate"),
    "constant scores": pairs("x.csv", HEAD + "word1,word2,2\nword3,word4,2\nword5,word6,2\n", "every score is 2"),
    "one row": pairs("x.csv", HEAD + "word1,word2,2\n", "1 graded pair … 3"),
    "subset of a thousand characters": pairs("x.jsonl", jsonl(*[r | {"subset": "s" * 1000} for r in GOOD_ROWS]), "'subset' … 100"),
    "training on one row": training("x.csv", "anchor,positive\nword1,word2\n", "one usable row … 2"),
    "training on graded pairs": training("x.csv", THREE, "'anchor' … sentence1, sentence2, score"),
    "training on an empty text": training("x.csv", TRIPLETS + "word1,\n", "row 5 … 'positive' … empty"),
    "training on numbers": training("x.jsonl", jsonl({"anchor": 1, "positive": "a"}, {"anchor": 2, "positive": "b"}), "'anchor' … int64 … text"),
    "scores outside their range": Case(HYBRID, "{model} --config {d}/c.json --dev_data none --output_dir {d}/out", "row 2 … 2 … 0..1", 1, {"x.csv": THREE, "c.json": json.dumps(mixture(loss="cosent"))}),
    "labels that are words": Case(HYBRID, "{model} --config {d}/c.json --dev_data none --output_dir {d}/out", "row 1 … 'label'", 1, {"x.csv": "sentence1,sentence2,label\na,b,yes\nc,d,no\n", "c.json": json.dumps(mixture(loss="softmax"))}),
    "list as an anchor": training("x.jsonl", jsonl({"anchor": ["a", "b"], "positive": "c"}, {"anchor": ["d"], "positive": "e"}), "'anchor' holds list"),
    "numbers in a list of negatives": training("x.jsonl", jsonl({"anchor": "a", "positive": "b", "negatives": [1, 2]}, {"anchor": "c", "positive": "d", "negatives": [3]}), "row 1 … 'negative' must hold text, not 1"),
    "labels that are years": Case(HYBRID, "{model} --config {d}/c.json --dev_data none --output_dir {d}/out", "24 rows have 24 different labels", 1, {"x.jsonl": jsonl(*[{"sentence1": f"word{i}", "sentence2": "word1", "label": 2000 + i} for i in range(24)]), "c.json": json.dumps({"datasets": {"x": {"path": "{d}/x.jsonl", "loss": "softmax"}}})}),
    "subset that is a number": pairs("x.jsonl", jsonl(*[row | {"subset": 7} for row in GOOD_ROWS]), "row 1 … 'subset' must be text, not 7"),
    # data: good
    "byte-order mark": pairs("x.csv", b"\xef\xbb\xbf" + THREE.encode(), None, rows=3),
    "Windows line ends": pairs("x.csv", THREE.replace("\n", "\r\n"), None, rows=3),
    "extra columns": pairs("x.jsonl", jsonl(*[row | {"note": "x", "id": 7} for row in GOOD_ROWS]), None, rows=8),
    "duplicate pairs": pairs("x.jsonl", jsonl(*GOOD_ROWS, *GOOD_ROWS), None, rows=16),
    "right-to-left marks": pairs("x.jsonl", jsonl(*[r | {"sentence1": f"\u200f{r['sentence1']}\u202b"} for r in GOOD_ROWS]), None, rows=8),
    "a text of a megabyte": pairs("x.jsonl", jsonl(*GOOD_ROWS, GOOD_ROWS[2] | {"sentence1": MEGABYTE, "score": 0.5}), None, rows=9),
    "names with markup and dollar signs": pairs("x.jsonl", jsonl(*[r | {"subset": "$\\frac{$<script>"} for r in GOOD_ROWS]), None, rows=8),
    "training with a byte-order mark": training("x.csv", b"\xef\xbb\xbf" + TRIPLETS.encode(), None),
    "training on duplicate pairs": training("x.csv", TRIPLETS + TRIPLETS.split("\n", 1)[1], None),
    # models
    "model that is a file": Case(STS, SCORE + "x.csv --model_name {d}/x.csv", "x.csv … file", 1, {"x.csv": THREE}),
    "model folder that is empty": Case(STS, SCORE + "x.csv --model_name {d}/m", "/m … empty", 1, {"x.csv": THREE, "m/": ""}),
    "model folder of notes": Case(STS, SCORE + "x.csv --model_name {d}/m", "/m … none of modules.json … not a model", 1, {"x.csv": THREE, "m/notes.txt": "a"}),
    "training run as a model": Case(STS, SCORE + "x.csv --model_name {d}/m", "/m … whose model is in … m/final", 1, {"x.csv": THREE, "m/run.json": "{}", "m/final/": ""}),
    "model with a config that is not JSON": Case(NLI, "{d}/m --dev_data none --output_dir {d}/out --train_data {good_triplets}", "/m … config.json is not valid JSON", 1, {"m/config.json": "{"}),
    "model with modules outside its folder": Case(STS, SCORE + "x.csv --model_name {d}/m", "outside", 1, {"x.csv": THREE, "m/modules.json": '[{"idx": 0, "name": "0", "path": "../../etc", "type": "sentence_transformers.models.Transformer"}]'}),
    "image model": Case(STS, SCORE + "x.csv --model_name {d}/m", "/m … cannot be loaded", 1, {"x.csv": THREE, "m/config.json": '{"model_type": "vit", "architectures": ["ViTModel"]}'}),
    "model name that leaves the folder": Case(STS, SCORE + "x.csv --model_name a/../../b", "a/../../b … no such folder", 1, {"x.csv": THREE}),
    "model name of a thousand characters": Case(STS, SCORE + "x.csv --model_name " + "m" * 1000, "mmm", 1, {"x.csv": THREE}),
    "model in a URL with a token": Case(STS, SCORE + "x.csv --model_name https://me:hunter2@host/m", "model https://***@host/m", 1, {"x.csv": THREE}),
    # outputs
    "output that is a file": Case(STS, SCORE + "x.csv --output_dir {d}/x.csv", "x.csv", 2, {"x.csv": THREE}),
    "output below a file": Case(STS, SCORE + "x.csv --output_dir {d}/x.csv/out", "--output_dir … x.csv is a file", 2, {"x.csv": THREE}),
    "output where nothing can be written": Case(STS, SCORE + "x.csv --output_dir /proc/out", "/proc/out", NO_FOLDER, {"x.csv": THREE}),
    "output on a full device": Case(STS, SCORE + "x.csv --output_dir {d}/full", "--output_dir … full", 2, {"x.csv": THREE}),
    "training into a file": Case(NLI, TRAIN + "x.csv --output_dir {d}/x.csv", "x.csv … file", 2, {"x.csv": TRIPLETS}),
    "training below a file": Case(NLI, TRAIN + "x.csv --output_dir {d}/x.csv/out", "--output_dir … x.csv is a file", 2, {"x.csv": TRIPLETS}),
    "training where nothing can be written": Case(NLI, TRAIN + "x.csv --output_dir /proc/out", "/proc/out", NO_FOLDER, {"x.csv": TRIPLETS}),
}  # fmt: skip
USAGE = {name for name, case in CASES.items() if case.code == 2 and case.script and "{model}" not in case.args}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("good")
    static_model().save_pretrained(str(folder / "model"))
    (folder / "pairs.jsonl").write_text(jsonl(*pairs_of()))
    (folder / "triplets.csv").write_text(TRIPLETS)
    return {
        "model": str(folder / "model"),
        "good": str(folder / "pairs.jsonl"),
        "good_triplets": str(folder / "triplets.csv"),
    }


def fill(text: str, **values: str) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def is_cache(name: str) -> bool:
    """Return whether a file holds embeddings or a lock: a failed run may leave these, and the next run reuses them."""
    return "/embeddings/" in name or name.endswith(".lock")


def assert_refused(done, code: int, said: str, before: dict[str, bytes], folder: Path) -> None:
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == code, done.err[-2000:]
    assert len(errors) == 1 and says(errors[0], said), done.err[-2000:]
    assert done.err.rstrip().splitlines()[-1] == errors[0], "the error is not the last line"
    assert "Traceback" not in done.err
    assert done.out == ""
    after = contents(folder)
    assert {name: content for name, content in after.items() if not is_cache(name)} == before


@pytest.mark.parametrize("name", CASES)
def test_each_input_is_refused_in_one_line_or_right(warm, good, tmp_path, name):
    case = CASES[name]
    values = good | {"d": str(tmp_path)}
    for path, content in case.files.items():
        target = tmp_path / path
        if path.endswith("/"):
            target.mkdir(parents=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else fill(content, d=str(tmp_path)).encode())
    if "{d}/full" in case.args:
        (tmp_path / "full").symlink_to("/dev/full")
    before = contents(tmp_path)
    done = warm(case.script, *(fill(arg, **values) for arg in case.args.split()), cwd=tmp_path)
    if case.said is not None:
        assert_refused(done, case.code, case.said, before, tmp_path)
        return
    assert done.code == 0, done.err[-2000:]
    if case.rows is None:
        assert (tmp_path / "out/final/model.safetensors").exists()
        return
    table = read_summary(tmp_path / "out")
    assert set(table["n"]) == {case.rows} and table["score"].between(-1, 1).all()
    no_nan(tmp_path / "out")


def test_the_table_is_long_enough_and_has_every_kind():
    refused = [name for name, case in CASES.items() if case.said is not None]
    assert len(refused) >= 60 and len(CASES) - len(refused) >= 8
    assert {case.script for case in CASES.values()} == {NLI, HYBRID, MTEB, STS}


@pytest.mark.parametrize("name", sorted(USAGE)[::6])
def test_a_usage_error_is_the_same_from_a_cold_start_and_loads_nothing_heavy(cli, tmp_path, name):
    """The test of all cases runs with the libraries already imported; this one runs the plain command."""
    case = CASES[name]
    for path, content in case.files.items():
        (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    args = [fill(arg, d=str(tmp_path)) for arg in case.args.split()]
    before = contents(tmp_path)
    script = str(Path(__file__).resolve().parents[1] / case.script)
    done = cli("-X", "importtime", script, *args, cwd=tmp_path)
    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines() if line.startswith("import time:")}
    assert not loaded & {"torch", "transformers", "datasets", "mteb", "numpy", "pandas"}
    done.err = "".join(f"{line}\n" for line in done.err.splitlines() if not line.startswith("import time:"))
    assert_refused(done, 2, case.said, before, tmp_path)


@pytest.mark.parametrize("name", ["missing column", pytest.param("training on one row", marks=pytest.mark.slow)])
def test_a_failure_is_the_same_from_a_cold_start(cli, good, tmp_path, name):
    case = CASES[name]
    for path, content in case.files.items():
        (tmp_path / path).write_text(content)
    before = contents(tmp_path)
    done = cli(case.script, *(fill(arg, d=str(tmp_path), **good) for arg in case.args.split()))
    assert_refused(done, case.code, case.said, before, tmp_path)


# The result is correct


@pytest.mark.parametrize("odd", ["byte-order mark", "Windows line ends"])
def test_what_is_accepted_scores_as_the_plain_file_does(warm, good, tmp_path, odd):
    scores = []
    for name, content in (("plain", THREE), ("odd", CASES[odd].files["x.csv"])):
        path = tmp_path / name / "x.csv"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        done = warm(STS, *(fill(arg, d=str(path.parent), **good) for arg in (SCORE + "x.csv").split()))
        assert done.code == 0, done.err
        scores.append(read_summary(path.parent / "out")["score"].tolist())
    assert scores[0] == scores[1]


# Models with odd weights


def transformer_case(folder: Path, kind: str) -> None:
    weights = folder / "model.safetensors"
    if kind == "no weights":
        weights.unlink()
    elif kind == "truncated weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif kind == "a header of garbage":
        weights.write_bytes(b"\xff" * 100)
    elif kind == "NaN weights":
        found = load_file(weights)
        save_file({name: torch.full_like(w, torch.nan) for name, w in found.items()}, weights, {"format": "pt"})
    elif kind == "weights of another shape":
        found = load_file(weights)
        save_file({name: torch.zeros(3, 3) for name in found}, weights, {"format": "pt"})
    elif kind == "a tokenizer alone":
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith(("tokenizer", "vocab", "special")):
                path.unlink()
    elif kind == "a reranker":
        shutil.rmtree(folder / "1_Pooling")
        for name in ("modules.json", "config_sentence_transformers.json"):
            (folder / name).unlink()
        values = json.loads((folder / "config.json").read_text())
        values |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}, "label2id": {"x": 0}}
        (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("script", [STS, NLI])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no weights", "cannot be loaded"),
        ("truncated weights", "cannot be loaded"),
        ("a header of garbage", "cannot be loaded"),
        ("NaN weights", "NaN"),
        ("weights of another shape", "cannot be loaded"),
        ("a tokenizer alone", "not a model"),
        ("a reranker", "is a cross-encoder or classifier"),
    ],
)
def test_models_that_are_none(warm, good, tiny_model, tmp_path, script, kind, said):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    transformer_case(folder, kind)
    before = contents(tmp_path)
    if script == STS:
        args = ("--model_name", folder, "--data", good["good"], "--calibration_data", "none", "--dims", "64")
    else:
        args = (folder, "--train_data", good["good_triplets"], "--dev_data", "none", "--precision", "fp32")
    done = warm(script, *args, "--output_dir", tmp_path / "out")
    assert_refused(done, 1, said, before, tmp_path)


def test_an_output_on_a_full_disk_keeps_what_is_there(warm, good, tmp_path):
    """Writes to a small file system of its own, if one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=600k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("no file system can be mounted here: it takes root")
    try:
        (disk / "out").mkdir()
        kept = "model,revision,dtype,task,subset,dim\nx,1,float32,t,s,64\n"
        (disk / "out/summary.csv").write_text(kept)
        done = warm(
            STS,
            "--model_name",
            good["model"],
            "--data",
            good["good"],
            "--dims",
            "32",
            "8",
            "--output_dir",
            disk / "out",
        )
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert done.code == 1 and len(errors) == 1 and "No space left" in errors[0], done.err[-2000:]
        assert "Traceback" not in done.err
        rows = list(csv.reader((disk / "out/summary.csv").read_text().splitlines()))
        assert rows[0][:2] == ["model", "revision"] and ["x", "1"] in [row[:2] for row in rows]
    finally:
        os.system(f"umount {disk}")
