"""The decision what to deploy: the fixed sequence, its bounds, sets that share pairs, the sentence, the costs."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student

from benchmarks.decision_coverage import draw, sample_of, simulate, true_losses
from common.models import ModelIdentity
from evaluation.utils.analysis.cost import SearchTimes, encode_ms, search_times
from evaluation.utils.analysis.decision import Decision, Loss, Option, decide
from evaluation.utils.analysis.model_analysis import ModelAnalysis, analyse
from evaluation.utils.analysis.recommendation import (
    error_of_step,
    fixed_sequence,
    least_lost,
    most_lost,
    pairs_that_tell,
    smallest_accepted,
)
from evaluation.utils.analysis.shared_pairs import joint_bootstrap, mean_over_sets, sets_that_share_pairs
from evaluation.utils.report.material import Material
from evaluation.utils.report.sections import answer
from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.rows import ScoreRow
from evaluation.utils.scoring.scorer import ModelScores
from evaluation.utils.scoring.statistics import bootstrap, mean
from tests.helpers import Counting, pairs_of, read_summary, static_model, texts_of, write_pairs

DIMS = [32, 16, 8]


# Bounds and the fixed sequence


def test_the_bound_of_a_mean_loss_is_students():
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    loss = bootstrap(mean([values]), 400)[0]
    error = values.std(ddof=1) / 20
    assert most_lost(loss, 0.05) == pytest.approx(values.mean() + student.ppf(0.95, 399) * error, abs=0.01)
    assert least_lost(loss, 0.05) == pytest.approx(values.mean() - student.ppf(0.95, 399) * error, abs=0.01)
    # with fewer than ten of the 2,000 resamples beyond it, the bound is extrapolated as in a normal distribution
    assert most_lost(loss, 0.0005) == pytest.approx(values.mean() + student.ppf(0.9995, 399) * error, abs=0.02)
    assert most_lost(loss, 0.0005) > most_lost(loss, 0.005)


def test_dimensions_and_precisions_and_models_share_five_percent():
    assert error_of_step(1) == pytest.approx(0.025) and error_of_step(4) * 4 * 2 == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("most", "expected", "tried"),
    [
        ({32: 0.0, 16: 0.4, 8: 0.9}, (8, "binary"), 5),
        ({32: 0.0, 16: 1.2, 8: 0.9}, (32, "binary"), 4),  # 8 alone would pass, but 16 ended the sequence
        ({32: 0.0, 16: 0.4, 8: np.nan}, (16, "binary"), 5),
        ({32: 1.2}, None, 1),
        ({32: 0.0, 16: 0.4, 8: 0.9, "int8": 1.1, "binary": 0.2}, (8, "float32"), 4),
        ({32: 0.0, 16: 0.4, 8: 0.9, "binary": 1.1}, (8, "int8"), 5),
    ],
)
def test_the_sequences_stop_at_the_first_step_that_may_lose_more(most, expected, tried):
    steps = []

    def bound(dim, precision):
        steps.append((dim, precision))
        return most.get(precision, 0.5) if precision != "float32" else most[dim]

    assert smallest_accepted(DIMS, ["float32", "int8", "binary"], bound, 1.0) == expected
    assert len(steps) == tried


def test_a_fixed_sequence_tries_nothing_after_a_failure():
    assert fixed_sequence([1, 2, 5, 3], lambda step: step < 4) == [1, 2]


def test_pairs_that_tell_shrink_the_bound_to_the_tolerance():
    assert pairs_that_tell(100, loss=0.5, bound=1.5, tolerance=1.0) == 400
    assert pairs_that_tell(100, loss=2.0, bound=1.5, tolerance=1.0) == 25  # even 25 show that it is above


# Sets that share pairs


def pair_set(task, rows, width=32, seed=0, noise=1.0, prefix="text"):
    """Pairs ``rows`` of a large set, whose similarities follow the gold score more or less."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((600, width)).astype(np.float32)
    share = rng.random(600)[:, None].astype(np.float32)
    second = share * first + noise * (1 - share) * rng.standard_normal((600, width)).astype(np.float32)
    texts = [f"{prefix} {i}" for i in range(600)]
    left, right = [texts[i] for i in rows], [texts[i] + " too" for i in rows]
    return PairSet(task, "default", ("eng",), "spearman", left, right, share[rows, 0].astype(float), first[rows],
                   second[rows])  # fmt: skip


def correlation(first, other):
    """Spearman's, faster than scipy's function, which makes an object of it."""
    return np.corrcoef(rankdata(first), rankdata(other))[0, 1]


def similarity(pairs, dim):
    return pairs.similarity(pairs.first[:, :dim], pairs.second[:, :dim])


def test_sets_that_share_a_pair_in_any_writing_are_one_group():
    a, b, c = (pair_set(name, np.arange(*rows)) for name, rows in (("A", (0, 9)), ("B", (8, 20)), ("C", (19, 30))))
    other = pair_set("D", np.arange(9), prefix="word")
    swapped = replace(b, sentence1=[t.upper() for t in b.sentence2], sentence2=[f" {t}" for t in b.sentence1])
    groups = sets_that_share_pairs([a, other, swapped, c])
    assert sorted([p.task for p in group] for group in groups) == [["A", "B", "C"], ["D"]]


def test_the_mean_of_sets_that_share_pairs_is_as_sure_as_resampling_distinct_pairs_says():
    sets = [pair_set("A", np.arange(0, 200)), pair_set("B", np.arange(100, 400))]
    columns = [(similarity(pairs, 32), similarity(pairs, 8)) for pairs in sets]

    def loss(kept):
        """The mean loss where the distinct pairs ``kept`` are drawn, computed without the bootstrap's code."""
        of_sets = []
        for (full, cut), pairs, start in zip(columns, sets, (0, 100), strict=True):
            rows = kept[(kept >= start) & (kept < start + len(pairs.gold))] - start
            of_sets.append(correlation(pairs.gold[rows], full[rows]) - correlation(pairs.gold[rows], cut[rows]))
        return np.mean(of_sets)

    rng = np.random.default_rng(5)
    expected = [loss(rng.integers(0, 400, 400)) for _ in range(800)]
    by_set = dict(zip([p.key for p in sets], columns, strict=True))
    estimates = joint_bootstrap(sets, lambda pairs: pairs.statistic(list(by_set[pairs.key])))
    together = mean_over_sets({key: full - cut for key, (full, cut) in estimates.items()}, [list(estimates)])
    assert together.value == pytest.approx(loss(np.arange(400)))
    assert together.replicates.std() == pytest.approx(np.std(expected), rel=0.08)
    assert most_lost(together, 0.05) == pytest.approx(np.quantile(expected, 0.95), abs=0.15 * np.std(expected) + 0.001)


def test_the_same_set_twice_is_no_surer_than_once():
    rows = np.arange(150)
    twice = [pair_set("A", rows), pair_set("B", rows)]
    estimates = joint_bootstrap(twice, lambda pairs: pairs.statistic([similarity(pairs, 32)]))
    np.testing.assert_allclose(estimates["A", "default"][0].replicates, estimates["B", "default"][0].replicates)
    mean_of_both = mean_over_sets({key: e[0] for key, e in estimates.items()}, [list(estimates)])
    assert mean_of_both.interval() == pytest.approx(estimates["A", "default"][0].interval(), abs=1e-9)
    apart = mean_over_sets({key: e[0] for key, e in estimates.items()}, [[key] for key in estimates])
    assert apart.jackknife.std() < mean_of_both.jackknife.std()


# The decision


def analysed(name, sets, baseline=False, calibration=True):
    rows = [
        ScoreRow(name, "1", "float32", p.task, p.subset, dim, len(p.gold), "STS", "cosine_spearman",
                 p.score(p.first[:, :dim], p.second[:, :dim]))
        for p in sets
        for dim in DIMS
    ]  # fmt: skip
    fitted = (lambda: np.random.default_rng(3).standard_normal((200, 32)).astype(np.float32)) if calibration else None
    return analyse(ModelIdentity(name, "1", ""), DIMS, ModelScores(rows, sets), fitted, baseline)


@pytest.fixture(scope="module")
def models():
    """A model, a worse one and a better baseline, on two sets that share pairs and one that does not."""
    rows = (np.arange(0, 250), np.arange(150, 500))

    def sets(noise):
        return [pair_set("A", rows[0], noise=noise), pair_set("B", rows[1], noise=noise),
                pair_set("C", np.arange(300), seed=1, noise=noise, prefix="word")]  # fmt: skip

    return (analysed("local/good", sets(0.8)), analysed("local/worse", sets(1.0)),
            analysed("local/best", sets(0.3), baseline=True))  # fmt: skip


def test_losses_are_against_the_best_full_width_and_bounds_are_those_of_resampled_pairs(models):
    good, worse, baseline = models
    decision = decide([worse, good, baseline], max_loss=3.0)
    assert decision.best is good and decision.full_score == pytest.approx(
        np.mean([r.score for r in good.rows if r.dim == 32])
    )
    assert [set(group) for group in good.shared] == [{("A", "default"), ("B", "default")}]
    option = next(o for o in worse.options if (o.dim, o.precision) == (16, "float32"))
    expected = decision.full_score - np.mean([r.score for r in worse.rows if r.dim == 16])
    assert option.loss.value == pytest.approx(expected) and option.loss.n == 250 + 350 + 300
    # the bound, by resampling the distinct pairs of A and B, and those of C
    rng, losses = np.random.default_rng(8), []
    sets = {name: [pair_set(name, np.arange(*rows), seed=seed, noise=noise, prefix=prefix) for noise in (0.8, 1.0)]
            for name, rows, seed, prefix in (("A", (0, 250), 0, "text"), ("B", (150, 500), 0, "text"),
                                             ("C", (0, 300), 1, "word"))}  # fmt: skip
    sims = {name: (g.gold, similarity(g, 32), similarity(w, 16)) for name, (g, w) in sets.items()}
    for _ in range(800):
        drawn, other = rng.integers(0, 500, 500), rng.integers(0, 300, 300)
        picks = {"A": drawn[drawn < 250], "B": drawn[drawn >= 150] - 150, "C": other}
        losses.append(
            np.mean(
                [correlation(g[p], f[p]) - correlation(g[p], c[p]) for n, p in picks.items() for g, f, c in [sims[n]]]
            )
        )
    bound = np.quantile(losses, 1 - error_of_step(2))
    assert option.loss.most == pytest.approx(bound, abs=0.25 * np.std(losses))


def test_the_smallest_choice_of_any_model_compared_is_recommended_and_no_baseline(models):
    good, worse, baseline = models
    decision = decide([good, worse, baseline], max_loss=100.0)
    assert decision.model in (good, worse) and (decision.option.dim, decision.option.precision) == (8, "binary")
    assert baseline.options and baseline.recommended is None and decision.option.bytes == 1
    nothing_lost = decide([good, worse, baseline], max_loss=0.0)
    assert (nothing_lost.model, nothing_lost.option.dim) == (good, 32)
    assert worse.recommended is None and good.recommended is nothing_lost.option
    tried = {(o.dim, o.precision): o.accepted for o in good.options if o.tried}
    assert tried == {(32, "float32"): True, (16, "float32"): False, (32, "int8"): False}


def test_more_is_accepted_where_more_may_be_lost(models):
    good = models[0]
    sizes = [decide([good], max_loss).option.bytes for max_loss in (0, 0.5, 2, 5, 100)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_without_calibration_only_dimensions_are_chosen():
    model = analysed("local/m", [pair_set("A", np.arange(300))], calibration=False)
    assert {o.precision for o in model.options} == set() and decide([model], 100.0).option.precision == "float32"


def test_nothing_is_recommended_where_no_model_does_the_task():
    pairs = pair_set("A", np.arange(200))
    shuffled = replace(pairs, gold=np.random.default_rng(2).permutation(pairs.gold))
    decision = decide([analysed("local/m", [shuffled], calibration=False)], 1.0)
    assert decision.option is None and decision.too_low == [("A", "default")]


def test_a_set_that_only_one_model_masters_counts():
    pairs = pair_set("A", np.arange(200))
    shuffled = replace(pairs, gold=pairs.gold, second=pairs.second[::-1].copy())
    able, unable = (analysed(n, [p], calibration=False) for n, p in (("local/a", pairs), ("local/u", shuffled)))
    decision = decide([unable, able], 1.0)
    assert decision.sets == [("A", "default")] and decision.model is able and unable.recommended is None


# The sentence


def option(dim, precision, loss, most, accepted=True, least=-0.001, of_sets=None):
    return Option(dim, precision, 0.8 - loss, Loss(loss, least, most, 500), of_sets or {}, accepted)


def material(options, chosen, max_loss=0.01, sets=(("STS17", "ar-ar"), ("STSBenchmark", "default")), other=()):
    rows = [ScoreRow("me/model", "1" * 40, "float32", *key, 384, 250, "STS", "cosine_spearman", 0.8) for key in sets]
    model = ModelAnalysis(ModelIdentity("me/model", "1" * 40, ""), sorted({o.dim for o in options}, reverse=True), rows)
    model.options, model.recommended = options, chosen
    best = model
    models = [model]
    if other:
        best = ModelAnalysis(ModelIdentity("me/best", "2" * 40, ""), [other[0].dim], [], options=list(other))
        best.recommended = other[0]
        models.append(best)
    table = pd.DataFrame([{"model": m.identity.name, "revision": m.identity.revision} for m in models])
    return Material(models, table, Decision(max_loss, list(sets), [], best, model, chosen))


FULL = option(384, "float32", 0.0, 0.0, least=0.0)


def test_the_sentence_names_model_dimension_precision_bytes_and_loss():
    small = option(256, "int8", 0.003, 0.0071)
    refused = option(128, "float32", 0.0163, 0.0248, accepted=False)
    unsure = option(256, "binary", 0.006, 0.014, accepted=False)
    section = answer.build(material([FULL, option(256, "float32", 0.002, 0.006), refused, small, unsure], small))
    assert section.leads == {0} and section.paragraphs[0] == (
        "Deploy me/model at 256 dimensions in int8: 256 bytes per vector instead of 1,536. It loses 0.30 points (at most 0.71 "
        "with 95% confidence), compared with all 384 dimensions in float32, which score 80.00 on average over 2 test sets "
        "(STS17 ar-ar and STSBenchmark). The accepted drop is 1 point (--max_loss)."
    )
    assert section.paragraphs[1] == (
        "Why not smaller? 128 dimensions in float32 lose 1.63 points, more than the accepted drop. 256 binary dimensions "
        "lose 0.60 points, but a drop of 1.40 points cannot be ruled out: about 4 times as many pairs would be needed to tell."
    )
    assert "docs/deploying.md shows how to store int8 vectors and compare them." in section.paragraphs
    [table] = section.tables
    assert table.picked == {3} and table.rows[3][:4] == ["me/model", "256 int8", "yes", "256"]
    assert [row[2] for row in table.rows] == ["yes", "yes", "no", "yes", "no"]


def test_sets_that_lose_more_or_cannot_tell_are_named():
    of_sets = {
        ("A", "default"): Loss(0.02, 0.012, 0.03, 400),
        ("B", "default"): Loss(0.005, -0.001, 0.015, 250),
        ("C", "default"): Loss(0.0, -0.002, 0.004, 250),
        ("D", "default"): Loss(0.015, 0.005, 0.025, 250),
    }
    small = option(256, "float32", 0.005, 0.009, of_sets=of_sets)
    section = answer.build(material([FULL, small], small, sets=tuple(of_sets)))
    assert (
        "The mean can hide a larger drop on a single set: on A, the score drops by 2.00 points (at least 1.20), more than the accepted drop; on B, "
        "the score drops by 0.50 points, and 250 pairs are too few to tell whether the true drop is more than the accepted one (it may be anywhere "
        "from −0.10 to 1.50, with 90% confidence; about 1,000 pairs would be enough); on D, the score drops by 1.50 points, and 250 pairs are too few to tell "
        "whether the true drop is more than the accepted one (it may be anywhere from 0.50 to 2.50, with 90% confidence; about 1,000 pairs would be enough)."
    ) in section.paragraphs
    assert not any("on C" in text for text in section.paragraphs)


def test_the_sentence_where_nothing_smaller_is_accepted_or_another_model_is_best_or_nothing_is_lost():
    unsure = option(256, "float32", 0.002, 0.02, accepted=False)
    text = answer.build(material([FULL, unsure], FULL)).paragraphs[0]
    assert text.startswith(
        "Deploy me/model at all 384 dimensions in float32, 1,536 bytes per vector. No smaller vector is accepted"
    )
    gained = option(256, "float32", -0.002, -0.001)
    text = answer.build(material([FULL, gained], gained, max_loss=0.005)).paragraphs[0]
    assert "No drop was measured (at most 0.00 with 95% confidence)" in text and "drop is 0.5 points" in text
    small = option(64, "float32", 0.004, 0.008)
    paragraphs = answer.build(material([small, FULL], small, other=[option(768, "float32", 0.0, 0.0)])).paragraphs
    assert "instead of 3,072" in paragraphs[0] and "all 768 dimensions of me/best in float32" in paragraphs[0]
    assert any(
        text.startswith("By the same rule, the smallest accepted vector of me/best has 768 ") for text in paragraphs
    )


def test_a_full_width_alone_and_no_set_are_said_as_they_are():
    assert "only the full width" in answer.build(material([FULL], FULL)).paragraphs[0]
    nothing = replace(material([FULL], FULL), decision=Decision(0.01, too_low=[("A", "default")]))
    section = answer.build(nothing)
    assert section.paragraphs == ["Nothing can be recommended: no model reaches 30 at full width on any test set."]
    assert not section.plots and not section.tables


# Costs


def test_search_is_timed_at_each_dimension_and_precision_in_little_time():
    times = search_times([64, 512])
    assert times.ms.keys() == {(d, p) for d in (64, 512) for p in ("float32", "binary")} and times.vectors == 20_000
    assert all(ms > 0 for ms in times.ms.values())
    assert search_times([4096]).vectors == 4096 and SearchTimes().ms == {}


def test_encoding_is_timed_on_a_sample_of_the_texts():
    model = static_model()
    counting = Counting(model)
    assert 0 < encode_ms(model, {f"text {i}" for i in range(1000)}, 32) < 1000
    assert 4 <= len(set(counting.texts)) <= 64 and encode_ms(model, [], 32) is None


# The command line


def test_max_loss_decides_and_changes_no_score(call, tmp_path):
    static_model().save_pretrained(str(tmp_path / "model"))
    rows, model, out = pairs_of(60), static_model(), tmp_path / "out"
    first, second = (model.encode([row[key] for row in rows]) for key in ("sentence1", "sentence2"))
    gold = model.similarity_pairwise(first, second).tolist()  # so that the full width scores 1
    data = write_pairs(tmp_path / "mine.jsonl", [row | {"score": s} for row, s in zip(rows, gold, strict=True)])
    texts = tmp_path / "texts.csv"
    texts.write_text("\n".join(["text", *texts_of(200, seed=9)]))
    command = ("evaluation/evaluate_sts.py", "--model_name", tmp_path / "model", "--data", data, "--dims", "16", "8",
               "--calibration_data", texts, "--output_dir", out)  # fmt: skip
    said, summaries = [], []
    for max_loss in ("0", "1000"):
        done = call(*command, "--max_loss", max_loss)
        assert done.code == 0, done.err
        report = (out / "report.md").read_text()
        said.append(next(line for line in report.splitlines() if line.startswith("**")))
        summaries.append((out / "summary.csv").read_bytes())
    assert "at all 32 dimensions in float32" in said[0] and "at 8 binary dimensions: 1 byte per" in said[1], said
    assert summaries[0] == summaries[1] and len(read_summary(out)) == 3
    costs = json.loads((out / "run.json").read_text())["costs"]
    assert costs["encode_ms"]["local/model"] > 0 and set(costs["search_ms"]) == {
        f"{dim} {precision}" for dim in (32, 16, 8) for precision in ("float32", "binary")
    }


def test_a_negative_loss_is_refused(fails):
    fails(2, "max_loss … at least 0", "evaluation/evaluate_sts.py", "--model_name", "m", "--max_loss", "-1")


# The simulation


def test_simulated_data_have_the_losses_that_they_should():
    gold, similarities = draw(200_000, 0.01, np.random.default_rng(0))
    full = spearmanr(gold, similarities[512, "float32"])[0]
    for choice, lost in true_losses(0.01).items():
        assert full - spearmanr(gold, similarities[choice])[0] == pytest.approx(lost, abs=0.0015), choice


@pytest.mark.parametrize("kind", ["one set", "two sets, resampled together"])
def test_a_cell_counts_wrong_choices(kind):
    cell = simulate(kind, 250, 0.02, 10)
    assert sum(cell["choices"].values()) == cell["runs"] == 40 and cell["wrong"] <= 0.3
    assert cell["wrong_interval"][0] <= cell["wrong"] <= cell["wrong_interval"][1]


@pytest.mark.parametrize("kind", ["one set", "two sets, resampled together", "two sets, resampled separately"])
def test_the_error_without_resampling_is_that_of_the_bootstrap(kind):
    sample = sample_of(kind, 500, 0.01, seed=4)
    loss, error = sample.loss_and_error((256, "float32"))
    estimate = sample.loss((256, "float32"))
    assert estimate.value == pytest.approx(loss) and estimate.replicates.std() == pytest.approx(error, rel=0.07)
