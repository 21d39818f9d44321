"""Uploads to the Hub: complete, private, resumable, and without a trace of the token."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from common.errors import RunError
from common.models import hash_folder
from tests.helpers import NLI, triplets, write
from training.utils.upload import upload

TEXTS = ["The sky is clear today", "السماء صافية اليوم"]


@pytest.fixture
def logged_in(hub, monkeypatch) -> str:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub.token


@pytest.fixture
def flags(hub, groups, tmp_path) -> tuple:
    data = write(tmp_path / "mine.jsonl", triplets(groups[:24], "en"))
    more = (
        "--max_steps",
        "1",
        "--per_device_train_batch_size",
        "8",
        "--precision",
        "fp32",
        "--matryoshka_dims",
        "64",
        "16",
    )
    return ("--train_data", data, "--dev_data", "none", *more, "--output_dir", tmp_path / "run", "--push_to_hub")


@pytest.fixture
def model(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "final")


def assert_uploaded(hub, name: str, folder: Path) -> None:
    """The repository has the folder's files and no other, and the model loads by its name."""
    remote = hub.root / "models" / name
    files = {p.relative_to(remote).as_posix(): p.read_bytes() for p in remote.rglob("*") if p.is_file()}
    del files[".gitattributes"]
    assert files == {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    loaded, local = SentenceTransformer(name, device="cpu"), SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_array_equal(loaded.encode(TEXTS), local.encode(TEXTS))


def test_a_trained_model_is_uploaded_and_private(hub, call, flags, tiny_model, tmp_path, logged_in, monkeypatch):
    done = call(NLI, tiny_model, *flags, "--hub_model_id", "me/mine")
    assert done.code == 0, done.err
    assert hub.visibility["me/mine"] == "private"
    assert_uploaded(hub, "me/mine", tmp_path / "run/final")
    card = (tmp_path / "run/final/README.md").read_text()
    assert 'SentenceTransformer("me/mine", truncate_dim=16)' in card and "sentence_transformers_model_id" not in card
    assert re.search(rf"uploaded: {hub.url}/me/mine/commit/[0-9a-f]+", done.err)

    assert logged_in not in done.out + done.err
    for path in [*(tmp_path / "run").rglob("*"), *(hub.root / "models/me/mine").rglob("*")]:
        assert path.is_dir() or logged_in.encode() not in path.read_bytes(), path

    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="me/mine"):  # nobody else sees it
        SentenceTransformer("me/mine", device="cpu", cache_folder=str(tmp_path / "elsewhere"))


def test_without_a_name_it_is_that_of_the_run_and_public_if_asked(hub, call, flags, tiny_model, tmp_path, logged_in):
    done = call(NLI, tiny_model, *flags, "--hub_private_repo", "false")
    assert done.code == 0, done.err
    assert hub.visibility["me/run"] == "public"
    assert_uploaded(hub, "me/run", tmp_path / "run/final")


def test_without_a_login_nothing_begins(fails, flags, tiny_model, tmp_path):
    assert "hf auth login" in fails(2, "--push_to_hub needs a login", NLI, tiny_model, *flags)
    assert not (tmp_path / "run").exists()


def test_the_command_of_a_broken_upload_finishes_it(hub, fails, flags, tiny_model, tmp_path, logged_in):
    hub.lfs.clear()  # or the weights of a run just like this one would be there already
    with hub.fail("PUT /lfs/", 403):
        message = fails(
            1, "the upload to me/broken failed (status 403", NLI, tiny_model, *flags, "--hub_model_id", "me/broken"
        )
    final = tmp_path / "run/final"
    assert f"saved in {final}" in message
    assert SentenceTransformer(str(final), device="cpu").encode(TEXTS).shape == (2, 64)
    assert not (hub.root / "models/me/broken/model.safetensors").exists()

    program, *arguments = shlex.split(re.search(r"complete it with `(.*)`", message)[1])
    assert program == "hf" and "--private" in arguments
    hf = Path(sys.executable).with_name("hf")
    done = subprocess.run([str(hf), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert hub.visibility["me/broken"] == "private"
    assert_uploaded(hub, "me/broken", final)


@pytest.mark.parametrize(
    ("where", "how", "reason"),
    [
        ("POST /api/repos/create", 500, "status 500"),
        ("PUT /lfs/", "gone", "the connection failed"),
        ("POST /api/models/.*/commit/", "gone", "the connection failed"),
        ("POST /api/models/.*/commit/", 403, "status 403: the token has no write permission for this repository"),
    ],
)
def test_an_upload_that_breaks_off_leaves_the_model_and_can_be_repeated(
    hub, model, logged_in, monkeypatch, where, how, reason, request
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits half a minute between its own tries
    name = f"me/{abs(hash(request.node.name))}"
    hub.lfs.clear()
    before = hash_folder(model)
    with hub.fail(where, how), pytest.raises(RunError, match=re.escape(reason)) as error:
        upload(model, name, private=True)
    assert f"`hf upload {name} {model} . --private`" in str(error.value) and "\n" not in str(error.value)
    assert hash_folder(model) == before
    upload(model, name, private=True)
    assert_uploaded(hub, name, model)


def test_a_failure_that_passes_is_tried_again(hub, model, logged_in):
    with hub.fail("POST /api/repos/create", 503, times=2):
        assert upload(model, "me/patient", private=True).startswith(f"{hub.url}/me/patient/commit/")
    assert_uploaded(hub, "me/patient", model)


def test_a_private_model_does_not_go_into_a_public_repository(hub, model, logged_in):
    upload(model, "me/open", private=False)
    count = len(hub.requests)
    with pytest.raises(RunError, match="me/open exists and is public.*--hub_private_repo false"):
        upload(model, "me/open", private=True)
    assert not [request for request in hub.requests[count:] if "commit" in request]
    upload(model, "me/open", private=False)  # again, and nothing has changed
    assert_uploaded(hub, "me/open", model)
