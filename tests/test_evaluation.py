"""Evaluation: every score equals an independent computation, belongs to the right model, and needs one encode."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from sentence_transformers import SentenceTransformer

from common.errors import RunError
from common.models import hash_folder, identify, load_model
from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
from evaluation.utils.phases import Phases
from evaluation.utils.report.summary import NOTE, update_summary
from evaluation.utils.report.summary import read_summary as read_summary_strictly
from evaluation.utils.report.table import WITHOUT_INTERVAL, markdown_table, write_table
from evaluation.utils.scoring.rows import ScoreRow
from evaluation.utils.scoring.similarity import sts_scores
from tests.helpers import ROOT, read_jsonl, read_summary, scored

MTEB, STS = "evaluation/evaluate_mteb.py", "evaluation/evaluate_sts.py"
DIMS = (64, 32, 16)
FLAGS = ("--dims", *map(str, DIMS))
QUICK = (*FLAGS, "--calibration_data", "none")
SUBSETS = ("ar-ar", "en-ar", "en-en")
COSINE = "cosine_spearman"


def scores_of(folder: Path, **where) -> dict:
    """``{(task, subset, dim): score}`` of the rows that match."""
    table = read_summary(folder)
    for column, value in where.items():
        table = table[table[column] == value]
    assert not table.duplicated(["task", "subset", "dim"]).any()
    return {(row.task, row.subset, row.dim): getattr(row, COSINE) for row in table.itertuples()}


def copy_model(source: Path, target: Path, noise: float = 0.0, seed: int = 0) -> Path:
    """A copy of a model, with other weights where ``noise`` is not 0."""
    shutil.copytree(source, target)
    if noise:
        path = target / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        weights = {k: v + noise * torch.randn(v.shape, generator=generator) for k, v in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return target


def plain_scores(model: Path | str, tasks: dict[str, list[str]], dims=DIMS) -> dict:
    """The same scores the plain way: one model and one evaluation for each dimension."""
    import mteb

    found = {}
    for dim in dims:
        encoder = SentenceTransformer(str(model), truncate_dim=dim)
        chosen = [mteb.get_task(name, hf_subsets=subsets) for name, subsets in tasks.items()]
        result = mteb.evaluate(encoder, chosen, cache=None, show_progress_bar=False, co2_tracker=False)
        for task in result.task_results:
            for entry in task.scores["test"]:
                found[task.task_name, entry["hf_subset"], dim] = entry["main_score"]
    return found


@pytest.fixture(scope="module")
def evaluated(warm, tiny_model, tmp_path_factory):
    """What the mandated command leaves behind."""
    folder = tmp_path_factory.mktemp("results")
    done = warm(MTEB, "--model_name", tiny_model, *FLAGS, "--output_dir", folder)
    assert done.code == 0, done.err
    return folder, done


def test_every_score_equals_the_plain_one(evaluated, tiny_model):
    folder, _ = evaluated
    found = scores_of(folder)
    expected = plain_scores(tiny_model, {"STS17": ["ar-ar", "en-ar"], "STS22": ["ar"], "STS22.v2": ["ar"]})
    assert set(found) == set(expected) and len(found) == 4 * len(DIMS)
    for key, score in expected.items():
        assert found[key] == pytest.approx(score, abs=1e-5), key
    assert len({round(score, 4) for score in found.values()}) > len(DIMS)  # the dimensions do differ


def test_what_an_evaluation_leaves_behind(evaluated, tiny_model):
    folder, done = evaluated
    table = read_summary(folder)
    assert {"model", "revision", "task", "subset", "dim", "n", COSINE} <= set(table.columns)
    assert set(table["model"]) == {"local/sentence-bert"}
    assert set(table["revision"]) == {hash_folder(tiny_model)}
    assert dict(zip(table["task"], table["n"], strict=True)) == {"STS17": 60, "STS22": 50, "STS22.v2": 50}
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    score = scores_of(folder)["STS17", "ar-ar", 64]
    assert f"{100 * score:.2f}" in (folder / "table.md").read_text() and f"{100 * score:.2f}" in done.out
    own = [json.loads(p.read_text()) for p in folder.rglob("STS17.json")]
    assert len(own) == len(DIMS)
    filed = sorted(e["main_score"] for r in own for e in r["scores"]["test"] if e["hf_subset"] == "ar-ar")
    assert filed == pytest.approx(sorted(scores_of(folder)["STS17", "ar-ar", dim] for dim in DIMS), abs=1e-6)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["config"]["dims"] == list(DIMS)
    assert record["models"] == {"local/sentence-bert": hash_folder(tiny_model)}
    assert {"command", "git", "versions", "hardware", "wall_time_s", "datasets"} <= set(record)


def test_the_record_says_where_the_time_went(evaluated):
    seconds = json.loads((evaluated[0] / "run.json").read_text())["seconds"]
    assert list(seconds) == ["test data", "models", "encoding", "scores", "analysis", "report"]
    assert min(seconds.values()) >= 0 and seconds["encoding"] > 0 and seconds["report"] > 0


def test_time_in_an_inner_phase_counts_for_it_alone():
    phases = Phases()
    with phases.measure("outer"):
        time.sleep(0.2)
        for _ in range(2):
            with phases.measure("inner"):
                time.sleep(0.1)
    with phases.measure("outer"):
        time.sleep(0.1)
    assert phases.seconds == pytest.approx({"inner": 0.2, "outer": 0.3}, abs=0.08)


def distinct_texts(pairs, groups=None):
    sts17 = [row for subset in ("ar-ar", "en-ar") for row in scored(pairs, subset, slice(0, 60))]
    rows = sts17 + scored(pairs, "ar-ar", slice(60, 110))
    return len({row[key] for row in rows for key in ("sentence1", "sentence2")})


def test_a_second_run_leaves_the_summary_as_it_is(evaluated, call, tiny_model, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(evaluated[0], again)
    summary = (again / "summary.csv").read_bytes()
    for more in ((), ("--overwrite",)):
        done = call(MTEB, "--model_name", tiny_model, *FLAGS, "--output_dir", again, *more)
        assert done.code == 0, done.err
        assert (again / "summary.csv").read_bytes() == summary


def test_every_text_is_encoded_once_and_never_again(evaluated, call, tiny_model, pairs, tmp_path):
    folder, _ = evaluated
    record = json.loads((folder / "run.json").read_text())
    assert record["texts_encoded"]["local/sentence-bert"]["tasks"] == distinct_texts(pairs)
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    done = call(MTEB, "--model_name", tiny_model, *FLAGS, "--output_dir", again)
    assert done.code == 0, done.err
    assert "already exist" in done.out
    assert scores_of(again) == pytest.approx(scores_of(folder), abs=1e-6)
    done = call(MTEB, "--model_name", tiny_model, *FLAGS, "--output_dir", again, "--overwrite")
    assert done.code == 0, done.err
    encoded = json.loads((again / "run.json").read_text())["texts_encoded"]["local/sentence-bert"]
    assert encoded["tasks"] == distinct_texts(pairs)
    assert scores_of(again) == pytest.approx(scores_of(folder), abs=1e-6)


def test_each_model_gets_its_own_scores_in_one_folder(call, tiny_model, tmp_path):
    """Two models on disk, and one that is trained further in place: no one is given another's scores."""
    first, second = copy_model(tiny_model, tmp_path / "a/m"), copy_model(tiny_model, tmp_path / "b/m", noise=0.1)
    out, tasks = tmp_path / "out", {"STS17": ["ar-ar"]}
    flags = ("--tasks", "STS17", "--subsets", "ar-ar", *QUICK, "--output_dir", out)
    done = call(MTEB, "--model_name", first, second, *flags)
    assert done.code == 0, done.err
    before = {identify(str(m)).revision: plain_scores(m, tasks) for m in (first, second)}
    assert len(before) == 2
    copy = copy_model(tiny_model, tmp_path / "c", noise=0.1, seed=5)
    shutil.copy(copy / "model.safetensors", second / "model.safetensors")
    done = call(MTEB, "--model_name", second, *flags)
    assert done.code == 0, done.err
    expected = before | {identify(str(second)).revision: plain_scores(second, tasks)}
    assert len(expected) == 3
    assert len({tuple(scores.values()) for scores in expected.values()}) == 3
    for revision, scores in expected.items():
        assert scores_of(out, revision=revision) == pytest.approx(scores, abs=1e-5)


def test_a_task_without_subsets(call, tiny_model, tmp_path):
    done = call(MTEB, "--model_name", tiny_model, "--tasks", "STSBenchmark", *QUICK, "--output_dir", tmp_path)
    assert done.code == 0, done.err
    expected = plain_scores(tiny_model, {"STSBenchmark": ["default"]})
    assert scores_of(tmp_path) == pytest.approx(expected, abs=1e-5)


def test_a_model_of_the_hub_is_filed_under_its_commit(call, hub, tmp_path):
    of = ("--tasks", "STS17", "--subsets", "en-en", *QUICK, "--output_dir", tmp_path)
    done = call(MTEB, "--model_name", "tiny/sentence-bert", *of)
    assert done.code == 0, done.err
    table = read_summary(tmp_path)
    assert set(table["model"]) == {"tiny/sentence-bert"}
    revision = table["revision"][0]
    assert any(f"/tiny/sentence-bert/resolve/{revision}/" in request for request in hub.requests)
    expected = plain_scores(hub.root / "models/tiny/sentence-bert", {"STS17": ["en-en"]})
    assert scores_of(tmp_path) == pytest.approx(expected, abs=1e-5)


def test_precisions_are_kept_apart(call, tiny_model, tmp_path):
    flags = ("--model_name", tiny_model, "--tasks", "STS17", "--subsets", "ar-ar", *QUICK, "--output_dir", tmp_path)
    for dtype in ("float32", "bfloat16", "float32"):
        done = call(MTEB, *flags, "--dtype", dtype)
        assert done.code == 0, done.err
    exact, rough = (scores_of(tmp_path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert exact == pytest.approx(plain_scores(tiny_model, {"STS17": ["ar-ar"]}), abs=1e-5)
    assert rough != exact and rough == pytest.approx(exact, abs=0.1)


# evaluate_sts.py


def independent(first: np.ndarray, second: np.ndarray, gold: list[float]) -> dict[str, float]:
    first, second = first.astype(np.float64), second.astype(np.float64)
    found = {
        "cosine": (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1),
        "dot": np.einsum("ij,ij->i", first, second),
        "euclidean": -np.sqrt(((first - second) ** 2).sum(1)),
        "manhattan": -np.abs(first - second).sum(1),
    }
    scores = {f"{name}_spearman": stats.spearmanr(gold, s).statistic for name, s in found.items()}
    return scores | {f"{name}_pearson": stats.pearsonr(gold, s).statistic for name, s in found.items()}


def embeddings_of(model: Path, rows: list[dict]) -> tuple[np.ndarray, np.ndarray, list[float]]:
    encoder = SentenceTransformer(str(model))
    first, second = (encoder.encode([row[key] for row in rows]) for key in ("sentence1", "sentence2"))
    return first, second, [row["score"] for row in rows]


@pytest.mark.parametrize("task", ["STS17", "STS22.v2", "STSBenchmark"])
def test_four_similarities_equal_an_independent_computation(call, tiny_model, pairs, tmp_path, task):
    rows = {
        "STS17": {"ar-ar": scored(pairs, "ar-ar", slice(0, 60)), "en-ar": scored(pairs, "en-ar", slice(0, 60))},
        "STS22.v2": {"ar": scored(pairs, "ar-ar", slice(60, 110), 3 / 5, 1)},
        "STSBenchmark": {"default": scored(pairs, "en-en", slice(136, 176))},
    }[task]
    done = call(STS, "--model_name", tiny_model, "--task", task, *QUICK, "--output_dir", tmp_path)
    assert done.code == 0, done.err
    table = read_summary(tmp_path)
    assert len(table) == len(rows) * len(DIMS)
    for row in table.to_dict("records"):
        first, second, gold = embeddings_of(tiny_model, rows[row["subset"]])
        assert row["n"] == len(gold)
        for name, score in independent(first[:, : row["dim"]], second[:, : row["dim"]], gold).items():
            assert row[name] == pytest.approx(score, abs=1e-5), (row["subset"], row["dim"], name)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_pairs_of_ones_own(call, tiny_model, pairs, tmp_path, suffix):
    rows = scored(pairs, "en-ar", slice(0, 30))
    path = tmp_path / f"mine{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    out = tmp_path / "out"
    done = call(STS, "--model_name", tiny_model, "--data", path, *QUICK, "--output_dir", out)
    assert done.code == 0, done.err
    first, second, gold = embeddings_of(tiny_model, rows)
    for dim in DIMS:
        expected = independent(first[:, :dim], second[:, :dim], gold)[COSINE]
        assert scores_of(out)["mine", "default", dim] == pytest.approx(expected, abs=1e-5)
    assert "not on an MTEB task" in done.out and "not on an MTEB task" in (out / "table.md").read_text()


def test_evaluate_sts_as_a_command(warm, tiny_model, tmp_path):
    done = warm(
        STS, "--model_name", tiny_model, "--task", "STS17", "--subsets", "en-en", "--output_dir", "out", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert set(scores_of(tmp_path / "out")) == {("STS17", "en-en", 64)}
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["status"] == "finished" and record["texts_encoded"]["local/sentence-bert"] > 60
    assert (tmp_path / "out/plot.png").stat().st_size > 5000


def test_both_scripts_agree_and_fill_one_table(evaluated, call, tiny_model, tmp_path):
    folder, _ = evaluated
    both = tmp_path / "both"
    shutil.copytree(folder, both)
    done = call(STS, "--model_name", tiny_model, "--task", "STS17", *QUICK, "--output_dir", both)
    assert done.code == 0, done.err
    assert scores_of(both) == pytest.approx(scores_of(folder), abs=1e-6)
    table = read_summary(both)
    assert table.loc[table["task"] == "STS17", "dot_spearman"].notna().all()


# Identities


def test_the_readme_does_not_change_the_identity_and_any_other_file_does(tiny_model, tmp_path):
    folder = copy_model(tiny_model, tmp_path / "m")
    revision = hash_folder(folder)
    assert len(revision) == 40 and revision == hash_folder(tiny_model)
    (folder / "README.md").write_text("another card")
    (folder / ".DS_Store").write_text("an editor's")
    assert hash_folder(folder) == revision
    names = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("README.md", ".DS_Store")]
    assert len(names) > 4
    for path in names:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert hash_folder(folder) != revision, path
        path.write_bytes(content)
    for other in ("new.txt", "1_Pooling/README.md"):
        (folder / other).write_text("")
        assert hash_folder(folder) != revision, other
        (folder / other).unlink()
    (folder / "config.json").rename(folder / "konfig.json")
    assert hash_folder(folder) != revision


def test_names_of_models_on_disk(tiny_model, tmp_path, hub):
    for path, name in (
        ("my model", "local/my_model"),
        ("run/final", "local/run"),
        ("run/untrained", "local/run-untrained"),
        ("run/checkpoint-3", "local/run-checkpoint-3"),
    ):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert identify(str(folder)).name == name
    assert identify("tiny/sentence-bert").name == "tiny/sentence-bert"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nobody/nothing", "not found on the Hub, or private"),
        ("no-such-model", "not found on the Hub, or private"),
        ("no/such/folder", "no such folder"),
        ("../up", "no such folder"),
        ("", "the name is empty"),  # Path would take this for the working directory
    ],
)
def test_models_that_are_not_there(hub, source, message):
    with pytest.raises(RunError) as error:
        identify(source)
    assert message in str(error.value) and source in str(error.value)


def test_a_models_own_truncation_is_lifted(tiny_model, tmp_path, caplog):
    model = SentenceTransformer(str(tiny_model), truncate_dim=16)
    model.save_pretrained(str(tmp_path / "m"))
    assert load_model(str(tmp_path / "m")).get_embedding_dimension() == 64


# Scores that are not there, and mistakes


def test_scores_that_are_undefined():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 5, 8)).astype(np.float32)
    with pytest.raises(RunError, match="every pair has the same score"):
        sts_scores(first, second, [1.0] * 5)
    same = np.ones((5, 8), np.float32)
    with pytest.raises(RunError, match="every pair has the same similarity"):
        sts_scores(same, same, [1.0, 2.0, 3.0, 4.0, 5.0])
    gold = list(random.random(5))
    assert sts_scores(first, second, gold) == pytest.approx(independent(first, second, gold), abs=1e-5)


def test_the_dev_score_is_the_mean_over_dimensions_and_sets(tiny_model, pairs):
    sets = {
        name: {key: [row[key] for row in rows] for key in rows[0]}
        for name, rows in (("a", scored(pairs, "ar-ar", slice(0, 20))), ("b", scored(pairs, "en-en", slice(0, 20))))
    }
    model = SentenceTransformer(str(tiny_model))
    metrics = MatryoshkaEvaluator(sets, [64, 16])(model)
    expected = {}
    for name, rows in sets.items():
        first, second = (model.encode(rows[key]) for key in ("sentence1", "sentence2"))
        for dim in (64, 16):
            score = independent(first[:, :dim], second[:, :dim], rows["score"])
            expected[f"{name}-{dim}_spearman_cosine"] = score["cosine_spearman"]
            expected[f"{name}-{dim}_pearson_cosine"] = score["cosine_pearson"]
    means = [score for key, score in expected.items() if "spearman" in key]
    assert metrics == pytest.approx(expected | {"mean_score": np.mean(means)}, abs=1e-5)


def test_translations_are_found_as_the_library_counts_them(tiny_model, groups, pairs):
    """At every dimension from one encode, and each set weighs the same in the mean."""
    from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator

    # repeated texts, of which some are never found
    groups = [*groups[:40], groups[0], groups[0] | {"premise_en": "another premise"}]
    rows = {"source": [g["premise_en"] for g in groups], "target": [g["premise_ar"] for g in groups]}
    for column in rows.values():  # any model finds a text that is its own translation
        column += [g["entailment_en"] for g in groups[:5]]
    sets = {
        "sts": {key: [row[key] for row in scored(pairs, "ar-ar", slice(0, 20))] for key in ("sentence1", "sentence2")}
        | {"score": [row["score"] for row in scored(pairs, "ar-ar", slice(0, 20))]},
        "found": rows,
    }
    model = SentenceTransformer(str(tiny_model))
    texts, encode = [], model.encode
    model.encode = lambda batch, **kwargs: texts.extend(batch) or encode(batch, **kwargs)
    metrics = MatryoshkaEvaluator(sets, [64, 16])(model)
    assert len(texts) == len({*rows["source"], *rows["target"]}) + len(
        {*sets["sts"]["sentence1"], *sets["sts"]["sentence2"]}
    )
    model.encode = encode
    judged = [metrics[f"sts-{dim}_spearman_cosine"] for dim in (64, 16)]
    for dim in (64, 16):
        library = TranslationEvaluator(rows["source"], rows["target"], name=f"found-{dim}", truncate_dim=dim)
        expected = library(model)
        assert {key: metrics[key] for key in expected} == pytest.approx(expected)
        judged.append(expected[f"found-{dim}_mean_accuracy"])
    assert 0 < judged[-1] < 1
    assert metrics["mean_score"] == pytest.approx(np.mean(judged))


def test_a_model_that_gives_nan(fails, tiny_model, tmp_path):
    folder = copy_model(tiny_model, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    name = next(k for k in weights if k.endswith("LayerNorm.weight"))
    save_file(
        weights | {name: torch.full_like(weights[name], torch.nan)}, folder / "model.safetensors", {"format": "pt"}
    )
    out = tmp_path / "out"
    fails(1, "NaN", MTEB, "--model_name", folder, "--tasks", "STS17", "--output_dir", out)
    fails(1, "NaN", STS, "--model_name", folder, "--task", "STS17", "--output_dir", out)
    assert not (out / "summary.csv").exists()


def test_mistakes_end_in_one_line_and_overwrite_nothing(fails, tiny_model, pairs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.csv").write_text("model,revision,dtype,task,subset,dim\nx,1,float32,t,s,64\n")
    before = (out / "summary.csv").read_bytes()
    constant = tmp_path / "constant.csv"
    constant.write_text("sentence1,sentence2,score\na,b,1\nc,d,1\ne,f,1\n")
    at = ("--output_dir", out)
    of = ("--model_name", tiny_model, *at)
    fails(2, "--model_name is missing", MTEB, *at)
    fails(2, "unknown task 'STS71'; did you mean 'STS", MTEB, *of, "--tasks", "STS71")
    fails(2, "--task must be one of STS17, STS22, STS22.v2, STSBenchmark, not 'STS18'", STS, *of, "--task", "STS18")
    fails(2, "give either --task", STS, *of)
    fails(2, "give either --task", STS, *of, "--task", "STS17", "--data", constant)
    fails(2, "no such file", STS, *of, "--data", tmp_path / "none.csv")
    fails(1, "no score to report: constant default: every score is 1", STS, *of, "--data", constant)
    fails(2, "dimension 128 is above the model's width of 64", MTEB, *of, "--dims", "128", "64")
    fails(2, "a dimension must be positive, not 0", MTEB, *of, "--dims", "0")
    fails(2, "a dimension must be positive, not -4", STS, *of, "--task", "STS17", "--dims", "-4")
    fails(2, "64 is duplicated", MTEB, *of, "--dims", "64", "64")
    inside = ("--model_name", tiny_model, "--output_dir", Path(tiny_model) / "results")
    fails(2, f"results is inside the model's folder {tiny_model}: choose a folder outside it", MTEB, *inside)
    fails(1, "not found on the Hub", MTEB, "--model_name", "nobody/nothing", *at)
    fails(1, "is a file", MTEB, "--model_name", constant, *at)
    (tmp_path / "empty").mkdir()
    fails(1, "the folder is empty", MTEB, "--model_name", tmp_path / "empty", *at)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/notes.txt").write_text("not a model")
    fails(1, "it is not a model", STS, "--model_name", tmp_path / "odd", "--task", "STS17", *at)
    assert (out / "summary.csv").read_bytes() == before


@pytest.mark.parametrize("script", [MTEB, STS])
def test_a_subset_that_a_task_does_not_have(fails, tiny_model, tmp_path, script):
    task = ("--task" if script == STS else "--tasks", "STS17")
    fails(2, "ar_ar", script, "--model_name", tiny_model, *task, "--subsets", "ar_ar", "--output_dir", tmp_path)


def test_weights_that_are_cut_off(fails, tiny_model, tmp_path):
    folder = copy_model(tiny_model, tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    fails(1, "cannot be loaded", STS, "--model_name", folder, "--task", "STS17", "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("script", [MTEB, pytest.param(STS, marks=pytest.mark.slow)])
def test_without_network_and_without_cache(cli, tmp_path, script):
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    flags = ("--task", "STS17") if script == STS else ()
    done = cli(script, "--model_name", "tiny/sentence-bert", *flags, "--output_dir", tmp_path / "out", env=offline)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: ") and "the Hub cannot be reached" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "out/summary.csv").exists()


# summary.csv


def row(model="a/b", revision="r1", task="T", subset="s", dim=64, score=0.5, **similarity_scores) -> ScoreRow:
    return ScoreRow(model, revision, "float32", task, subset, dim, 5, "STS", COSINE, score,
                    similarity_scores=similarity_scores)  # fmt: skip


def test_rows_of_others_stay_and_ones_own_are_replaced(tmp_path):
    path = tmp_path / "summary.csv"
    update_summary(path, [row(cosine_spearman=0.1), row(model="c/d", cosine_spearman=0.2), row(revision="007")])
    update_summary(path, [row(cosine_spearman=0.3), row(dim=32, cosine_spearman=0.4)])
    update_summary(path, [row(dot_spearman=0.5)])
    table = read_summary(tmp_path)
    found = {(r.model, r.revision, r.dim): (r.cosine_spearman, r.dot_spearman) for r in table.itertuples()}
    assert len(table) == 4
    assert found["a/b", "r1", 64] == (0.3, 0.5)
    assert found["a/b", "r1", 32][0] == 0.4 and found["c/d", "r1", 64][0] == 0.2
    assert ("a/b", "007", 64) in found


def test_a_row_whose_score_has_changed_keeps_nothing_of_the_old_one(tmp_path):
    path = tmp_path / "summary.csv"
    with_interval = row(cosine_spearman=0.1)
    with_interval.ci_low, with_interval.ci_high = with_interval.score - 0.1, with_interval.score + 0.1
    update_summary(path, [with_interval])
    same, other = row(dot_spearman=0.5), row(dot_spearman=0.5)
    update_summary(path, [same])
    assert read_summary(tmp_path)["ci_low"].notna().all()
    other.score = same.score / 2
    update_summary(path, [other])
    assert read_summary(tmp_path)["ci_low"].isna().all() and read_summary(tmp_path)["cosine_spearman"].isna().all()


def test_subsets_named_na_are_kept(tmp_path):
    update_summary(tmp_path / "summary.csv", [row(subset="NA", cosine_spearman=0.5), row(subset="nan")])
    update_summary(tmp_path / "summary.csv", [row(subset="null")])
    assert sorted(read_summary(tmp_path)["subset"]) == ["NA", "nan", "null"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"\xff\xfe\x00",
        b'model,revision\n"x',
        b"model,revision,dtype,task,subset,dim\n1,2\n1,2,3,4,5,6,7,8\n",
        b"model,revision,dtype,task,subset,dim\na,b,float32,t,s\n",
        b"model,revision,dtype,task,subset,dim,score\na,b,float32,t,s,64,high\n",
        b"model,revision,dtype,task,subset,dim,score\na,b,float32,t,s,64,0.5\na,b,float32,t,s,64,0.6\n",
    ],
)
def test_a_corrupt_summary_is_set_aside(tmp_path, caplog, content):
    path = tmp_path / "summary.csv"
    for number in (1, 2):  # the second does not overwrite the first
        path.write_bytes(content)
        table = update_summary(path, [row(cosine_spearman=0.5)])
        assert len(table) == 1 and read_summary(tmp_path)["cosine_spearman"].tolist() == [0.5]
        aside = tmp_path / ("summary.csv.corrupt" if number == 1 else "summary.csv.corrupt-2")
        assert aside.read_bytes() == content
        assert f"{path} is corrupt" in caplog.text and f"renamed to {aside.name}" in caplog.text


def test_a_summary_that_is_cut_off_anywhere_is_never_trusted(tmp_path):
    path = tmp_path / "summary.csv"
    update_summary(path, [row(dim=dim, score=0.25, cosine_spearman=0.25) for dim in (64, 32)])
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        if whole[:length].count(b"\n") and whole[:length].endswith(b"\n"):
            continue  # only complete lines: no score is cut off
        with pytest.raises(RunError):
            read_summary_strictly(path)


def test_the_markdown_table_has_a_column_for_each_dimension():
    rows = [row(score=0.5), row(dim=8, score=0.25), row(revision="r2" * 8, score=0.75)]
    nothing = {"ci_low": float("nan"), "ci_high": float("nan"), "p_full": float("nan"), "diff_full": 0.0}
    table = pd.DataFrame([scored_row.as_columns() | nothing for scored_row in rows])
    lines = markdown_table(table).splitlines()
    assert lines[0].split("|")[5:7] == [" 64 ", " 8 "]
    assert "50.00 | 25.00" in lines[2] and "a/b (r1)" in lines[2]
    assert "75.00" in lines[3] and "r2r2r2r2" in lines[3]


def test_the_table_explains_missing_brackets_only_if_a_score_has_no_interval(tmp_path):
    without = row(score=0.5).as_columns() | {"ci_low": np.nan, "ci_high": np.nan, "p_full": np.nan, "diff_full": 0.0}
    with_interval = without | {"dim": 8, "ci_low": 0.4, "ci_high": 0.6}
    unscored = without | {"dim": 16, "score": np.nan, NOTE: "it has no texts"}
    tables = [pd.DataFrame(rows) for rows in ([with_interval, unscored], [with_interval, without | {NOTE: None}])]
    texts = [write_table(tmp_path / "table.md", table) for table in tables]
    assert [WITHOUT_INTERVAL in text for text in texts] == [False, True]


def test_sample_is_readable_by_evaluate_sts(call, tiny_model, tmp_path):
    path = ROOT / "data/sample/sts_pairs.jsonl"
    done = call(STS, "--model_name", tiny_model, "--data", path, "--dims", "64", "--output_dir", tmp_path)
    assert done.code == 0, done.err
    assert {subset for _, subset, _ in scores_of(tmp_path)} == set(SUBSETS)
    assert read_summary(tmp_path)["n"].sum() == len(read_jsonl(path))
