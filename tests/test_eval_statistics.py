"""Intervals against independent computations."""

import time

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from evaluation.utils.scoring.statistics import (
    average_precision,
    bootstrap,
    mean,
    mean_estimate,
    spearman,
    unpaired_difference,
)


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    gold = np.round(5 * rng.random(120), 1)  # with ties
    return gold, [np.round(gold + noise * rng.standard_normal(120), 2) for noise in (1.0, 1.2, 3.0)]


def counts(rng, n):
    drawn = rng.integers(0, n, n)
    return drawn, np.bincount(drawn, minlength=n)[:, None].astype(float)


def test_spearman_of_a_resample_is_that_of_scipy(scored):
    gold, columns = scored
    rng = np.random.default_rng(1)
    for _ in range(20):
        drawn, weights = counts(rng, len(gold))
        expected = [spearmanr(gold[drawn], column[drawn]).statistic for column in columns]
        assert spearman(gold, columns)(weights)[:, 0] == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_a_resample_is_that_of_sklearn(scored):
    gold, columns = scored
    labels, rng = (gold > 3).astype(int), np.random.default_rng(1)
    for _ in range(20):
        drawn, weights = counts(rng, len(gold))
        expected = [average_precision_score(labels[drawn], column[drawn]) for column in columns]
        assert average_precision(labels, columns)(weights)[:, 0] == pytest.approx(expected, abs=1e-12)


def test_interval_agrees_with_scipys_bca(scored):
    gold, columns = scored
    ours = bootstrap(spearman(gold, columns), len(gold), resamples=4000)[1].interval()
    theirs = scipy_bootstrap(
        (gold, columns[1]), lambda a, b: spearmanr(a, b).statistic, paired=True, vectorized=False, n_resamples=4000,
        method="BCa", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert ours == pytest.approx(tuple(theirs), abs=0.012)


def test_interval_of_a_mean_agrees_with_scipys():
    values = np.random.default_rng(3).exponential(size=200)
    ours = bootstrap(mean([values]), 200, resamples=4000)[0].interval()
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(4))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_differences_are_paired(scored):
    gold, (first, _, _) = scored
    second = first + 0.1 * np.random.default_rng(8).standard_normal(len(gold))
    together = bootstrap(spearman(gold, [first, second]), len(gold))
    apart = [bootstrap(spearman(gold, [column]), len(gold))[0] for column in (first, second)]
    assert (together[0] - together[1]).interval() == (apart[0] - apart[1]).interval()
    assert np.std((together[0] - together[1]).replicates) < np.std(together[0].replicates)
    other = bootstrap(spearman(gold, [first]), len(gold), sample="another set")[0]
    assert not np.allclose(other.replicates, apart[0].replicates)


def test_p_is_below_a_level_exactly_when_the_interval_leaves_zero_out(scored):
    gold, columns = scored
    estimates = bootstrap(spearman(gold, columns), len(gold))
    for difference in (estimates[0] - estimates[1], estimates[0] - estimates[2], estimates[1] - estimates[2]):
        p = difference.p_value()
        for level in (0.8, 0.9, 0.95, 0.99):
            low, high = difference.interval(level)
            if abs(p - (1 - level)) > 0.005:
                assert (p < 1 - level) == (low > 0 or high < 0)
    assert (estimates[0] - estimates[0]).p_value() == 1.0
    assert (estimates[0] - estimates[0]).interval() == (0.0, 0.0)


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(5)
    p = []
    for _ in range(300):
        gold = rng.standard_normal(80)
        e = bootstrap(spearman(gold, gold + 0.7 * rng.standard_normal((2, 80))), 80, resamples=500)
        p.append((e[0] - e[1]).p_value())
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert 0.42 <= np.mean(np.array(p) < 0.5) <= 0.58


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_interval_covers_the_true_correlation(correlation):
    rng, covered = np.random.default_rng(6), 0
    true = 6 / np.pi * np.arcsin(correlation / 2)
    for trial in range(300):
        x, noise = rng.standard_normal((2, 100))
        y = correlation * x + np.sqrt(1 - correlation**2) * noise
        low, high = bootstrap(spearman(x, [y]), 100, resamples=1000, seed=trial)[0].interval()
        covered += low <= true <= high
    assert 0.92 <= covered / 300 <= 0.98


def test_mean_of_independent_sets_is_surer_than_each(scored):
    gold, columns = scored
    sets = [bootstrap(spearman(gold, columns[:1]), len(gold), sample=str(i))[0] for i in range(4)]
    joint = mean_estimate(sets)
    assert joint.value == pytest.approx(sets[0].value)
    low, high = joint.interval()
    each = sets[0].interval()
    assert (high - low) == pytest.approx((each[1] - each[0]) / 2, rel=0.15)
    assert mean_estimate(sets[:1]).interval() == pytest.approx(each)


def test_the_difference_of_independent_samples_agrees_with_scipys():
    first, other = np.random.default_rng(9).exponential(size=150), np.random.default_rng(10).exponential(size=40)
    ours = [bootstrap(mean([x]), len(x), resamples=4000, sample=str(len(x)))[0] for x in (first, other)]
    theirs = scipy_bootstrap(
        (first, other), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=4000, method="BCa",
        rng=np.random.default_rng(11),
    ).confidence_interval  # fmt: skip
    assert unpaired_difference(*ours).value == pytest.approx(first.mean() - other.mean())
    assert unpaired_difference(*ours).interval() == pytest.approx(tuple(theirs), abs=0.03)


def test_a_set_without_variation_has_no_interval():
    estimate = bootstrap(spearman([1, 2, 3, 4], [[1.0, 1.0, 1.0, 1.0]]), 4)[0]
    assert np.isnan(estimate.interval()).all() and np.isnan(estimate.p_value())


def test_a_task_takes_less_than_two_seconds():
    rng = np.random.default_rng(7)
    gold = rng.random(1379)
    start = time.perf_counter()
    bootstrap(spearman(gold, gold + rng.standard_normal((6, 1379))), 1379)
    assert time.perf_counter() - start < 2
