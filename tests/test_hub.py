"""Failures of the Hub: temporary ones are retried, cached files are used, and the rest end in one line."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from datasets import Dataset

from common.data_files import load_hub_dataset, read_rows
from common.errors import RunError
from common.hub import HUB_NAME, is_temporary, try_again
from common.models import identify, load_model
from evaluation.utils.scoring.tasks import get_task, load_task_data
from tests.helpers import scored, write_dataset

STS = "evaluation/evaluate_sts.py"


@pytest.fixture
def fresh_model(hub, tiny_model, request):
    """The name of a model on the Hub that no cache has yet."""
    name = f"fresh/model-{abs(hash(request.node.name))}"
    shutil.copytree(tiny_model, hub.root / "models" / name)
    return name


@pytest.fixture
def fresh_data(hub, pairs, request):
    name = f"fresh/data-{abs(hash(request.node.name))}"
    write_dataset(hub.root / "datasets" / name, {"default": {"train": scored(pairs, "en-en", slice(0, 10))}})
    return name


@pytest.mark.parametrize("how", [500, 502, 503, 429, "gone", "cut"])
def test_a_look_up_that_fails_twice_is_tried_again(hub, fresh_model, caplog, how):
    with hub.fail(f"GET /api/models/{fresh_model}", how, times=2), caplog.at_level(logging.WARNING):
        identity = identify(fresh_model)
    assert identity.name == fresh_model and len(identity.revision) == 40 and not identity.cached
    waits = [record.args[-1] for record in caplog.records if "trying again" in record.message]
    assert waits == [0.02, 0.04]  # they grow


@pytest.mark.parametrize("how", [503, 429, "cut"])
def test_a_broken_download_of_weights_is_tried_again(hub, tiny_model, fresh_model, how):
    with hub.fail(f"GET /{fresh_model}/resolve/.*safetensors", how, times=1):
        model = load_model(fresh_model)
    expected = load_model(str(tiny_model)).encode(["a text"])
    assert (model.encode(["a text"]) == expected).all()


@pytest.mark.parametrize(("pattern", "how"), [("/api/", 502), ("GET .*parquet", 500), ("GET .*parquet", "cut")])
def test_a_data_set_whose_download_breaks_is_tried_again(hub, fresh_data, pattern, how):
    with hub.fail(f"{pattern}.*" if pattern != "/api/" else f"/api/datasets/{fresh_data}", how, times=1):
        assert len(load_hub_dataset(fresh_data, None, "train")) == 10


def test_a_time_out_is_tried_again(hub, fresh_model, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with hub.fail(f"GET /api/models/{fresh_model}", 0.6, times=1):
        assert identify(fresh_model).name == fresh_model
    assert "trying again" in caplog.text


def test_tries_come_to_an_end():
    calls = []

    def fails():
        calls.append(1)
        raise OSError("Consistency check failed: file should be of size 2")

    with pytest.raises(OSError, match="Consistency"):
        try_again(fails, "x")
    assert len(calls) == 5
    assert not is_temporary(ValueError("no"))


@pytest.mark.parametrize(("how", "message"), [(500, "status 500"), (429, "status 429"), ("gone", "failed repeatedly")])
def test_a_hub_that_keeps_failing_ends_in_one_line(hub, fails, fresh_model, tmp_path, how, message):
    with hub.fail(f"/api/models/{fresh_model}", how):
        said = fails(1, message, STS, "--model_name", fresh_model, "--task", "STS17", "--output_dir", tmp_path / "out")
    assert fresh_model in said and "local path" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("how", "message"), [(500, "status 500"), ("gone", "failed repeatedly"), ("gated", "gated")])
def test_a_data_set_that_cannot_be_had_ends_in_one_line(hub, fresh_data, how, message):
    with (
        hub.fail(f"/api/datasets/{fresh_data}" if how != "gated" else f"/{fresh_data}/resolve", how),
        pytest.raises(RunError) as error,
    ):
        load_hub_dataset(fresh_data, None, "train")
    assert message in str(error.value) and fresh_data in str(error.value) and "\n" not in str(error.value)


def test_a_broken_file_of_a_data_set_is_named_by_its_cause(hub):
    """``datasets`` itself says only that an error occurred."""
    folder = hub.root / "datasets/tiny/broken"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"anchor": "a", "positive": "b"}\n{"anchor": \n', encoding="utf-8")
    with pytest.raises(RunError, match=r"data set tiny/broken, .*its files cannot be read as a table \(.*JSON"):
        load_hub_dataset("tiny/broken", None, "train")


def test_gated_is_distinguished_from_missing_or_private(hub, fails, fresh_model, tmp_path):
    flags = ("--task", "STS17", "--output_dir", tmp_path / "out")
    with hub.fail(f"/{fresh_model}/resolve|/api/models/{fresh_model}", "gated"):
        said = fails(1, "gated", STS, "--model_name", fresh_model, *flags)
    assert fresh_model in said and "hf auth login" in said
    # as on the Hub: anyone can see the repository, but not download it
    with hub.fail(f"/{fresh_model}/resolve", "gated"):
        assert fresh_model in fails(1, "gated", STS, "--model_name", fresh_model, *flags)
    fails(1, "private", STS, "--model_name", "fresh/nothing", *flags)


def test_a_task_s_data_is_tried_again_and_then_explained(hub):
    path = "mteb/sts22-crosslingual-sts"
    with hub.fail(f"/api/datasets/{path}", 503, times=2):
        load_task_data(get_task("STS22", ["ar"], []))
    with hub.fail(".", "gated"), pytest.raises(RunError, match="STS22.* gated.* mteb/sts22"):
        load_task_data(get_task("STS22", ["ar"], []))


@pytest.mark.parametrize("how", [503, "gone"])
def test_with_the_hub_gone_the_cache_serves_and_the_run_says_so(hub, fails, call, fresh_model, tmp_path, how):
    """A model and a task's data, with every request failing."""
    flags = ("--model_name", fresh_model, "--task", "STS17", "--subsets", "en-en", "--dims", "16")
    flags += ("--calibration_data", "none", "--output_dir")
    assert call(STS, *flags, tmp_path / "online").code == 0
    with hub.fail(".", how):
        done = call(STS, *flags, tmp_path / "offline")
    assert done.code == 0, done.err
    for what in (f"model {fresh_model}", "dataset mteb/sts17-crosslingual-sts"):
        lines = [line for line in done.err.splitlines() if what in line and "Hub did not answer" in line]
        assert len(lines) == 1 and "the copy in the cache" in lines[0]
    summaries = [(tmp_path / name / "summary.csv").read_bytes() for name in ("online", "offline")]
    assert summaries[0] == summaries[1]
    record = json.loads((tmp_path / "offline/run.json").read_text())
    assert any(record["models"][fresh_model] in request for request in hub.requests)


@pytest.mark.parametrize(
    "name", ["../up", "a/../b", "/etc/passwd", "a/b/c", "a\0b", "a" * 97, ".hidden", "a/.b", "a\n", "é/b"]
)
def test_names_that_would_leave_a_folder(name, hub):
    assert not HUB_NAME.fullmatch(name)
    before = len(hub.requests)
    with pytest.raises(RunError, match="nor the name"):
        load_hub_dataset(name, None, "train")
    assert len(hub.requests) == before


def test_names_that_the_hub_has():
    for name in (
        "distilroberta-base",
        "a/b",
        "Omartificial-Intelligence-Space/Arabic-NLi-Triplet",
        "a" * 96,
        "x/v1.5_b",
    ):
        assert HUB_NAME.fullmatch(name)


@pytest.mark.parametrize("kind", ["hub", "file"])
def test_a_cache_that_cannot_be_written_is_blamed_itself(monkeypatch, tmp_path, kind):
    """A full disk or a read-only home folder is blamed on neither the user's file nor the Hub."""
    import datasets.config

    path = tmp_path / "rows.parquet"
    Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"]}).to_parquet(path)
    (tmp_path / "not-a-folder").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "not-a-folder/cache")
    with pytest.raises(RunError, match="the cache in .*not-a-folder/cache cannot be used .*HF_HOME"):
        load_hub_dataset("sentence-transformers/all-nli", "triplet", "test") if kind == "hub" else read_rows(path)
