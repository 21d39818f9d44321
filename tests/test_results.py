"""The files of an evaluation: complete, never mixed up, computed again if corrupt, with a reason for every missing number."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from common.models import hash_folder
from evaluation.utils.scoring.embeddings import EmbeddingStore
from tests.helpers import (
    ROOT,
    Counting,
    no_nan,
    pairs_of,
    read_summary,
    scored,
    static_model,
    texts_of,
    write_dataset,
    write_pairs,
)

MTEB, STS = "evaluation/evaluate_mteb.py", "evaluation/evaluate_sts.py"
QUICK = ("--calibration_data", "none", "--dims", "64", "16")


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> Path:
    """A model that loads and encodes in no time."""
    folder = tmp_path_factory.mktemp("static") / "model"
    static_model().save_pretrained(str(folder))
    return folder


def of(static, data, out, *more):
    return (STS, "--model_name", static, "--data", data, "--calibration_data", "none", "--dims", "32", "8", *more,
            "--output_dir", out)  # fmt: skip


# Damage


@pytest.fixture
def done(call, static, tmp_path):
    """An evaluation, and how to run it again."""
    data, out = write_pairs(tmp_path / "mine.jsonl", pairs_of()), tmp_path / "out"

    def again(*more):
        result = call(*of(static, data, out, *more))
        assert result.code == 0, result.err
        return result

    assert "already exist" not in again().out
    assert "already exist" in again().out
    return out, again


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])


def damage_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_cut, damage_bits])
@pytest.mark.parametrize("name", ["table.md", "plot.png", "report.html", "report.md", "errors.html", "errors.csv"])
def test_a_corrupt_output_is_set_aside_and_computed_again(done, name, damage):
    out, again = done
    whole = (out / name).read_bytes()
    damage(out / name)
    content = (out / name).read_bytes()
    result = again()
    assert "already exist" not in result.out and f"{out / name} is corrupt" in result.err
    assert (out / f"{name}.corrupt").read_bytes() == content
    if name != "plot.png" and not name.startswith("report"):  # these name the command, or the time
        assert (out / name).read_bytes() == whole
    assert "already exist" in again().out


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"status": "finished"}'])
def test_a_corrupt_record_is_never_taken_for_a_finished_run(done, content):
    out, again = done
    (out / "run.json").write_bytes(content)
    result = again()
    assert "already exist" not in result.out
    if content != b'{"status": "finished"}':  # complete, but not the record of this run
        assert f"{out / 'run.json'} is corrupt" in result.err and (out / "run.json.corrupt").read_bytes() == content
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_a_corrupt_summary_is_computed_again(done):
    out, again = done
    whole = (out / "summary.csv").read_bytes()
    damage_cut(out / "summary.csv")
    assert f"{out / 'summary.csv'} is corrupt" in again().err
    assert (out / "summary.csv").read_bytes() == whole and (out / "summary.csv.corrupt").exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"scores": 1}', b"[1]"])
def test_a_corrupt_result_file_is_computed_again(done, content):
    out, again = done
    path = next(out.rglob("embed_dim_8/mine.json"))
    whole = path.read_bytes()
    path.write_bytes(content)
    result = again("--overwrite")
    assert path.read_bytes() == whole
    if content != b'{"scores": 1}':
        assert f"{path} is corrupt" in result.err
        assert path.with_name("mine.json.corrupt").read_bytes() == content


@pytest.mark.parametrize("suffix", [".f32", ".digests"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_corrupt_embedding_is_never_used(tmp_path, caplog, suffix, place):
    model = static_model()
    texts = texts_of(50)
    expected = EmbeddingStore(model, tmp_path / "s").encode(texts).copy()
    path = next((tmp_path / "s").glob(f"*{suffix}"))
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 0x40
    path.write_bytes(content)
    again = EmbeddingStore(model, tmp_path / "s")
    np.testing.assert_array_equal(again.encode(texts), expected)
    # elsewhere it is a text's digest, which then belongs to a text that nobody asks for
    if place == -1 or suffix == ".f32":
        assert again.encoded == len(set(texts)) and "is corrupt" in caplog.text
        assert next((tmp_path / "s").glob(f"*{suffix}.corrupt")).read_bytes() == content


def test_embeddings_that_another_process_computed_again_are_read_again(tmp_path):
    """The files are as long as before and hold the same texts, in another order."""
    model, texts = static_model(), texts_of(20)
    first, second = (EmbeddingStore(model, tmp_path / "s") for _ in range(2))
    expected = first.encode(texts).copy()
    second.clear()
    second.encode(texts[::-1])
    counting = Counting(model)
    np.testing.assert_array_equal(first.encode(texts), expected)
    assert not counting.texts


@pytest.mark.parametrize("content", [b'{"task_name": "STS17", "scores"', b"\xff"])
def test_a_corrupt_result_of_mteb_is_set_aside_and_scored_again(call, tiny_model, tmp_path, content):
    flags = (MTEB, "--model_name", tiny_model, "--tasks", "STS17", "--subsets", "en-en", *QUICK[:2], "--dims", "8")
    flags += ("--output_dir", tmp_path)
    assert call(*flags).code == 0
    summary = (tmp_path / "summary.csv").read_bytes()
    path = next(p for p in (tmp_path / "mteb").rglob("STS17.json") if "embed_dim_8" in str(p))
    whole = json.loads(path.read_text())
    path.write_bytes(content)
    (tmp_path / "run.json").unlink()
    result = call(*flags)
    assert result.code == 0, result.err
    assert f"{path} is corrupt" in result.err and path.with_name("STS17.json.corrupt").read_bytes() == content
    assert json.loads(path.read_text())["scores"] == whole["scores"]
    assert (tmp_path / "summary.csv").read_bytes() == summary
    assert not [p for p in (tmp_path / "mteb").rglob("*") if p.name.startswith(".") and p.is_dir()]


# Concurrent runs


def test_two_evaluations_into_one_folder_lose_nothing(warm_python, tiny_model, tmp_path):
    """Two processes, each with a subset of one task, one model: all their files are shared."""
    out, processes = tmp_path / "out", []
    flags = ("--model_name", tiny_model, "--tasks", "STS17", *QUICK[:2], "--dims", "32", "8", "--output_dir", out)
    for subset in ("ar-ar", "en-en"):
        command = [*warm_python, ROOT / MTEB, *flags, "--subsets", subset]
        processes.append(
            subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    table = read_summary(out)
    assert {(row.subset, row.dim) for row in table.itertuples()} == {
        (s, d) for s in ("ar-ar", "en-en") for d in (64, 32, 8)
    }
    for path in (out / "mteb").rglob("STS17.json"):
        entries = json.loads(path.read_text())["scores"]["test"]
        assert {entry["hf_subset"] for entry in entries} == {"ar-ar", "en-en"}
    last = json.loads((out / "run.json").read_text())["config"]["subsets"]
    assert f"| STS17 | {last[0]} |" in (out / "table.md").read_text()  # the table is that of the record
    assert not list(out.rglob("*.corrupt"))


def test_result_files_keep_the_subsets_of_earlier_runs(call, static, tmp_path):
    data = write_pairs(tmp_path / "mine.jsonl", pairs_of(subset="a") + pairs_of(subset="b", seed=1))
    for subset in "ab":
        assert call(*of(static, data, tmp_path / "out", "--subsets", subset)).code == 0
    for path in (tmp_path / "out").rglob("mine.json"):
        assert [entry["hf_subset"] for entry in json.loads(path.read_text())["scores"]] == ["a", "b"]


def test_subsets_of_several_sizes_are_compared(call, static, tmp_path):
    data = write_pairs(tmp_path / "mine.jsonl", pairs_of(40, "ar-ar") + pairs_of(30, "en-ar", seed=1))
    result = call(*of(static, data, tmp_path / "out"))
    assert result.code == 0, result.err
    assert "gap, en-ar minus ar-ar" in (tmp_path / "out/report.md").read_text()


def test_scores_of_changed_data_keep_nothing_of_the_old(call, static, tmp_path):
    """Another model was compared on the old data, and the file has the name of an mteb task."""
    twin, out = tmp_path / "twin", tmp_path / "out"
    static_model(seed=1).save_pretrained(str(twin))
    data = write_pairs(tmp_path / "STS17.jsonl", pairs_of(subset="ar-ar"))
    assert call(*of(twin, data, out, "--model_name", twin, static)).code == 0
    assert (read_summary(out).set_index("model").loc["local/model", "compared_with"] != "").all()
    write_pairs(data, pairs_of(seed=7, subset="ar-ar"))
    assert call(*of(static, data, out)).code == 0
    ours = read_summary(out).set_index("model").loc["local/model"]
    assert ours[["compared_with", "diff_model", "p_model"]].isna().all(axis=None)
    assert set(ours["task"]) == {"STS17.jsonl"}  # neither taken for mteb's task nor compared with its published scores
    assert "ublished" not in (out / "report.md").read_text()


def test_nothing_is_left_of_an_earlier_run_and_no_file_of_anothers_goes(call, static, tmp_path):
    data, out = write_pairs(tmp_path / "mine.jsonl", pairs_of()), tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "plots/mine.svg").write_text("mine")
    flags = (STS, "--model_name", static, "--data", data, "--dims", "32", "8", "--output_dir", out)
    assert call(*flags).code == 0
    fitted = {"baselines.csv", "shortlist.csv", "plots/shortlist-1.svg"}
    assert all((out / name).exists() for name in fitted)
    assert call(*flags, "--calibration_data", "none").code == 0
    assert not [name for name in fitted if (out / name).exists()]
    assert (out / "plots/scores-1.svg").exists() and (out / "plots/mine.svg").read_text() == "mine"


# Identities


@pytest.mark.parametrize("again", ["all-MiniLM-L6-v2", "the model itself"])
def test_a_baseline_is_held_against_the_model_and_never_recommended(call, static, tmp_path, again):
    rows, model, out = pairs_of(), SentenceTransformer(str(static), device="cpu"), tmp_path / "out"
    first, second = (model.encode([row[side] for row in rows]) for side in ("sentence1", "sentence2"))
    for row, score in zip(rows, model.similarity_pairwise(first, second).tolist(), strict=True):
        row["score"] = score  # otherwise the model itself would score too low to be recommended
    data = write_pairs(tmp_path / "mine.jsonl", rows)
    baseline = static if again == "the model itself" else again
    result = call(*of(static, data, out, "--baseline_model", baseline))
    assert result.code == 0, result.err
    report = (out / "report.md").read_text()
    answered = [line for line in report.split("##")[1].splitlines() if line.startswith("**")]
    assert len(answered) == 1 and "local/model" in answered[0]
    assert ("all-MiniLM-L6-v2 (baseline)" in report) == (baseline != static)


def test_the_report_says_which_methods_score_higher_than_the_prefix(call, static, tmp_path):
    rows, model = pairs_of(), SentenceTransformer(str(static))
    first, second = (
        model.encode([row[side] for row in rows], convert_to_tensor=True) for side in ("sentence1", "sentence2")
    )
    similarities = torch.cosine_similarity(first, second).tolist()  # with these scores, the full width is perfect
    data = write_pairs(tmp_path / "mine.jsonl", [row | {"score": s} for row, s in zip(rows, similarities, strict=True)])
    texts = ROOT / "data/sample/nli_groups.jsonl"
    result = call(*of(static, data, tmp_path / "out", "--calibration_data", texts))
    assert result.code == 0, result.err
    table = pd.read_csv(tmp_path / "out/baselines.csv").pivot(index="method", columns="dim", values="score")
    higher = {method for method in table.index if table.loc[method, 8] > table.loc["prefix", 8]}
    said = re.search(r"other methods score higher than the prefix \((.*?)\)", (tmp_path / "out/report.md").read_text())
    assert higher == set(re.findall(r"([A-Za-z ]+?) at 8", said[1].replace("; ", ";")) if said else ())
    assert higher  # the vectors of this model are random, so its prefix is no better than other dimensions


def test_models_with_the_same_name_are_distinguished_in_the_record(call, static, tmp_path):
    data, other = write_pairs(tmp_path / "mine.jsonl", pairs_of()), tmp_path / "other/model"
    static_model(seed=1).save_pretrained(str(other))
    result = call(*of(static, data, tmp_path / "out", "--model_name", static, other))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert sorted(record["models"].values()) == sorted(map(hash_folder, (static, other)))
    assert record["models"].keys() == record["texts_encoded"].keys()


def test_result_files_keep_precisions_apart(call, static, tmp_path):
    data = write_pairs(tmp_path / "mine.jsonl", pairs_of(subset="a") + pairs_of(subset="b", seed=1))
    for subset, dtype in (("a", "float32"), ("b", "bfloat16")):
        assert call(*of(static, data, tmp_path / "out", "--subsets", subset, "--dtype", dtype)).code == 0
    for dim in ("32", "8"):
        files = [json.loads(p.read_text()) for p in (tmp_path / "out/sts").rglob("mine.json") if f"dim_{dim}" in str(p)]
        assert {f["dtype"]: [e["hf_subset"] for e in f["scores"]] for f in files} == {
            "float32": ["a"],
            "bfloat16": ["b"],
        }


# The same command, the same numbers


def test_twice_the_same_command_gives_the_same_bytes(call, static, tmp_path):
    data = write_pairs(tmp_path / "mine.jsonl", pairs_of(subset="a") + pairs_of(subset="b", seed=1))
    flags = (STS, "--model_name", static, "--data", data, "--dims", "32", "8", "--output_dir", tmp_path / "out")
    found = []
    for more in ((), ("--overwrite",)):
        result = call(*flags, *more)
        assert result.code == 0, result.err
        found.append({name: (tmp_path / "out" / name).read_bytes()
                      for name in ("summary.csv", "table.md", "baselines.csv", "precision.csv", "shortlist.csv")})  # fmt: skip
    assert found[0] == found[1]


# No number


BAD_SETS = {
    "constant": ([row | {"score": 2.5} for row in pairs_of(5)], "every score is 2.5"),
    "few": (pairs_of(2), "2 graded pairs; a correlation needs at least 3"),
    "alike": (
        [row | {"sentence1": "word1", "sentence2": "word1"} for row in pairs_of(5)],
        "every pair has the same similarity",
    ),
}


@pytest.mark.parametrize("kind", BAD_SETS)
def test_a_set_without_a_score_is_explained_and_the_others_are_scored(call, fails, static, tmp_path, kind):
    rows, reason = BAD_SETS[kind]
    data = write_pairs(tmp_path / "mine.jsonl", pairs_of(subset="good") + [row | {"subset": "bad"} for row in rows])
    out = tmp_path / "out"
    flags = (STS, "--model_name", static, "--data", data, "--dims", "32", "8", "--output_dir", out)
    result = call(*flags)
    assert result.code == 0, result.err
    table = read_summary(out)
    bad, good = (table[table["subset"] == subset] for subset in ("bad", "good"))
    assert len(bad) == len(good) == 2
    assert bad["score"].isna().all() and bad["note"].str.contains(reason, regex=False).all()
    assert good["score"].notna().all() and good["note"].isna().all() and good["ci_low"].notna().all()
    assert set(bad["n"]) == {len(rows)}
    for name in ("table.md", "report.md", "report.html"):
        assert reason in (out / name).read_text(), name
    assert reason in result.out
    no_nan(out)
    alone = write_pairs(tmp_path / "alone.jsonl", rows)
    fails(1, reason, STS, "--model_name", static, "--data", alone, "--output_dir", tmp_path / "other")
    assert not (tmp_path / "other/summary.csv").exists()


@pytest.mark.slow
def test_a_task_with_a_constant_subset_is_explained(call, tiny_model, hub, pairs, tmp_path):
    """mteb writes NaN for such a subset."""
    folder = hub.root / "datasets/mteb/sts17-crosslingual-sts"
    aside = tmp_path / "aside"
    shutil.move(folder, aside)
    try:
        rows = [row for lang in ("ar-ar", "en-en") for row in scored(pairs, lang, slice(0, 60), lang=lang)]
        rows = [row | ({"score": 1.0} if row["lang"] == "ar-ar" else {}) for row in rows]
        write_dataset(folder, {"default": {"test": rows}})
        out = tmp_path / "out"
        flags = ("--tasks", "STS17", "--subsets", "ar-ar", "en-en", "--dims", "32", "8", "--output_dir", out)
        env = {"HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, str(ROOT / MTEB), "--model_name", str(tiny_model), *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    finally:
        shutil.rmtree(folder)
        shutil.move(aside, folder)
    assert done.returncode == 0, done.stderr
    table = read_summary(out).set_index(["subset", "dim"])
    assert table.loc["ar-ar", "score"].isna().all() and table.loc["en-en", "score"].notna().all()
    assert "every score is 1" in done.stdout
    no_nan(out)


def test_a_prefix_without_information_has_no_score_and_the_full_width_keeps_its_own(call, static, tmp_path):
    folder = Path(shutil.copytree(static, tmp_path / "model"))
    path = folder / "model.safetensors"
    weights = load_file(path)
    dead = {name: torch.cat([torch.ones_like(w[:, :8]), w[:, 8:]], dim=1) for name, w in weights.items()}
    save_file(dead, path, {"format": "pt"})
    data, out = write_pairs(tmp_path / "mine.jsonl", pairs_of()), tmp_path / "out"
    result = call(STS, "--model_name", folder, "--data", data, "--dims", "32", "8", "--output_dir", out)
    assert result.code == 0, result.err
    found = read_summary(out).set_index("dim")
    assert np.isfinite(found.loc[32, "score"]) and np.isnan(found.loc[8, "score"])
    assert "every pair has the same similarity" in found.loc[8, "note"]
    no_nan(out)


# Failures while scoring


@pytest.mark.parametrize("script", [MTEB, pytest.param(STS, marks=pytest.mark.slow)])
def test_the_processes_that_encode_end_when_scoring_fails(call, hub, tmp_path, monkeypatch, script):
    """A model that gives NaN for unknown words, on two devices: the run ends in one line and leaves no process behind."""
    folder, model = tmp_path / "model", static_model()
    model[0].embedding.weight.data[0] = torch.nan
    model.save_pretrained(str(folder))
    pids, start = [], SentenceTransformer.start_multi_process_pool

    def recorded(model, *arguments):
        pool = start(model, *arguments)
        pids.extend(process.pid for process in pool["processes"])
        return pool

    monkeypatch.setattr(SentenceTransformer, "start_multi_process_pool", recorded)
    task = ("--task" if script == STS else "--tasks", "STS17")
    result = call(script, "--model_name", folder, *task, "--subsets", "en-en", "--device", "cpu", "cpu", "--dims", "32",
                  "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.code == 1 and "NaN" in result.err
    assert len(pids) == 2
    assert not {child.pid for child in multiprocessing.active_children()} & set(pids)
