"""Any mteb task at every dimension: the scores are those of ``SentenceTransformer(truncate_dim=d)``, from one encode."""

import csv
import json
import re
from types import SimpleNamespace

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from common.errors import UsageError
from common.models import ModelIdentity
from common.records import RunRecord
from evaluation.utils.analysis.cost import SearchTimes
from evaluation.utils.analysis.decision import decide
from evaluation.utils.analysis.model_analysis import analyse, compare_with_first
from evaluation.utils.phases import Phases
from evaluation.utils.report.outputs import write_outputs
from evaluation.utils.scoring.embeddings import EmbeddingStore, cache_folder
from evaluation.utils.scoring.mteb_run import MTEBRun
from evaluation.utils.scoring.query_scores import corpora_of
from evaluation.utils.scoring.rows import ScoredModel
from evaluation.utils.scoring.scorer import ModelScores
from evaluation.utils.scoring.task_data import pair_sets, size_of
from evaluation.utils.scoring.tasks import choose_tasks
from tests.helpers import Counting, static_model, texts_of

DIMS = [32, 8]


def metadata(name, kind, score, **more):
    return TaskMetadata(
        name=name, description="made for this test", type=kind, category="t2t", modalities=["text"], eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score=score, dataset={"path": "test/test", "revision": "1"}, **more,
    )  # fmt: skip


class Loaded:
    """A task whose data is already loaded."""

    def load_data(self, **arguments):
        self.data_loaded = True

    def __init__(self):
        super().__init__()
        self.dataset = self.rows()
        self.data_loaded = True


class TinySTS(Loaded, AbsTaskSTS):
    metadata = metadata("TinySTS", "STS", "cosine_spearman")

    def rows(self):
        first, second = texts_of(60, 1), texts_of(60, 2)
        scores = np.random.default_rng(0).integers(0, 11, 60) / 2
        mixed = [
            " ".join([*a.split()[: round(s)], *b.split()[round(s) :]])
            for a, b, s in zip(first, second, scores, strict=True)
        ]
        return {
            "default": {"test": Dataset.from_dict({"sentence1": first, "sentence2": mixed, "score": scores.tolist()})}
        }


class TinyPairs(Loaded, AbsTaskPairClassification):
    metadata = metadata("TinyPairs", "PairClassification", "max_ap")

    def rows(self):
        first, second = texts_of(50, 1), texts_of(50, 3)
        labels = [i % 2 for i in range(50)]
        second = [
            " ".join([*a.split()[:3], *b.split()[3:]]) if i else b
            for a, b, i in zip(first, second, labels, strict=True)
        ]
        return {"default": {"test": Dataset.from_dict({"sentence1": first, "sentence2": second, "labels": labels})}}


class TinyRetrieval(Loaded, AbsTaskRetrieval):
    metadata = metadata("TinyRetrieval", "Retrieval", "ndcg_at_10")

    def rows(self):
        corpus = texts_of(80, 4)
        queries = [
            " ".join([*text.split()[:2], *other.split()[:2]])
            for text, other in zip(corpus[:25], texts_of(25, 5), strict=True)
        ]
        return {"default": {"test": {
            "corpus": Dataset.from_dict({"id": [f"d{i}" for i in range(80)], "text": corpus, "title": [""] * 80}),
            "queries": Dataset.from_dict({"id": [f"q{i}" for i in range(25)], "text": queries}),
            "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(25)},
            "top_ranked": None,
        }}}  # fmt: skip


class TinyClassification(Loaded, AbsTaskClassification):
    metadata = metadata("TinyClassification", "Classification", "accuracy")
    n_experiments, samples_per_label = 3, 8

    def rows(self):
        def split(seed):
            texts = texts_of(80, seed)
            return Dataset.from_dict({"text": texts, "label": [int(text.split()[0][4:]) % 2 for text in texts]})

        return {"default": {"train": split(6), "test": split(7)}}


class TinyClustering(Loaded, AbsTaskClustering):
    metadata = metadata("TinyClustering", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed, max_document_to_embed = None, 60
    n_clusters, max_documents_per_cluster = 3, 40

    def rows(self):
        texts = texts_of(60, 8)
        return {"default": {"test": Dataset.from_dict({"sentences": texts, "labels": [[i % 3] for i in range(60)]})}}


ALL = (TinySTS, TinyPairs, TinyRetrieval, TinyClassification, TinyClustering)


def run_of(model, scored_model, folder, dims=DIMS) -> MTEBRun:
    store = EmbeddingStore(model, cache_folder(folder, scored_model))
    return MTEBRun(store, scored_model, list(dims), folder)


@pytest.fixture
def scorer(tmp_path):
    model = static_model()
    return run_of(model, ScoredModel(ModelIdentity("local/tiny", "a" * 40, "tiny")), tmp_path)


@pytest.mark.parametrize("kind", ALL)
def test_scores_are_those_of_a_truncated_model(kind, scorer):
    counting = Counting(scorer.store.model)
    rows = scorer.score([kind()])
    assert len(counting.texts) == len(set(counting.texts)) > 0
    for dim in DIMS:
        plain = static_model(truncate_dim=dim)
        expected = mteb.evaluate(plain, kind(), cache=None, show_progress_bar=False, co2_tracker=False,
                                 encode_kwargs={"batch_size": 32})  # fmt: skip
        entry = expected.task_results[0].scores["test"][0]
        at_dim = [row for row in rows if row.dim == dim]
        assert [row.score for row in at_dim] == pytest.approx([entry["main_score"]], abs=1e-5)
        assert at_dim[0].n == size_of(kind(), "default", "test")


def everything(scorer, tasks, **arguments):
    rows = scorer.score(tasks)
    encoder = scorer.encoder()
    scores = ModelScores(rows, [pairs for task in tasks for pairs in pair_sets(task, encoder)])
    for task in tasks:
        scores.query_estimates |= scorer.query_estimates(task)
        scores.corpora += corpora_of(task, encoder)
    fitted = scorer.store.encode(texts_of(100, 9))
    return analyse(scorer.scored_model.identity, DIMS, scores, lambda: fitted, **arguments)


def write(folder, analyses, calibration="texts") -> str:
    record = RunRecord(folder / "run.json", {})
    return write_outputs(folder, analyses, decide(analyses, 1.0), SearchTimes(), calibration, record, Phases())


def test_intervals_for_pairs_and_queries_and_none_for_others(scorer, tmp_path):
    found = everything(scorer, [kind() for kind in ALL])
    for row in found.rows:
        if row.task in ("TinySTS", "TinyPairs", "TinyRetrieval"):
            assert row.ci_low < row.score < row.ci_high
            assert row.diff_full == 0 or row.dim == 8
        else:
            assert row.ci_low is None
    assert found.shortlists["TinyRetrieval"]
    table = write(tmp_path, [found], "some <b>texts</b>")
    assert "TinyClustering" in table
    html = (tmp_path / "report.html").read_text()
    assert "<b>texts" not in html and "http" not in re.sub("http://www.w3.org|http-equiv", "", html)


def test_a_second_run_scores_nothing_again_and_intervals_stay(scorer):
    tasks = [TinySTS(), TinyRetrieval()]
    first = everything(scorer, tasks)
    counting = Counting(scorer.store.model)
    second = everything(scorer, tasks)
    assert counting.texts == []
    assert [r.score for r in second.rows] == [r.score for r in first.rows]
    assert [r.ci_low for r in second.rows] == [r.ci_low for r in first.rows]


def test_queries_of_another_subset_are_not_in_the_report_and_missing_ones_are_scored_again(scorer, tmp_path):
    """Such as those of an earlier run, or of a run that was killed before it wrote the queries' scores."""
    first = everything(scorer, [TinyRetrieval()])
    files = list((tmp_path / "queries").rglob("TinyRetrieval.json"))
    assert len(files) == len(DIMS)
    for path in files:
        scores = json.loads(path.read_text())
        path.write_text(json.dumps({"other": scores["default"]}))
    second = everything(scorer, [TinyRetrieval()])
    assert {key for key in second.estimates} == {("TinyRetrieval", "default")}
    assert [(row.score, row.ci_low) for row in second.rows] == [(row.score, row.ci_low) for row in first.rows]
    assert all(set(json.loads(path.read_text())) == {"default", "other"} for path in files)
    assert "TinyRetrieval" in write(tmp_path, [second])


def test_a_score_of_another_version_of_mteb_is_computed_again(scorer, tmp_path):
    first = everything(scorer, [TinySTS()])
    files = list((tmp_path / "mteb").rglob("TinySTS.json"))
    for path in files:
        result = json.loads(path.read_text())
        result["mteb_version"], result["scores"]["test"][0]["main_score"] = "1.0.0", 0.5
        path.write_text(json.dumps(result))
    second = everything(scorer, [TinySTS()])
    assert [(row.score, row.mteb_version) for row in second.rows] == [
        (row.score, mteb.__version__) for row in first.rows
    ]
    assert all(json.loads(path.read_text())["mteb_version"] == mteb.__version__ for path in files)


def test_tasks_share_the_embeddings_of_shared_texts(scorer):
    class Again(TinySTS):
        metadata = metadata("TinySTSAgain", "STS", "cosine_spearman")

    counting = Counting(scorer.store.model)
    scorer.score([TinySTS(), Again()])
    assert len(counting.texts) == len(set(counting.texts))


def test_no_score_is_ever_anothers(tmp_path):
    """Another model, revision, dimension or precision under one output folder has its own score."""
    seen = {}
    for name, revision, seed, dtype in (
        ("local/a", "1" * 40, 0, "float32"), ("local/b", "1" * 40, 1, "float32"),
        ("local/a", "2" * 40, 2, "float32"), ("local/a", "1" * 40, 3, "bfloat16"),
    ):  # fmt: skip
        scored_model = ScoredModel(ModelIdentity(name, revision, ""), dtype)
        for row in run_of(static_model(seed), scored_model, tmp_path).score([TinySTS(), TinyRetrieval()]):
            plain = mteb.evaluate(static_model(seed, truncate_dim=row.dim),
                                  [t for t in (TinySTS(), TinyRetrieval()) if t.metadata.name == row.task],
                                  cache=None, show_progress_bar=False, co2_tracker=False, encode_kwargs={"batch_size": 32})  # fmt: skip
            assert row.score == pytest.approx(plain.task_results[0].scores["test"][0]["main_score"], abs=1e-5)
            seen[name, revision, dtype, row.task, row.dim] = row.score
    assert len(set(seen.values())) == len(seen) == 16


def test_a_changed_prompt_changes_the_score(tmp_path):
    scored_model = ScoredModel(ModelIdentity("local/a", "1" * 40, ""))
    scores = []
    for prompt in ("", "word1 word2 word3 "):
        model = static_model(prompts={"query": prompt, "document": prompt})
        store = EmbeddingStore(model, cache_folder(tmp_path, scored_model))
        run = MTEBRun(store, scored_model, [32], tmp_path / prompt.strip())
        scores.append(run.score([TinyRetrieval()])[0].score)
    assert scores[0] != scores[1]


def test_overwrite_gives_the_same_bytes_and_rows_of_other_models_stay(scorer, tmp_path):
    other = run_of(static_model(5), ScoredModel(ModelIdentity("local/other", "b" * 40, "other")), tmp_path)
    scored = [everything(other, [TinySTS()])]
    write(tmp_path, scored)
    contents = []
    for _ in range(2):
        scorer.store.clear()
        scorer.overwrite = True
        write(tmp_path, [everything(scorer, [TinySTS()])])
        contents.append((tmp_path / "summary.csv").read_bytes())
    assert contents[0] == contents[1]
    with (tmp_path / "summary.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"local/tiny", "local/other"}


def test_models_are_compared_with_the_first_in_pairs(scorer, tmp_path):
    other = run_of(static_model(5), ScoredModel(ModelIdentity("local/other", "b" * 40, "other")), tmp_path)
    found = [
        everything(scorer, [TinySTS()]),
        everything(other, [TinySTS()]),
    ]
    compare_with_first(found)
    assert found[0].rows[0].diff_model is None
    for first, second in zip(found[0].rows, found[1].rows, strict=True):
        assert second.diff_model == pytest.approx(second.score - first.score, abs=1e-5)
        assert second.diff_model_low <= second.diff_model <= second.diff_model_high
        assert 0 < second.p_model <= 1


def test_result_files_of_mteb_bear_the_dimension(scorer, tmp_path):
    scorer.score([TinySTS()])
    files = list((tmp_path / "mteb").rglob("TinySTS.json"))
    assert len(files) == 2 and len({json.loads(f.read_text())["scores"]["test"][0]["main_score"] for f in files}) == 2


def test_subsets_are_chosen_within_a_benchmark_too(call, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(mteb, "get_benchmark", lambda name: SimpleNamespace(tasks=[mteb.get_task("STS17")]))
    result = call("evaluation/evaluate_mteb.py", "--model_name", tiny_model, "--benchmark", "made for this test",
                  "--subsets", "ar-ar", "--calibration_data", "none", "--dims", "8", "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err
    with (tmp_path / "out/summary.csv").open() as file:
        assert {row["subset"] for row in csv.DictReader(file)} == {"ar-ar"}


def test_choosing_tasks(caplog):
    names = [t.metadata.name for t in choose_tasks(["STS17", "STS22.v2"], None, [], ["ar-ar"], ["ar"])]
    assert names == ["STS17", "STS22.v2"]
    sts17 = choose_tasks(["STS17"], None, ["ara"], [], [])[0]
    assert set(sts17.hf_subsets) == {"ar-ar", "en-ar"}
    benchmark = choose_tasks([], "MTEB(Multilingual, v2)", ["ara"], [], [])
    assert len(benchmark) > 5 and all(set(t.metadata.modalities) == {"text"} for t in benchmark)
    with pytest.raises(UsageError, match="--tasks: CIFAR10 is not a text task"):
        choose_tasks(["STS17", "CIFAR10"], None, [], [], [])
    with caplog.at_level("WARNING"):
        assert len(choose_tasks(["STS17", "BIOSSES"], None, ["ara"], [], [])) == 1
    assert "no subset in ara, so not scored: BIOSSES" in caplog.text
    for arguments in ((["STS18"], None, []), ([], "MTEB(Multilingul, v2)", []), ([], None, ["xxx"])):
        with pytest.raises(UsageError):
            choose_tasks(*arguments, [], [])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_filed_under_the_same_setting_by_both_scripts(tmp_path, dtype):
    """evaluate_sts.py and mteb give the folders of their result files the same names."""
    scored_model = ScoredModel(ModelIdentity("local/a", "1" * 40, ""), dtype)
    encoder = run_of(static_model(), scored_model, tmp_path).encoder(8)
    assert encoder.mteb_model_meta.experiment_name == scored_model.experiment_name(8)
    assert f"{scored_model.columns()['revision']}-{dtype}" == scored_model.folder(tmp_path).name
