"""The card of a trained model lists the licences of its data, as the data sets' cards state them."""

from __future__ import annotations

import json

import pytest

from tests.helpers import write_dataset
from training.utils.licences import NOT_STATED, UNREADABLE, describe_licences, licence_of


@pytest.fixture(scope="module")
def licensed(hub):
    """Data sets whose cards state a licence: a free one, one that forbids commercial use, several, a named one."""
    rows = [{"anchor": f"text {i}", "positive": f"answer {i}"} for i in range(16)]
    stated = {
        "free": "license: cc-by-4.0",
        "forbidding": "license: cc-by-nc-4.0",
        "several": "license: [mit, cc-by-nc-sa-3.0]",
        "named": "license: other\nlicense_name: flickr-terms",
    }
    for name, line in stated.items():
        folder = hub.root / f"datasets/licensed/{name}"
        write_dataset(folder, {"default": {"train": rows}})
        card = folder / "README.md"
        card.write_text(card.read_text().replace("---\n", f"---\n{line}\n", 1))


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        ("licensed/free", "cc-by-4.0"),
        ("licensed/several", "mit, cc-by-nc-sa-3.0"),
        ("licensed/named", "flickr-terms"),
        ("sentence-transformers/all-nli", NOT_STATED),
        ("licensed/absent", UNREADABLE),
        ("data/sample/nli_groups.jsonl", "your own file"),
    ],
)
def test_the_licence_is_the_one_that_the_card_states(licensed, path, licence):
    assert licence_of(path) == licence


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [("cc-by-nc-4.0", True), ("mit, cc-by-nc-sa-3.0", True), ("fair-noncommercial-research-license", True),
     ("cc-by-4.0", False), ("apache-2.0", False), ("ncsa", False)],
)  # fmt: skip
def test_a_licence_that_forbids_commercial_use_is_said_so(licence, forbids):
    assert (
        "Not for commercial use**: the licence of some/data forbids it" in describe_licences({"some/data": licence})
    ) == forbids


def test_a_trained_model_has_the_licences_in_its_card_and_record(licensed, warm, tmp_path):
    datasets = {name: {"path": f"licensed/{name}", "loss": "mnrl"} for name in ("free", "forbidding")}
    config = {"model_name": "tiny/sentence-bert", "dev_data": ["none"], "datasets": datasets}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = warm(
        "training/hybrid_training.py", "--config", tmp_path / "config.json", "--max_steps", "1",
        "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    card = (tmp_path / "run/final/README.md").read_text()
    assert "- licensed/free: cc-by-4.0" in card and "the licence of licensed/forbidding forbids it" in card
    assert card.startswith("---") and "SentenceTransformer" in card
    licences = json.loads((tmp_path / "run/run.json").read_text())["licences"]
    assert licences == {"licensed/free": "cc-by-4.0", "licensed/forbidding": "cc-by-nc-4.0"}
