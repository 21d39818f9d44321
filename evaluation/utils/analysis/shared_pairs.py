"""Handles test sets that share pairs, such as STS17 en-en and STS-B: resamples each distinct pair once for all its sets.

If such sets were treated as independent samples, the interval of their mean would be too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evaluation.utils.scoring.pairs import PairSet
from evaluation.utils.scoring.statistics import Estimate, Statistic, bootstrap, centred

SetKey = tuple[str, str]  # a task and subset


def pair_names(pairs: PairSet) -> list[tuple[str, ...]]:
    """Return the identity of each pair: its sentences in any order, ignoring case and spacing."""
    return [
        tuple(sorted(" ".join(text.casefold().split()) for text in sides))
        for sides in zip(pairs.sentence1, pairs.sentence2, strict=True)
    ]


def sets_that_share_pairs(pair_sets: Sequence[PairSet]) -> list[list[PairSet]]:
    """Group the sets: two that share a pair, directly or through other sets, are in the same group. Most groups are a single set."""
    group_of_pair: dict[tuple[str, ...], int] = {}
    groups: dict[int, list[PairSet]] = {}
    for number, pair_set in enumerate(pair_sets):
        groups[number] = [pair_set]
        for name in pair_names(pair_set):
            other = group_of_pair.setdefault(name, number)
            if other != number:
                groups[number] = groups.pop(other) + groups[number]
                group_of_pair |= {pair: number for pair, group in group_of_pair.items() if group == other}
    return list(groups.values())


def joint_bootstrap(
    group: Sequence[PairSet], statistic_of: Callable[[PairSet], Statistic], **options: int
) -> dict[SetKey, list[Estimate]]:
    """Estimate the statistic of each set in a group from the same resamples of the group's distinct pairs.

    Args:
        statistic_of: The statistic of a set, for :func:`evaluation.utils.scoring.statistics.bootstrap`.
        **options: Passed to :func:`evaluation.utils.scoring.statistics.bootstrap`.
    """
    names = [pair_names(pair_set) for pair_set in group]
    item_of_name = {name: item for item, name in enumerate(dict.fromkeys(name for each in names for name in each))}
    items = [np.array([item_of_name[name] for name in each]) for each in names]
    statistics = [statistic_of(pair_set) for pair_set in group]

    def of_all_sets(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([s(weights[rows]) for s, rows in zip(statistics, items, strict=True)])

    sample = " + ".join(sorted(pair_set.sample for pair_set in group))
    estimates = bootstrap(of_all_sets, len(item_of_name), sample=sample, **options)
    columns = len(estimates) // len(group)
    return {pair_set.key: estimates[i * columns : (i + 1) * columns] for i, pair_set in enumerate(group)}


def mean_over_sets(estimates: Mapping[SetKey, Estimate], groups: Sequence[Sequence[SetKey]]) -> Estimate:
    """Return the mean of the sets' estimates.

    Args:
        estimates: The estimate of each set; those of a group have the same resamples.
        groups: The keys of the sets, in mutually independent groups.
    """
    number = sum(map(len, groups))
    jackknives = [sum(centred(estimates[key].jackknife) for key in group) / number for group in groups]
    return Estimate(
        float(np.mean([estimates[key].value for group in groups for key in group])),
        np.mean([estimates[key].replicates for group in groups for key in group], axis=0),
        np.concatenate(jackknives),
    )
