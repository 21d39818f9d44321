"""Baselines, precisions, shortlists, published ranks, error analysis, report and model card."""

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from scipy.stats import spearmanr
from sentence_transformers import quantize_embeddings
from sklearn.decomposition import PCA as SklearnPCA

from common.errors import RunError
from common.models import ModelIdentity, hash_folder
from evaluation.utils.analysis.baselines import PCA, baseline_scores, transforms
from evaluation.utils.analysis.calibration import calibration_id, calibration_texts
from evaluation.utils.analysis.decision import Decision
from evaluation.utils.analysis.error_analysis import pairs_that_move, rank_errors
from evaluation.utils.analysis.model_analysis import ModelAnalysis, analyse
from evaluation.utils.analysis.published import neighbours, published_results, rank_among_published
from evaluation.utils.analysis.quantization import Quantizer, bytes_per_vector, hamming_similarity, pareto_front
from evaluation.utils.analysis.recommendation import retention
from evaluation.utils.analysis.shortlist import evenly_spaced, search, shortlist_rows
from evaluation.utils.report import sections
from evaluation.utils.report.content import Plot, Section, Table
from evaluation.utils.report.formatting import escape_markdown, interval, number, score_cell, signed
from evaluation.utils.report.material import Material
from evaluation.utils.report.model_card import update_model_card
from evaluation.utils.report.render import write_report
from evaluation.utils.report.sections import scores
from evaluation.utils.report.summary import COLUMNS, update_summary
from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.rows import ScoreRow, set_name
from evaluation.utils.scoring.scorer import ModelScores
from evaluation.utils.scoring.similarity import METRICS

RNG = np.random.default_rng(0)


def made_pairs(n=200, width=32, useful=16):
    """Pairs whose gold score is reflected only in the first ``useful`` dimensions."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal((n, width)).astype(np.float32)
    share = rng.random(n)[:, None].astype(np.float32)
    second = share * first + (1 - share) * rng.standard_normal((n, width)).astype(np.float32)
    second[:, useful:] = first[:, useful:] = 0.01 * rng.standard_normal((n, width - useful))
    texts = [f"text {i} " + "word " * (i % 7) for i in range(n)]
    return PairSet("T", "ar-ar", ("ara",), "spearman", texts, texts[::-1], share[:, 0].astype(float), first, second)


def test_pca_is_sklearns():
    x = RNG.standard_normal((300, 12)) * np.arange(1, 13) + 3
    ours, theirs = PCA(x)(x, 5), SklearnPCA(5).fit_transform(x)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3)


def test_baselines_say_each_method_at_each_dimension():
    pairs = made_pairs()
    calibration = RNG.standard_normal((100, 32)).astype(np.float32)
    rows = baseline_scores(pairs, [32, 8], transforms(calibration, 1))
    assert {(r["method"], r["dim"]) for r in rows} == {
        (m, d) for m in ("prefix", "PCA", "random projection", "random dimensions") for d in (32, 8)
    }
    by = {(r["method"], r["dim"]): r["score"] for r in rows}
    assert by["prefix", 32] == pytest.approx(by["random dimensions", 32], abs=1e-3)
    assert rows == baseline_scores(pairs, [32, 8], transforms(calibration, 1))


def test_quantisation_is_sentence_transformers_own_with_ranges_of_other_texts():
    calibration, x = (RNG.standard_normal((n, 20)).astype(np.float32) for n in (500, 50))
    quantizer = Quantizer(calibration)
    expected = quantize_embeddings(x[:, :16], "int8", calibration_embeddings=calibration[:, :16])
    np.testing.assert_array_equal(quantizer(x, 16, "int8"), expected)
    step = np.ptp(calibration, axis=0)[:16] / 255
    inside = (x[:, :16] > calibration.min(0)[:16]) & (x[:, :16] < calibration.max(0)[:16])
    error = np.abs(quantizer.restore(quantizer(x, 16, "int8")) - x[:, :16])
    assert (error <= 0.51 * step)[inside].all()
    bits = quantizer(x, 12, "binary")
    assert bits.shape == (50, 2) == (50, bytes_per_vector(12, "binary"))
    expected = -((x[0, :12] > 0) != (x[1, :12] > 0)).sum()
    assert hamming_similarity(bits[0], bits[1]) == expected


def test_pareto_front():
    points = [{"bytes": b, "score": s} for b, s in ((8, 50), (16, 48), (16, 60), (32, 60), (64, 61))]
    assert [(p["bytes"], p["score"]) for p in pareto_front(points)] == [(8, 50), (16, 60), (64, 61)]


def test_search_is_brute_force_and_shortlists_grow():
    corpus = RNG.standard_normal((5000, 16)).astype(np.float32)  # more than one block
    queries = corpus[:20]
    own = np.arange(20)
    unit = corpus / np.linalg.norm(corpus, axis=1, keepdims=True)
    similarity = unit[:20] @ unit.T
    similarity[own, own] = -np.inf
    np.testing.assert_array_equal(search(queries, corpus, 10, 16, own=own), np.argsort(-similarity, axis=1)[:, :10])
    rows = shortlist_rows(queries, corpus, own, [16, 8], corpus[:100])
    for dim, precision in ((8, "float32"), (8, "binary"), (16, "binary")):
        recall = [r["recall"] for r in rows if (r["dim"], r["precision"]) == (dim, precision)]
        assert recall == sorted(recall) and 0 < recall[0] < 1
    assert all(r["saving"] > 1 for r in rows)


@pytest.mark.parametrize(("count", "limit"), [(5, 10), (10, 10), (19, 10), (25, 10), (0, 10), (1, 10)])
def test_the_queries_are_spread_over_the_corpus(count, limit):
    chosen = evenly_spaced(count, limit)
    assert len(set(chosen)) == min(count, limit) and chosen.tolist() == sorted(chosen)
    if count > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1


def test_a_score_whose_full_width_has_none_has_no_retention():
    rows = [row(8, 0.5)]  # at 32 mteb gave NaN
    analysis = analyse(ModelIdentity("local/m", "1" * 40, ""), [32, 8], ModelScores(rows))
    assert np.isnan(analysis.rows[0].retention)


def test_the_share_of_a_low_score_means_nothing():
    assert np.isnan(retention(0.2, 0.29)) and retention(0.4, 0.5) == 0.8


def test_published_scores_and_ranks():
    table = published_results()
    assert not table.duplicated(["model", "task", "subset"]).any() and table["cosine_spearman"].between(-1, 1).all()
    gate = table[table["model"].str.endswith("GATE-AraBert-v1")].set_index("task")["cosine_spearman"]
    assert gate["STS17"] == 0.8278 and gate["STS22.v2"] == 0.6310
    mini = table[(table["model"] == "sentence-transformers/all-MiniLM-L6-v2") & (table["subset"] == "en-en")]
    assert mini["cosine_spearman"].item() == pytest.approx(0.87588, abs=1e-5)
    best = rank_among_published("STS17", "ar-ar", 0.99, 0.98, 0.995)
    assert best["rank"] == best["best"] == best["worst"] == 1
    middle = rank_among_published("STS17", "ar-ar", 0.80, 0.75, 0.84)
    assert middle["best"] < middle["rank"] < middle["worst"] <= middle["of"]
    assert rank_among_published("STSBenchmark", "default", 0.8, 0.7, 0.9) is None


def test_the_neighbours_are_chosen_among_the_models_that_were_not_evaluated():
    mini = "sentence-transformers/all-MiniLM-L6-v2"
    table = published_results()
    others = table[(table["task"] == "STS17") & (table["subset"] == "en-en") & (table["model"] != mini)]
    above = others.loc[others["cosine_spearman"] > 0.8759, "cosine_spearman"]
    below = others.loc[others["cosine_spearman"] <= 0.8759, "cosine_spearman"]
    near = neighbours("STS17", "en-en", 0.8759, each_side=1, exclude=[mini])
    assert mini not in set(near["model"])
    assert {above.max(), above.min(), below.max()} <= set(near["cosine_spearman"])

    rows = [
        dataclasses.replace(row(384, score), model=name, subset="en-en")
        for name, score in ((mini, 0.8759), ("local/m", 0.8733))
    ]
    models = [ModelAnalysis(ModelIdentity(r.model, r.revision, ""), [384], [r]) for r in rows]
    columns = pd.DataFrame([r.as_columns() for r in rows])
    columns = columns.reindex(columns=[*columns, "ci_low", "ci_high", "diff_full", "p_full", "retention"])
    [shown] = scores.build(Material(models, columns, Decision(0.01))).tables
    published = [cells[2] for cells in shown.rows if cells[1] == "published"]
    assert mini not in [cells[0] for cells in shown.rows if cells[1] == "published"] and len(published) >= 3
    assert {number(above.max()), number(above.min()), number(below.max())} <= set(published)


@pytest.mark.parametrize("tiny", [-1e-9, -0.0, 0.0, 1e-9])
def test_nothing_is_printed_as_minus_zero(tiny):
    assert (number(tiny), signed(tiny), signed(tiny, 1)) == ("0.00", "0.00", "0.0")
    assert interval(tiny, 0.01) == "0.00 to +1.00" and score_cell(tiny, -0.1, tiny) == "0.00 (-10.0 to 0.0)"
    assert (number(-0.01), signed(-0.01), signed(0.1, 1), signed(float("nan"))) == ("−1.00", "−1.00", "+10.0", "–")


def test_errors_by_band_length_and_dimension():
    pairs = made_pairs()
    rows = rank_errors(pairs, [32, 4])
    for group in ("score", "length"):
        assert sum(r["pairs"] for r in rows if r["group"] == group and r["dim"] == 4) == 200
    total = {r["dim"]: r["error"] for r in rows if r["group"] == "all"}
    assert total[32] < total[4] < 40
    moved = pairs_that_move(pairs, 4)
    change = [abs(m["cut_rank"] - m["full_rank"]) for m in moved]
    assert change == sorted(change, reverse=True) and change[0] > 10


def test_pair_scores_are_scipys():
    pairs = made_pairs()
    cosine = (
        (pairs.first * pairs.second).sum(1) / np.linalg.norm(pairs.first, axis=1) / np.linalg.norm(pairs.second, axis=1)
    )
    assert pairs.score(pairs.first, pairs.second) == pytest.approx(spearmanr(pairs.gold, cosine).statistic, abs=1e-4)


def test_calibration_leaves_out_the_test_texts(tmp_path):
    file = tmp_path / "texts.csv"
    file.write_text("a,b\none,two\nthree,one\n")
    assert calibration_texts(str(file)) == ["one", "two", "three"]
    assert calibration_texts(str(file), ["two"]) == ["one", "three"]
    before = calibration_id(str(file))
    file.write_text("a,b\none,two\nthree,four\n")
    assert calibration_id(str(file)) != before
    with pytest.raises(RunError, match="fewer than 2"):
        calibration_texts(str(file), ["one", "two", "three"])
    assert len(calibration_texts("data/sample/nli_groups.jsonl")) > 1000


def test_calibration_reads_texts_only_and_any_folder_of_files(tmp_path):
    """All columns of a CSV file hold strings, also scores and identifiers."""
    (tmp_path / "a.csv").write_text("pair_id,sentence1,sentence2,gold\nx1,one,two,4.5\nx2,three,5,0\n")
    (tmp_path / "b.csv").write_text("pair_id,sentence1,sentence2,gold\nx3,four,six,1\n")
    assert calibration_texts(str(tmp_path / "a.csv")) == ["one", "two", "three", "5"]
    assert calibration_texts(str(tmp_path)) == ["one", "two", "three", "5", "four", "six"]
    before = calibration_id(str(tmp_path))
    (tmp_path / "b.csv").write_text("pair_id,sentence1,sentence2,gold\nx3,four,seven,1\n")
    assert calibration_id(str(tmp_path)) != before


def test_the_report_escapes_everything_and_both_files_say_the_same(tmp_path):
    nasty = '<script>alert("x")</script> | **bold** "مرحبا"'
    table = Table(["model", "64"], [[nasty, "12.3"]], caption=nasty, note=nasty, picked={0})
    section = Section("Title & more", [nasty], [Plot("a plot", "<svg width='1'></svg>")], [table], id="answer")
    write_report(tmp_path, nasty, "sub", [section])
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script" not in html and html.count("&lt;script&gt;") == 6 and 'dir="auto"' in html
    assert "<script" not in markdown and "مرحبا" in markdown and "\\*\\*bold" in markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 3
    assert (tmp_path / "plots" / "answer-1.svg").exists()


def row(dim, score, dataset_revision="abc", **more):
    return ScoreRow("local/m", "1", "float32", "STS17", "ar-ar", dim, 250, "STS", "cosine_spearman", score,
                    dataset_revision=dataset_revision, mteb_version="2", similarity_scores={"cosine_spearman": score}, **more)  # fmt: skip


@pytest.mark.parametrize(
    "card", [None, "---\nlicense: mit\nlanguage: [ar]\n---\n# Mine\n\nText | stays.\n", "no metadata\n"]
)
def test_model_card_is_parsed_back_and_the_model_stays_who_it_is(tmp_path, card):
    (tmp_path / "weights").write_bytes(b"1")
    if card:
        (tmp_path / "README.md").write_text(card)
    identity = hash_folder(tmp_path)
    for score, revision in ((0.5, "old"), (0.6, "new")):  # the second run replaces the scores: its data has changed
        rows = [row(64, score, dataset_revision=revision), row(768, 0.8, dataset_revision=revision)]
        update_model_card(tmp_path, "local/m", rows, {"STS17": "mteb/sts17-crosslingual-sts"})
    assert hash_folder(tmp_path) == identity
    found = ModelCard.load(tmp_path / "README.md")
    results = {r.metric_args["truncate_dim"]: r for r in found.data.eval_results}
    assert {dim: r.metric_value for dim, r in results.items()} == {64: 0.6, 768: 0.8}
    assert len(found.data.eval_results) == 2 and results[64].dataset_type == "mteb/sts17-crosslingual-sts"
    assert results[64].dataset_config == "ar-ar" and "64 dimensions" in results[64].metric_name
    if card and card.startswith("---"):
        assert found.data.license == "mit" and "Text | stays." in found.text


def test_a_card_that_does_not_fit_the_disk_is_left_as_it_is(tmp_path):
    (tmp_path / "README.md").write_text("text\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError):
            update_model_card(tmp_path, "m", [row(dim, 0.5) for dim in range(64, 128)], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "README.md").read_text() == "text\n"


def test_a_broken_card_is_left_as_it_is(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\ntext\n")
    with pytest.raises(RunError, match="README.md"):
        update_model_card(tmp_path, "m", [row(64, 0.5)], {})
    assert (tmp_path / "README.md").read_text().endswith("text\n")


def test_a_summary_without_the_new_columns_is_read(tmp_path):
    old = tmp_path / "summary.csv"
    old.write_text(
        "model,revision,task,subset,dim,n,cosine_spearman,dtype\nlocal/old,0,STS17,ar-ar,64,250,0.5,float32\n"
    )
    table = update_summary(old, [row(64, 0.6, ci_low=0.5, ci_high=0.7)])
    assert list(table["model"]) == ["local/m", "local/old"]
    assert table["ci_low"].isna().tolist() == [False, True]


def test_the_summary_has_the_columns_of_a_row():
    fields = {field.name for field in dataclasses.fields(ScoreRow)} - {"similarity_scores"}
    assert set(COLUMNS) == fields | set(METRICS) and len(COLUMNS) == len(set(COLUMNS))
    columns = row(64, 0.5, ci_low=0.4).as_columns()
    assert columns["cosine_spearman"] == 0.5 and columns["ci_low"] == 0.4 and "p_full" not in columns


def test_every_section_module_is_in_the_report_once():
    modules = {path.stem for path in Path(sections.__file__).parent.glob("*.py")} - {"__init__"}
    assert sorted(build.__module__.rsplit(".", 1)[1] for build in sections.SECTIONS.values()) == sorted(modules)


@pytest.mark.parametrize(
    ("text", "in_report", "in_terminal"),
    [
        ("my_model *new*", "my\\_model \\*new\\*", "my_model *new*"),
        ("a|b <i> & [c](d)", "a\\|b &lt;i> &amp; \\[c\\](d)", "a\\|b &lt;i> &amp; \\[c](d)"),
        ("two\n lines \\", "two lines \\\\", "two lines \\"),
    ],
)
def test_markdown_is_escaped_once_for_each_reader(text, in_report, in_terminal):
    assert escape_markdown(text) == in_report
    assert escape_markdown(text, keep_emphasis=True) == in_terminal


def test_only_the_default_subset_is_not_named():
    assert set_name("STSBenchmark", "default") == "STSBenchmark"
    assert set_name("STS17", "ar-ar") == "STS17 ar-ar"
    assert set_name("T", "default/dev") == "T default/dev"
