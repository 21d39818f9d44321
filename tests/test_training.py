"""The training scripts, run as a user runs them, at tiny size."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from common.data_files import load_hub_dataset
from tests.helpers import HYBRID, NLI, ROOT, finished, last_state, record_of, triplets, weights_of, write

DEFAULT_DIMS = [768, 512, 256, 128, 64]
ARABERT = "aubmindlab/bert-base-arabertv02"
# so fast that the dev scores move in a few steps
FAST = ("--per_device_train_batch_size", "16", "--learning_rate", "1e-3", "--precision", "fp32")


def card_of(model: Path) -> str:
    return (model / "README.md").read_text(encoding="utf-8")


def assert_prefixes(final: Path, dims: list[int]) -> None:
    """Plain SentenceTransformer loads the model at each dimension and gives the prefix of the full embedding."""
    texts = ["a dog runs", "قطع أخي فرعًا يابسًا من شجرة الليمون."]
    full = SentenceTransformer(str(final), device="cpu").encode(texts)
    assert full.shape == (2, max(dims))
    for dim in dims:
        found = SentenceTransformer(str(final), device="cpu", truncate_dim=dim).encode(texts)
        assert found == pytest.approx(full[:, :dim], abs=1e-6)


def assert_card_has_the_scores(final: Path, record: dict) -> None:
    card, table = card_of(final), {}
    for key, score in record["scores"].items():
        if re.search(r"-\d+_spearman_cosine$", key):
            table[key] = score
    assert table
    results = ModelCard(card).data.eval_results
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in results}
    for key, score in table.items():
        name, dim = re.fullmatch(r"(.+)-(\d+)_spearman_cosine", key).groups()
        values = [
            v
            for (dataset, metric), v in found.items()
            if f"{name} {dim}".replace("-", " ") in dataset.replace("-", " ") and metric == "spearman_cosine"
        ]
        assert values == [pytest.approx(score, abs=1e-6)], (key, list(found))
        if len(record["matryoshka_dims"]) == 1:
            continue  # nothing to truncate, and no table by dimension
        [head] = re.findall(r"^\| dimensions \| bytes.*$", card, re.MULTILINE)
        [line] = re.findall(rf"^\| {dim} \| {4 * int(dim):,} \|.*$", card, re.MULTILINE)
        cells = dict(zip(*(row.strip("| ").split(" | ") for row in (head, line)), strict=True))
        assert cells[name] == f"{100 * score:.2f}"


# The mandated commands


@pytest.fixture(scope="session")
def english(warm, tmp_path_factory) -> Path:
    """`python training/matryoshka_nli.py`, with no model named, from another folder."""
    cwd = tmp_path_factory.mktemp("english")
    done = warm(NLI, *FAST, "--max_steps", "4", "--eval_steps", "1", "--save_total_limit", "9", cwd=cwd)
    finished(done, cwd / "output/matryoshka_nli-distilroberta-base", cwd)
    return done, cwd / "output/matryoshka_nli-distilroberta-base"


def test_the_default_model_at_the_default_dimensions(english):
    _, folder = english
    final = folder / "final"
    assert_prefixes(final, DEFAULT_DIMS)
    record = record_of(folder)
    assert record["status"] == "finished" and record["config"]["model_name"] == "distilroberta-base"
    for split in ("dev", "test"):
        assert {f"sts-{split}-{dim}_spearman_cosine" for dim in DEFAULT_DIMS} <= set(record["scores"])
    assert_card_has_the_scores(final, record)


def test_the_scores_are_those_of_the_final_model(english, hub):
    import pyarrow.parquet as pq
    from scipy.stats import spearmanr

    _, folder = english
    model = SentenceTransformer(str(folder / "final"), device="cpu")
    for split, file in (("dev", "validation"), ("test", "test")):
        path = next((hub.root / "datasets/sentence-transformers/stsb").rglob(f"{file}-*.parquet"))
        rows = pq.read_table(path).to_pydict()
        first, second = (model.encode(rows[key]) for key in ("sentence1", "sentence2"))
        for dim in DEFAULT_DIMS:
            a, b = first[:, :dim], second[:, :dim]
            cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            expected = spearmanr(cosine, rows["score"]).statistic
            assert record_of(folder)["scores"][f"sts-{split}-{dim}_spearman_cosine"] == pytest.approx(
                expected, abs=1e-3
            )


def test_the_record_says_what_the_run_was_made_with(english, hub):
    _, folder = english
    record = record_of(folder)
    assert record["command"].startswith("python training/matryoshka_nli.py --per_device_train_batch_size 16")
    assert record["config"]["learning_rate"] == 1e-3 and record["config"]["matryoshka_dims"] == DEFAULT_DIMS
    assert record["seed"] == 42 and record["matryoshka_dims"] == DEFAULT_DIMS and record["steps"] == 4
    assert record["train_samples_per_second"] > 0 and record["wall_time_s"] > 0
    assert {"torch", "sentence-transformers", "transformers", "mteb"} <= set(record["versions"])
    assert record["hardware"]["cores"] >= 1
    data = record["datasets"]["sentence-transformers/all-nli"]
    assert data["rows"] == 96 and data["columns"] == ["anchor", "positive", "negative"]
    assert any(f"/all-nli/resolve/{data['revision']}/" in request for request in hub.requests)
    revision = record["base_model"]["revision"]
    assert any(f"/distilroberta-base/resolve/{revision}/" in request for request in hub.requests)
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", record["git"]["commit"]) and record["git"]["dirty"] in (True, False)


def test_the_best_checkpoint_is_that_with_the_best_mean(english):
    _, folder = english
    state, record = last_state(folder), record_of(folder)
    means = {}
    for entry in state["log_history"]:
        scores = [v for k, v in entry.items() if re.fullmatch(r"eval_sts-dev-\d+_spearman_cosine", k)]
        if scores:
            assert len(scores) == len(DEFAULT_DIMS)
            means[entry["step"]] = np.mean(scores)
    assert set(means) == {0, 1, 2, 3, 4}
    saved = {step: mean for step, mean in means.items() if step}
    best = max(saved, key=saved.get)
    assert len({round(mean, 6) for mean in saved.values()}) > 1, "the test cannot tell one checkpoint from another"
    assert record["best_step"] == best
    expected, found = weights_of(folder / f"checkpoint-{best}"), weights_of(folder / "final")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_changes_every_layer(english, hub):
    _, folder = english
    before, after = weights_of(hub.root / "models/distilroberta-base"), weights_of(folder / "final")
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert any("word_embeddings" in n for n in changed) and any("attention" in n for n in changed)


def test_progress_goes_to_standard_error(english):
    done, _ = english
    report = re.search(r"step 4 of 4, loss \d+\.\d+ \((.+?)\)", done.err)
    assert sorted(int(part.split(":")[0]) for part in report[1].split(", ")) == sorted(DEFAULT_DIMS)
    assert re.search(r"sts-dev, Spearman × 100 by dimension: 768 = -?\d", done.err)


@pytest.fixture(scope="session")
def arabic(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arabic") / "run"
    done = warm(NLI, ARABERT, "--language", "ar", *FAST, "--output_dir", folder)
    return done, folder


def test_arabic_with_a_bare_model(arabic):
    done, folder = arabic
    final = finished(done, folder)
    assert_prefixes(final, [64])
    record = record_of(folder)
    assert record["config"]["model_name"] == ARABERT and record["matryoshka_dims"] == [64]
    assert set(record["datasets"]) == {"Omartificial-Intelligence-Space/Arabic-NLi-Triplet"}
    assert set(record["dev_and_test_rows"]) == {"sts-dev"}  # its STS sibling has no test split
    assert "sts-dev-64_spearman_cosine" in record["scores"]
    assert_card_has_the_scores(final, record)
    assert re.search(r"language:\s*\n- ar\n", card_of(final))


@pytest.fixture(scope="session")
def hybrid(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    more = ("--matryoshka_dims", "768", "64", "--max_train_samples", "48", "--eval_steps", "3")
    return warm(HYBRID, *FAST, *more, "--output_dir", folder), folder


def test_the_default_mixture(hybrid):
    done, folder = hybrid
    final = finished(done, folder)
    assert_prefixes(final, [768, 64])
    record = record_of(folder)
    assert {name: entry["rows"] for name, entry in record["datasets"].items()} == {
        "nli-triplets": 48,
        "stsb": 48,
        "nli-classes": 48,
    }
    assert record["steps"] == 9
    assert_card_has_the_scores(final, record)


def test_the_heads_are_in_every_checkpoint_and_not_in_the_final_model(hybrid):
    done, folder = hybrid
    final = finished(done, folder)
    found = sorted(folder.glob("checkpoint-*"))
    assert found
    for checkpoint in found:
        heads = load_file(checkpoint / "loss.safetensors")
        assert sorted(tuple(h.shape) for h in heads.values()) == [(3,), (3,), (3, 3 * 64), (3, 3 * 768)]
        assert all(torch.isfinite(head).all() for head in heads.values())
    assert not list(final.rglob("loss*"))
    assert not {name for name in weights_of(final) if "classifier" in name}
    assert sum(p.stat().st_size for p in final.rglob("*.safetensors")) == sum(
        p.stat().st_size for p in found[0].rglob("model.safetensors")
    )


@pytest.fixture
def rows(groups) -> list[dict]:
    return triplets(groups[:24], "ar")


def test_your_own_triplets_in_csv(warm, tmp_path, rows, tiny_model):
    data = write(tmp_path / "mine.csv", rows)
    more = ("--dev_data", "none", "--train_data", "mine.csv", "--output_dir", "run", "--matryoshka_dims", "32", "8")
    done = warm(NLI, tiny_model, *more, *FAST, cwd=tmp_path)
    final = finished(done, tmp_path / "run", tmp_path)
    assert_prefixes(final, [64, 32, 8])
    record = record_of(tmp_path / "run")
    assert record["datasets"]["mine.csv"]["rows"] == 24 and record["matryoshka_dims"] == [64, 32, 8]
    assert data.exists() and record["scores"] == {}


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_every_format_trains_the_same_model(call, tmp_path, rows, tiny_model, suffix):
    flags = ("--dev_data", "none", "--max_steps", "2", *FAST)
    found = []
    for path in (write(tmp_path / "mine.csv", rows), write(tmp_path / f"mine{suffix}", rows)):
        folder = tmp_path / f"of{path.suffix}"
        done = call(NLI, tiny_model, "--train_data", path, *flags, "--output_dir", folder)
        found.append(weights_of(finished(done, folder)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_pairs_without_negatives_train_too(call, tmp_path, rows, tiny_model):
    data = write(tmp_path / "pairs.csv", [{k: row[k] for k in ("anchor", "positive")} for row in rows])
    done = call(NLI, tiny_model, "--train_data", data, "--dev_data", "none", *FAST, "--output_dir", tmp_path / "run")
    finished(done, tmp_path / "run")
    assert record_of(tmp_path / "run")["datasets"][str(data)]["columns"] == ["anchor", "positive"]
    few = "the run has only 2 steps (learning rate still rising from 0: 1): use a smaller --per_device_train_batch_size"
    assert few in done.err
    assert ModelCard.load(tmp_path / "run/final/README.md").data.language is None  # nobody said which it is


def test_a_configuration_and_a_split_of_a_hub_data_set(call, hub, tmp_path, tiny_model):
    flags = ("--dev_data", "none", "--precision", "fp32", "--max_steps", "1", "--output_dir", tmp_path / "run")
    done = call(NLI, tiny_model, "--train_data", "sentence-transformers/all-nli:triplet:dev", *flags)
    assert done.code == 0, done.err
    [data] = json.loads((tmp_path / "run/run.json").read_text())["datasets"].values()
    expected = load_hub_dataset("sentence-transformers/all-nli", "triplet", "dev")
    assert data["rows"] == len(expected) and data["columns"] == expected.column_names


def test_a_default_dev_set_that_cannot_be_loaded_is_called_one(fails, hub, tmp_path, rows, tiny_model):
    flags = ("--train_data", write(tmp_path / "mine.csv", rows), "--output_dir", tmp_path / "run", *FAST)
    folder = hub.root / "datasets/sentence-transformers/stsb"
    folder.rename(tmp_path / "aside")
    try:
        fails(
            1,
            "stsb … This is a dev set: use your own with --dev_data FILE, or do without with --dev_data none",
            NLI,
            tiny_model,
            *flags,
        )
    finally:
        (tmp_path / "aside").rename(folder)


def test_a_new_static_model(warm, tmp_path, rows):
    data = write(tmp_path / "mine.csv", rows)
    more = ("--static_embedding_dim", "64", "--static_vocab_size", "300", "--matryoshka_dims", "64", "16")
    flags = ("--train_data", data, "--dev_data", "ar", "--num_train_epochs", "2", "--learning_rate", "0.1")
    done = warm(NLI, "static", *more, *flags, "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "run")
    final = finished(done, tmp_path / "run")
    assert_prefixes(final, [64, 16])
    trained, untrained = weights_of(final), weights_of(tmp_path / "run/untrained")
    assert trained.keys() == untrained.keys()
    assert all(trained[name].shape == untrained[name].shape for name in trained)
    assert not any(torch.equal(trained[name], untrained[name]) for name in trained)
    assert (tmp_path / "run/untrained/tokenizer.json").read_bytes() == (final / "tokenizer.json").read_bytes()


# Finished and unfinished runs


def test_a_finished_run_is_refused(fails, english, tmp_path):
    _, source = english
    folder = shutil.copytree(source, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    fails(1, "contains a finished run", NLI, *FAST, "--output_dir", folder)
    fails(1, "nothing to resume", NLI, *FAST, "--output_dir", folder, "--resume_from_checkpoint", "latest")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_an_unfinished_run_is_resumed_by_the_command_that_it_names(call, fails, warm, tmp_path, tiny_model):
    """And ends with the weights, heads and scores of a run that was never interrupted."""
    config = tmp_path / "mixture.json"
    entries = {
        "ranks": {"path": "sentence-transformers/all-nli", "name": "triplet", "loss": "mnrl", "weight": 1},
        "classes": {"path": "sentence-transformers/all-nli", "name": "pair-class", "loss": "softmax", "weight": 2},
    }
    config.write_text(json.dumps({"datasets": entries}))
    flags = ("--config", config, *FAST, "--max_steps", "6", "--eval_steps", "2", "--matryoshka_dims", "64", "16")
    flags = (tiny_model, *flags, "--save_total_limit", "9", "--output_dir")
    whole, broken = tmp_path / "whole", tmp_path / "broken run"
    finished(call(HYBRID, *flags, whole), whole)

    shutil.copytree(whole, broken)  # what a run that was killed after step 4 leaves
    shutil.rmtree(broken / "final")
    shutil.rmtree(broken / "checkpoint-6")
    record = record_of(broken)
    (broken / "run.json").write_text(json.dumps(record | {"status": "running"}))
    message = fails(1, "contains an unfinished run: resume it with `", HYBRID, *flags, broken)
    fails(1, "is not a checkpoint", HYBRID, *flags, broken, "--resume_from_checkpoint", tmp_path)

    command = shlex.split(re.search("`(.+)`", message)[1])
    assert command[0] == "python" and command[-2:] == ["--resume_from_checkpoint", "latest"]
    finished(warm(*command[1:]), broken)
    for name in ("final", "checkpoint-6"):
        expected, found = weights_of(whole / name), weights_of(broken / name)
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-7, msg=f"{name} {key}")
    heads = [load_file(folder / "checkpoint-6/loss.safetensors") for folder in (whole, broken)]
    assert heads[0].keys() == heads[1].keys() and len(heads[0]) == 4
    for key in heads[0]:
        torch.testing.assert_close(heads[1][key], heads[0][key], rtol=1e-5, atol=1e-7)
    assert record_of(broken)["scores"] == pytest.approx(record_of(whole)["scores"], abs=1e-5)
    assert record_of(broken)["status"] == "finished" and record_of(broken)["steps"] == 6


def test_overwriting_leaves_what_is_not_the_runs(call, tmp_path, rows, tiny_model):
    folder = tmp_path / "run"
    for path in ("notes.txt", "best/x.txt", "data/final/mine.csv", "checkpoint-9/weights", "final/old.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("here")
    data = write(tmp_path / "mine.csv", rows)
    flags = ("--train_data", data, "--dev_data", "none", *FAST, "--output_dir", folder)
    done = call(NLI, tiny_model, *flags, "--overwrite_output_dir")
    finished(done, folder)
    for path in ("notes.txt", "best/x.txt", "data/final/mine.csv"):
        assert (folder / path).read_text() == "here"
    assert not (folder / "checkpoint-9").exists() and not (folder / "final/old.txt").exists()


def test_a_folder_that_transformers_would_take_for_a_checkpoint(fails, tmp_path, tiny_model):
    """transformers deletes the oldest checkpoint-*, whatever it contains."""
    kept = tmp_path / "run/checkpoint-best/x.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("here")
    for more in ((), ("--overwrite_output_dir",)):
        fails(1, "contains checkpoint-best, which is not a", NLI, tiny_model, *more, "--output_dir", tmp_path / "run")
    assert kept.read_text() == "here"


def test_a_model_may_be_trained_further_in_place(call, tmp_path, rows, tiny_model):
    data = write(tmp_path / "mine.csv", rows)
    flags = ("--train_data", data, "--dev_data", "none", *FAST, "--output_dir", tmp_path / "run")
    final = finished(call(NLI, tiny_model, *flags), tmp_path / "run")
    before = weights_of(final)
    finished(call(NLI, final, *flags, "--overwrite_output_dir"), tmp_path / "run")
    assert any(not torch.equal(before[name], weight) for name, weight in weights_of(final).items())


def test_a_mistake_costs_no_earlier_run(fails, english, tmp_path, rows):
    """--overwrite_output_dir removes nothing before the new run is sure to begin."""
    folder = shutil.copytree(english[1], tmp_path / "run")
    at = ("--output_dir", folder, "--overwrite_output_dir")
    fails(1, "not found on the Hub", NLI, "nobody/nothing", *at)
    fails(1, "no column for 'anchor'", NLI, "--train_data", write(tmp_path / "x.csv", [{"a": "b"}] * 3), *at)
    fails(2, "dimension 1024 is above", NLI, "--matryoshka_dims", "1024", *at)
    assert (folder / "final/model.safetensors").exists() and record_of(folder)["status"] == "finished"


def test_two_runs_never_share_a_folder(fails, call, english, tmp_path, monkeypatch):
    """The lock is that of another process; its end, even by a kill, releases it."""
    monkeypatch.setattr("training.utils.run_folder.LOCK_WAIT", 0)
    folder = shutil.copytree(english[1], tmp_path / "run")
    flags = (*FAST, "--max_steps", "1", "--output_dir", folder, "--overwrite_output_dir")
    hold = f"import filelock; lock = filelock.FileLock({str(folder / '.lock')!r}); lock.acquire(); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        fails(1, "another process is training in ", NLI, *flags)
        assert (folder / "final/model.safetensors").exists() and record_of(folder)["status"] == "finished"
        other.kill()
    finished(call(NLI, *flags), folder)


def test_a_run_that_ended_while_another_loaded_its_data_is_not_overwritten(fails, english, tmp_path, monkeypatch):
    import training.utils.data_loading as data_loading

    folder = tmp_path / "run"
    load = data_loading.load_training_data

    def load_while_another_run_ends(*args, **kwargs):
        shutil.copytree(english[1], folder, dirs_exist_ok=True)
        return load(*args, **kwargs)

    monkeypatch.setattr(data_loading, "load_training_data", load_while_another_run_ends)
    before = english[1] / "final/model.safetensors"
    fails(1, "contains a finished run", NLI, *FAST, "--max_steps", "1", "--output_dir", folder)
    assert (folder / "final/model.safetensors").read_bytes() == before.read_bytes()


def test_the_same_command_trains_the_same_model(call, tmp_path, rows, tiny_model):
    data = write(tmp_path / "mine.csv", rows)
    flags = ("--train_data", data, "--dev_data", "none", *FAST)
    found = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        done = call(NLI, tiny_model, *flags, "--seed", str(seed), "--output_dir", tmp_path / name)
        found.append(weights_of(finished(done, tmp_path / name)))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(not torch.equal(found[0][key], found[2][key]) for key in found[0])


def test_a_best_checkpoint_that_cannot_be_loaded_ends_the_run(fails, monkeypatch, tmp_path, tiny_model):
    """Its weights are corrupt after the last step, before the trainer loads them."""
    from training.utils.trainer import MatryoshkaTrainer

    load = MatryoshkaTrainer._load_best_model

    def damage_then_load(self):
        path = Path(self.state.best_model_checkpoint) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        load(self)

    monkeypatch.setattr(MatryoshkaTrainer, "_load_best_model", damage_then_load)
    flags = ("--max_steps", "2", "--eval_steps", "1", *FAST, "--output_dir", tmp_path / "run")
    fails(1, "cannot be loaded", NLI, tiny_model, *flags)
    assert not (tmp_path / "run/final").exists()


# Mistakes


@pytest.mark.parametrize(
    ("code", "message", "args"),
    [
        (1, "not found on the Hub, or private", [NLI, "nobody/nothing"]),
        (1, "no such folder", [NLI, "no/such/folder"]),
        (1, "is a file", [NLI, "requirements.txt"]),
        (2, "no such file", [NLI, "--train_data", "none.csv"]),
        (2, "dimension 1024 is above the model's width of 768", [NLI, "--matryoshka_dims", "1024"]),
        (2, "dimension 128 is above the model's width of 64", [HYBRID, ARABERT, "--matryoshka_dims", "64", "128"]),
        (2, "a dimension must be positive, not 0", [NLI, "--matryoshka_dims", "64", "0"]),
        (2, "a dimension must be positive, not -64", [HYBRID, "--matryoshka_dims", "-64"]),
        (2, "64 is duplicated", [NLI, "--matryoshka_dims", "64", "64"]),
        (2, "the length of --matryoshka_weights is 1, but", [NLI, ARABERT, "--matryoshka_weights", "1"]),
        (2, "'fr' is not a file and not one of auto, none, en, ar, en-ar", [NLI, "--dev_data", "fr"]),
        (1, "--max_seq_length 4096 is above the", [NLI, ARABERT, "--max_seq_length", "4096"]),
        (1, "has no checkpoint to resume from", [NLI, "--resume_from_checkpoint", "latest"]),
        (2, "--max_steps must be at least 1", [NLI, "--max_steps", "0"]),
        (2, "--max_seq_length has no effect on static embeddings", [NLI, "static", "--max_seq_length", "9"]),
        (
            2,
            "below the full width of 64",
            [NLI, ARABERT, "--matryoshka_dims", "64", "--self_distillation_weight", "1"],
        ),
        (2, "unknown flag --model; did you mean --model_name?", [NLI, "--model", "x"]),
    ],
)
def test_mistakes_end_in_one_line(fails, tmp_path, code, message, args):
    fails(code, message, *args, "--output_dir", tmp_path / "run")
    assert not list(tmp_path.rglob("run.json")) and not list(tmp_path.rglob("final"))


@pytest.mark.parametrize(
    ("code", "message", "entry"),
    [
        (1, "not found on the Hub", {"path": "nobody/nothing", "loss": "mnrl"}),
        (1, "triplet", {"path": "sentence-transformers/all-nli", "loss": "mnrl"}),
        (
            1,
            "validation",
            {"path": "sentence-transformers/all-nli", "name": "triplet", "split": "validation", "loss": "mnrl"},
        ),
        (
            1,
            "no column for 'sentence1'; the columns are anchor, positive, negative",
            {"path": "sentence-transformers/all-nli", "name": "triplet", "loss": "softmax"},
        ),
        (1, "outside 0..1; set 'score_range' for this data set", {"path": "mteb/stsbenchmark-sts", "loss": "cosent"}),
        (2, "'name' and 'split' are for data sets on the Hub", {"path": "x.csv", "split": "dev", "loss": "mnrl"}),
        (2, "'name' and 'split' are for data sets on the Hub", {"path": "x.csv", "name": "triplet", "loss": "mnrl"}),
    ],
)
def test_mistakes_in_a_mixture(fails, tmp_path, tiny_model, code, message, entry):
    config = tmp_path / "mixture.json"
    config.write_text(json.dumps({"datasets": {"x": entry}}))
    fails(code, message, HYBRID, tiny_model, "--config", config, "--output_dir", tmp_path / "run")


def test_mini_batches_of_no_use(fails, call, tmp_path, rows, tiny_model):
    config = tmp_path / "mixture.json"
    config.write_text(json.dumps({"datasets": {"x": {"path": "sentence-transformers/stsb", "loss": "cosent"}}}))
    flags = ("--mini_batch_size", "4", "--output_dir", tmp_path / "run")
    fails(2, "--mini_batch_size is for the losses mnrl and gist", HYBRID, tiny_model, "--config", config, *flags)
    data = ("--train_data", write(tmp_path / "mine.csv", rows), "--dev_data", "none", *FAST)
    small = ("--static_embedding_dim", "16", "--static_vocab_size", "300", "--max_steps", "1")
    finished(call(NLI, "static", *data, *small, "--output_dir", tmp_path / "static"), tmp_path / "static")
    trained = tmp_path / "static/final"  # a static model that was trained before
    fails(2, "--mini_batch_size has no effect on static embeddings", NLI, trained, *data, *flags)
    fails(
        2,
        "--max_seq_length has no effect",
        NLI,
        trained,
        *data,
        "--max_seq_length",
        "9",
        "--output_dir",
        tmp_path / "run",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decy": 0.1}, "unknown key 'weight_decy'; did you mean weight_decay?"),
        ({"seed": 1}, "'seed' is a key of the configuration itself"),
        ({"lr_scheduler_type": "no such"}, "no such"),
        ({"adam_beta1": "x"}, "adam_beta1' must be a number"),
        ({"bf16": True}, "'bf16' has no effect here: set --precision"),
        ({"batch_sampler": "batch_sampler"}, "no batch has a known false negative"),
    ],
)
def test_mistakes_in_the_training_arguments(fails, tmp_path, tiny_model, arguments, message):
    config = tmp_path / "other.json"
    config.write_text(json.dumps({"training_arguments": arguments}))
    fails(2, message, NLI, tiny_model, "--config", config, "--output_dir", tmp_path / "run")


def test_other_training_arguments_reach_the_trainer(call, tmp_path, rows, tiny_model):
    config = tmp_path / "other.json"
    other = {"lr_scheduler_type": "constant", "weight_decay": 0.25, "disable_tqdm": True}
    config.write_text(json.dumps({"training_arguments": other}))
    data = write(tmp_path / "mine.csv", rows)
    flags = ("--train_data", data, "--dev_data", "none", *FAST, "--warmup_steps", "0", "--logging_steps", "1")
    done = call(NLI, tiny_model, "--config", config, *flags, "--output_dir", tmp_path / "run")
    finished(done, tmp_path / "run")
    rates = {e["learning_rate"] for e in last_state(tmp_path / "run")["log_history"] if "learning_rate" in e}
    assert rates == {1e-3}
    assert "step 1 of " in done.err and "it/s" not in done.err, "the losses are told without a progress bar too"


@pytest.mark.parametrize("content", ["", "anchor,positive\n", "anchor,positive\na,b\n", "first,second\na,b\nc,d\n"])
def test_data_that_cannot_be_trained_on(fails, tmp_path, tiny_model, content):
    path = tmp_path / "x.csv"
    path.write_text(content)
    fails(1, str(path), NLI, tiny_model, "--train_data", path, "--dev_data", "none", "--output_dir", tmp_path / "run")


@pytest.mark.parametrize("dev", ["none", "en"])
def test_a_loss_that_is_not_finite_ends_the_run(fails, tmp_path, rows, tiny_model, dev):
    data = write(tmp_path / "mine.csv", rows * 3)
    flags = (
        "--learning_rate",
        "1e30",
        "--warmup_steps",
        "0",
        "--per_device_train_batch_size",
        "4",
        "--precision",
        "fp32",
    )
    at = ("--output_dir", tmp_path / "run", "--dev_data", dev)
    fails(1, "at step ", NLI, tiny_model, "--train_data", data, *flags, *at)
    assert not (tmp_path / "run/final").exists()


@pytest.mark.parametrize("dev", ["none", "en"])
def test_weights_with_nan_end_the_run(fails, tmp_path, rows, tiny_model, dev):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("LayerNorm.weight"))
    save_file(
        weights | {name: torch.full_like(weights[name], torch.nan)}, folder / "model.safetensors", {"format": "pt"}
    )
    data = write(tmp_path / "mine.csv", rows)
    at = ("--train_data", data, "--dev_data", dev, "--output_dir", tmp_path / "run")
    message = fails(1, "", NLI, folder, *FAST, *at)
    assert "nan" in message.lower()
    assert not (tmp_path / "run/final").exists()


def test_an_unknown_tracker(fails, tmp_path, rows, tiny_model):
    data = write(tmp_path / "mine.csv", rows)
    flags = ("--train_data", data, "--dev_data", "none", *FAST, "--output_dir", tmp_path / "run")
    fails(2, "--report_to no_such: this tracker is not installed", NLI, tiny_model, *flags, "--report_to", "no_such")
    assert not (tmp_path / "run/run.json").exists()


def test_data_sets_are_drawn_by_their_weights(call, tmp_path, rows, tiny_model):
    """And by round robin, and in proportion to their size."""
    small, large = write(tmp_path / "small.csv", rows[:8]), write(tmp_path / "large.csv", rows)
    config = tmp_path / "mixture.json"
    flags = (
        tiny_model,
        "--config",
        config,
        "--dev_data",
        "none",
        "--per_device_train_batch_size",
        "4",
        "--precision",
        "fp32",
    )
    at = ("--logging_steps", "1", "--eval_steps", "80", "--output_dir")

    def drawn(folder: Path, *more: str, **weights: float) -> dict[str, int]:
        entries = {"small": {"path": str(small), "loss": "mnrl"}, "large": {"path": str(large), "loss": "mnrl"}}
        config.write_text(
            json.dumps({"datasets": {k: e | {"weight": weights[k]} if weights else e for k, e in entries.items()}})
        )
        finished(call(HYBRID, *flags, *more, *at, folder), folder)
        history = last_state(folder)["log_history"]
        return {name: sum(f"loss_{name}_64" in entry for entry in history) for name in entries}

    assert drawn(tmp_path / "size") == {"small": 2, "large": 6}
    assert drawn(tmp_path / "turns", "--multi_dataset_batch_sampler", "round_robin") == {"small": 2, "large": 2}
    found = drawn(tmp_path / "weights", "--num_train_epochs", "10", small=3.0, large=1.0)
    assert sum(found.values()) == 80 and 50 <= found["small"] <= 70  # 60 expected, 3.9 the standard deviation


def test_a_batch_larger_than_the_data(call, tmp_path, rows, tiny_model):
    data = write(tmp_path / "mine.csv", rows[:5])
    flags = ("--train_data", data, "--dev_data", "none", "--per_device_train_batch_size", "64")
    done = call(NLI, tiny_model, *flags, "--output_dir", tmp_path / "run")
    finished(done, tmp_path / "run")
    assert record_of(tmp_path / "run")["steps"] == 1


def test_no_text_is_duplicated_in_a_batch(tmp_path, call, rows, tiny_model, monkeypatch):
    """Each triplet occurs four times in the file; a duplicate in a batch would be a false negative."""
    from training.utils.trainer import MatryoshkaTrainer

    batches, step = [], MatryoshkaTrainer.compute_loss

    def watch(self, model, inputs, *args, **kwargs):
        batches.append([tuple(ids) for key in inputs if key.endswith("input_ids") for ids in inputs[key].tolist()])
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(MatryoshkaTrainer, "compute_loss", watch)
    data = write(tmp_path / "mine.csv", rows * 4)
    flags = ("--train_data", data, "--dev_data", "none", "--per_device_train_batch_size", "8", "--precision", "fp32")
    finished(call(NLI, tiny_model, *flags, "--output_dir", tmp_path / "run"), tmp_path / "run")
    assert len(batches) >= 10
    assert all(len(set(batch)) == len(batch) > 2 for batch in batches)


def test_nothing_is_uploaded_unasked(english, hub):
    assert not [request for request in hub.requests if "/api/repos/create" in request and "distilroberta" in request]
    assert record_of(english[1])["config"]["push_to_hub"] is False


@pytest.mark.slow  # as in test_evaluation.py
def test_without_network_and_without_cache(cli, tmp_path):
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = cli(NLI, "--output_dir", tmp_path / "run", env=offline)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: ") and "the Hub cannot be reached" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("final")) and not list(tmp_path.rglob("run.json"))


def test_without_network_but_with_the_cache(cli, english, tmp_path):
    """Files that were downloaded earlier are enough. The command starts in a new interpreter, as a user's does."""
    flags = ("--max_steps", "1", "--dev_data", "none", *FAST, "--output_dir", tmp_path / "run")
    done = cli(NLI, *flags, env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"})
    finished(done, tmp_path / "run")
    assert record_of(tmp_path / "run")["base_model"]["revision"] == record_of(english[1])["base_model"]["revision"]
