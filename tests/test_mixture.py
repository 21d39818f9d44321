"""A mixture with all sources of supervision besides labels: a guide, a teacher, the model's own full width."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from common.models import hash_folder
from tests.helpers import ROOT
from training.utils.matryoshka_loss import MatryoshkaLoss
from training.utils.trainer import MatryoshkaTrainer

HYBRID = "training/hybrid_training.py"
ENTRIES = {
    "guided": {"path": "sentence-transformers/all-nli", "name": "triplet", "loss": "gist"},
    "taught": {"path": "sentence-transformers/parallel-sentences-tatoeba", "name": "en-ar", "loss": "distill"},
    "ranked": {
        "path": "sentence-transformers/parallel-sentences-tatoeba",
        "name": "en-ar",
        "loss": "mnrl",
        "directions": ["query_to_doc", "doc_to_query"],
    },
}
FLAGS = (
    *("--multi_dataset_batch_sampler", "round_robin", "--max_steps", "6", "--eval_steps", "3", "--logging_steps", "1"),
    *("--matryoshka_dims", "64", "16", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"),
    *(
        "--self_distillation_weight",
        "0.5",
        "--dev_data",
        "ar",
        "en-ar",
        "--precision",
        "fp32",
        "--save_total_limit",
        "9",
    ),
)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": ENTRIES}))
    return tmp_path / "mixture.json"


def test_it_trains_logs_each_part_and_resumes_to_the_same_weights(call, fails, config, tiny_model, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = (tiny_model, "--config", config, *FLAGS, "--output_dir")
    done = call(HYBRID, *flags, whole)
    assert done.code == 0, done.err
    assert "96 targets" in done.err

    history = json.loads((whole / "checkpoint-6/trainer_state.json").read_text())["log_history"]
    for step, name in enumerate([*ENTRIES] * 2, 1):
        logged = next(entry for entry in history if entry["step"] == step and "loss" in entry)
        parts = {key: value for key, value in logged.items() if key.startswith("loss_")}
        assert set(parts) == {f"loss_{name}_{part}" for part in ("64", "16", "self")}
        assert logged["loss"] == pytest.approx(sum(parts.values()), abs=1e-3) and min(parts.values()) > 0
    evaluated = [entry for entry in history if "eval_mean_score" in entry]
    assert [entry["step"] for entry in evaluated] == [0, 3, 6]
    for entry in evaluated:
        kinds = {"sts-ar-dev": "spearman_cosine", "translations-en-ar-dev": "mean_accuracy"}
        scores = [entry[f"eval_{name}-{dim}_{kind}"] for name, kind in kinds.items() for dim in (64, 16)]
        assert entry["eval_mean_score"] == pytest.approx(sum(scores) / 4)
    record = json.loads((whole / "run.json").read_text())
    assert record["dev_and_test_rows"] == {"sts-ar-dev": 40, "translations-en-ar-dev": 40}
    assert record["datasets"]["taught"]["columns"] == ["sentence", "translation", "label"]
    own = {"name": str(tiny_model), "revision": hash_folder(tiny_model)}  # teacher and guide, by default
    assert record["datasets"]["taught"]["teacher"] == record["datasets"]["guided"]["guide"] == own
    assert record["leaks"]["kept"] is False and set(record["leaks"]["rows"]) == set(ENTRIES)
    assert not list(whole.rglob("loss.safetensors")), "nothing but the model learns here"

    shutil.copytree(whole, broken)  # what a run that was killed after step 3 leaves
    shutil.rmtree(broken / "final")
    shutil.rmtree(broken / "checkpoint-6")
    text = (broken / "run.json").read_text()
    (broken / "run.json").write_text(text.replace(own["revision"], "0" * 40))  # the folder holds another model now
    message = f'datasets.guided.guide.revision was "{"0" * 40}" and is now'
    fails(1, message, HYBRID, *flags, broken, "--resume_from_checkpoint", "latest")
    (broken / "run.json").write_text(text)
    done = call(HYBRID, *flags, broken, "--resume_from_checkpoint", "latest")
    assert done.code == 0, done.err
    assert "96 targets from the cache" in done.err
    expected, found = (load_file(folder / "checkpoint-6/model.safetensors") for folder in (whole, broken))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0, msg=name)


def test_with_gradient_cache_too(call, tiny_model, hub, tmp_path, monkeypatch):
    """And with a guide and a teacher given by name; the record contains their revisions."""
    config = tmp_path / "mixture.json"
    others = {"guided": {"guide": "aubmindlab/bert-base-arabertv02"}, "taught": {"teacher": str(tiny_model)}}
    config.write_text(json.dumps({"datasets": {name: e | others.get(name, {}) for name, e in ENTRIES.items()}}))
    seen, step = {}, MatryoshkaTrainer.compute_loss

    def watch(self, model, inputs, *args, **kwargs):
        loss: MatryoshkaLoss = self.loss[inputs["dataset_name"]]
        seen[inputs["dataset_name"]] = loss.uses_gradient_cache
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(MatryoshkaTrainer, "compute_loss", watch)
    flags = (tiny_model, "--config", config, *FLAGS, "--mini_batch_size", "4", "--max_steps", "3", "--dev_data", "none")
    done = call(HYBRID, *flags, "--output_dir", tmp_path / "run")
    assert done.code == 0, done.err
    datasets = json.loads((tmp_path / "run/run.json").read_text())["datasets"]
    guide, teacher = datasets["guided"]["guide"], datasets["taught"]["teacher"]
    assert any(f"/{guide['name']}/resolve/{guide['revision']}/" in request for request in hub.requests)
    assert (
        teacher == {"name": str(tiny_model), "revision": hash_folder(tiny_model)} and "guide" not in datasets["ranked"]
    )
    assert seen == {"guided": True, "taught": False, "ranked": True}
    history = json.loads((tmp_path / "run/checkpoint-3/trainer_state.json").read_text())["log_history"]
    assert all(any(f"loss_{name}_self" in entry for entry in history) for name in ENTRIES)


def test_data_sets_may_be_named_like_attributes_of_a_module(call, tiny_model, tmp_path):
    """ "train" and "eval" are natural names; one with "bias" in it must not end the weight decay."""
    rows = [{"anchor": f"the man {i}", "positive": f"man number {i}"} for i in range(16)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    names = ("unbiased", "train", "eval", "type", "half", "pop", "keys", "add_module", "loss", "0")
    config, weights = tmp_path / "mixture.json", []
    for mixture in (names, [f"x{place}" for place in range(len(names))]):
        datasets = {name: {"path": str(data), "loss": "mnrl"} for name in mixture}
        config.write_text(json.dumps({"datasets": datasets, "training_arguments": {"weight_decay": 0.5}}))
        flags = ("--config", config, "--dev_data", "none", "--max_steps", str(len(names)), "--precision", "fp32")
        flags += ("--matryoshka_dims", "16", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2")
        flags += ("--multi_dataset_batch_sampler", "round_robin", "--output_dir", tmp_path / mixture[0])
        done = call(HYBRID, tiny_model, *flags)
        assert done.code == 0, done.err
        weights.append(load_file(tmp_path / mixture[0] / "final/model.safetensors"))
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[0][name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("code", "message", "entry"),
    [
        (1, "has width 768, and the model has width 64: distill needs equal widths", ENTRIES["taught"] | {"teacher": "distilroberta-base"}),
        (1, "model nobody/nothing: not found on the Hub", ENTRIES["taught"] | {"teacher": "nobody/nothing"}),
        (1, "model nobody/nothing: not found on the Hub", ENTRIES["guided"] | {"guide": "nobody/nothing"}),
        (2, "'teacher' is for distill, but the loss is gist", ENTRIES["guided"] | {"teacher": "x"}),
        (1, "no column for 'sentence'; the columns are anchor, positive, negative", ENTRIES["guided"] | {"loss": "distill"}),
    ],
)  # fmt: skip
def test_mistakes(fails, tmp_path, tiny_model, code, message, entry):
    config = tmp_path / "mixture.json"
    config.write_text(json.dumps({"datasets": {"x": entry}}))
    flags = ("--dev_data", "none", "--output_dir", tmp_path / "run")
    fails(code, message, HYBRID, tiny_model, "--config", config, *flags)
    assert not (tmp_path / "run/run.json").exists()


def test_gist_wants_a_tokenizer_of_transformers(fails, call, tmp_path, groups):
    """A static model that was trained before has another kind."""
    rows = [{"anchor": group["premise_en"], "positive": group["entailment_en"]} for group in groups[:16]]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = (
        "--static_embedding_dim",
        "16",
        "--static_vocab_size",
        "300",
        "--matryoshka_dims",
        "16",
        "--max_steps",
        "1",
    )
    static = ("--train_data", data, "--dev_data", "none", *flags, "--output_dir", tmp_path / "static")
    assert call("training/matryoshka_nli.py", "static", *static).code == 0
    config = tmp_path / "mixture.json"
    config.write_text(json.dumps({"datasets": {"x": {"path": str(data), "loss": "gist"}}}))
    arguments = ("--config", config, "--dev_data", "none", "--matryoshka_dims", "16", "--output_dir", tmp_path / "run")
    fails(1, "tokenizer", HYBRID, tmp_path / "static/final", *arguments)


@pytest.mark.slow
def test_two_processes_with_all_of_it_at_once_resume_to_the_same_weights(hub, tmp_path):
    """A guide, a teacher, heads, gradient cache, self-distillation, and a vocabulary that each process extends by itself."""
    classes = {"path": "sentence-transformers/all-nli", "name": "pair-class", "loss": "softmax"}
    config = tmp_path / "mixture.json"
    config.write_text(json.dumps({"datasets": ENTRIES | {"classes": classes}, "extend_vocabulary": 200}))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = (*FLAGS, "--normalize_arabic", "--mini_batch_size", "4", "--max_steps", "8", "--eval_steps", "4")

    def train(folder, *more: str) -> str:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", ROOT / HYBRID]
        words = [*launch, "sentence-transformers/all-MiniLM-L6-v2", "--config", config, *flags, *more, "--output_dir"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [str(word) for word in (*words, folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout == f"{folder / 'final'}\n"
        return done.stderr

    train(whole)
    model = SentenceTransformer(str(whole / "final"), device="cpu")
    assert any(len(token) > 2 for token in model.tokenizer.tokenize("السماء صافية"))
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "final")
    shutil.rmtree(broken / "checkpoint-8")
    assert "targets from the cache" in train(broken, "--resume_from_checkpoint", "latest")
    for name in ("model.safetensors", "loss.safetensors"):
        expected, found = (load_file(folder / "checkpoint-8" / name) for folder in (whole, broken))
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, rtol=0, atol=0, msg=key)
