"""An epoch: every row once, no false negatives in a batch, the announced number of steps, the same for every process."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import RunError
from training.utils.sampling import Collator, GlobalBatchSampler, MixtureBatchSampler


def rows(anchors, positives=None, **negatives) -> Dataset:
    positives = [f"p{i}" for i in range(len(anchors))] if positives is None else positives
    return Dataset.from_dict({"anchor": list(anchors), "positive": list(positives)} | negatives)


def texts_of(row: dict) -> tuple[set, set]:
    """A row's anchor and positive, and its negatives."""
    own = {row["anchor"], row["positive"]}
    return own, {text for name, text in row.items() if name.startswith("negative") and text}


def assert_valid(dataset: Dataset, steps: list[list[int]], size: int) -> None:
    """No anchor or positive of a row is a text of another row of its step, looked at pair by pair."""
    table = dataset.to_list()
    used = [row for step in steps for row in step]
    assert len(set(used)) == len(used)
    for step in steps:
        assert 0 < len(step) <= size
        for i in step:
            for j in step:
                if i != j:
                    (own, _), (other, negatives) = texts_of(table[i]), texts_of(table[j])
                    assert not own & (other | negatives), (table[i], table[j])
        assert len({len(texts_of(table[row])[1]) for row in step}) == 1 or "negative_2" not in dataset.column_names
        assert len(step) > 1 or texts_of(table[step[0]])[1], "a row without negatives is alone"


def test_ten_positives_for_each_anchor():
    dataset = rows([f"a{i // 10}" for i in range(400)])
    sampler = GlobalBatchSampler(dataset, 128)
    assert len(sampler) == 10, "each step can have every anchor once"
    for epoch in range(3):
        steps = sampler.steps(epoch)
        assert sorted(row for step in steps for row in step) == list(range(400))
        assert [len(step) for step in steps] == [40] * 10
        assert_valid(dataset, steps, 128)


def test_without_repeated_texts_all_batches_but_the_last_are_full():
    sampler = GlobalBatchSampler(rows([f"a{i}" for i in range(100)]), 32)
    for epoch in range(3):
        assert [len(step) for step in sampler.steps(epoch)] == [32, 32, 32, 4]
    assert sampler.first.carried == 0


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (("a", "p", "n"), ("a", "q", "m"), True),  # two positives of one anchor
        (("a", "p", "n"), ("b", "p", "m"), True),  # two anchors of one positive
        (("a", "p", "n"), ("b", "q", "p"), True),  # the positive of one is a negative of the other
        (("a", "p", "n"), ("p", "q", "m"), True),
        (("a", "p", "n"), ("b", "a", "m"), True),
        (("a", "p", "n"), ("b", "q", "a"), True),  # nothing is nearer to a text than itself
        (("a", "p", "n"), ("b", "q", "n"), False),  # a negative of both
        (("a", "a", "n"), ("b", "q", "n"), False),
        (("a", "p", "p"), ("b", "q", "m"), False),
    ],
)
def test_what_makes_two_rows_conflict(first, second, conflict):
    for one, other in ((first, second), (second, first)):
        anchors, positives, negatives = zip(one, other, strict=True)
        sampler = GlobalBatchSampler(rows(anchors, positives, negative=negatives), 2)
        assert len(sampler) == (2 if conflict else 1)


def test_rows_that_are_alone_get_a_partner_from_the_largest_batches(caplog):
    # first fit gives batches of 10 and 6 rows, and four of one row
    dataset = rows(["a"] * 6 + [f"b{i}" for i in range(14)])
    sampler = GlobalBatchSampler(dataset, 10)
    assert len(sampler) == 6
    sizes = sorted(len(step) for step in sampler.steps(0))
    assert sum(sizes) == 20 and min(sizes) == 2
    assert_valid(dataset, sampler.steps(0), 10)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_small_batches_are_filled_from_the_largest():
    # first fit gives batches of 64, 64 and 15 rows, and three of one row
    dataset = rows(["a"] * 6 + [f"b{i}" for i in range(140)])
    sizes = sorted(len(step) for step in GlobalBatchSampler(dataset, 64).steps(0))
    assert sizes[:3] == [8, 8, 8] and sum(sizes) == 146 and max(sizes) <= 64
    dataset = rows(["a"] * 6 + [f"b{i}" for i in range(140)], negative=["n"] * 146)
    steps = GlobalBatchSampler(dataset, 64).steps(0)
    assert sorted(len(step) for step in steps)[:3] == [8, 8, 8], "with negatives of their own too"
    assert_valid(dataset, steps, 64)


def test_rows_that_cannot_be_used_are_counted_in_one_warning(caplog):
    with caplog.at_level(logging.INFO):
        sampler = GlobalBatchSampler(rows(["a"] * 8 + ["b", "c"]), 4, name="mine")
    assert sorted(len(step) for step in sampler.steps(0)) == [2, 2]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith(
        "mine: 6 of 10 rows are not used in the first epoch: 6 sharing"
    )
    assert "mine: 10 rows in 2 steps per epoch (3 if no texts were shared); 7 rows are carried over" in caplog.text


def test_a_row_with_negatives_of_its_own_may_be_alone():
    dataset = rows(["a"] * 8, negative=["n"] * 8)
    sampler = GlobalBatchSampler(dataset, 4)
    assert sorted(sampler.steps(0)) == [[row] for row in range(8)]


def test_rows_of_which_no_two_can_share_a_batch():
    with pytest.raises(RunError, match="mine: the 8 rows cannot form a batch: they share their anchors or positives"):
        GlobalBatchSampler(rows(["a"] * 8), 4, name="mine")


def test_other_losses_see_every_row_in_full_batches_whatever_repeats():
    table = {"sentence1": [f"a{i}" for i in range(321)], "sentence2": ["red"] * 321, "label": [0, 1, 0] * 107}
    sampler = GlobalBatchSampler(Dataset.from_dict(table), 32)
    assert sorted(len(step) for step in sampler.steps(0)) == [2, 31] + [32] * 9, "none has a single row"
    assert sorted(row for step in sampler.steps(1) for row in step) == list(range(321))
    assert sampler.steps(0) != sampler.steps(1)


UNEVEN = rows(
    [f"a{i}" for i in range(30)],
    negative_1=[f"n{i}" if i % 3 else "" for i in range(30)],
    negative_2=[f"m{i}" if i % 3 == 2 else "" for i in range(30)],
)


def test_rows_of_a_batch_have_the_same_number_of_negatives():
    sampler = GlobalBatchSampler(UNEVEN, 8)
    assert sorted(row for step in sampler.steps(0) for row in step) == list(range(30))
    assert sorted(len(step) for step in sampler.steps(0)) == [2, 2, 2, 8, 8, 8]
    assert_valid(UNEVEN, sampler.steps(0), 8)


def test_the_collator_tokenises_only_the_negatives_that_are_there():
    def tokenize(texts, prompt=None, task=None):
        assert all(texts)
        return {"input_ids": torch.zeros(len(texts), 1)}

    collate = Collator(tokenize)
    for count, name in enumerate(("anchor", "negative_1", "negative_2")):
        batch = collate([UNEVEN[row] for row in (count, count + 3)])
        wanted = ["anchor", "positive", "negative_1", "negative_2"][: 2 + count]
        assert [key for key in batch if key.endswith("input_ids")] == [f"{column}_input_ids" for column in wanted], name


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.none() | st.integers(0, 9)), min_size=2, max_size=40),
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(0, 5),
)
@example([(0, 0, None), (0, 1, None), (2, 2, None), (0, 2, None), (1, 1, None)], 2, 3, 0)  # a later epoch has no step
def test_any_rows_in_any_epoch(table, batch_size, processes, seed):
    anchors, positives, negatives = (
        [None if n is None else f"t{n}" for n in column] for column in zip(*table, strict=True)
    )
    more = {} if None in negatives else {"negative": negatives}
    dataset = rows(anchors, positives, **more)
    try:
        sampler = GlobalBatchSampler(dataset, batch_size, processes, seed=seed)
    except RunError:
        return
    for epoch in range(3):
        steps = sampler.steps(epoch)
        assert len(steps) == sampler.count == len(sampler) // processes
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler), "each process has a batch of every step"
        assert all(len(step) % processes == 0 for step in steps)
        assert_valid(dataset, [step for step in steps if processes == 1 or len(step) > 1], batch_size * processes)
    used = sum(map(len, sampler.steps(0)))
    assert used + len(sampler.first.alone) + len(sampler.first.uneven) == len(table)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_use_all_rows_but_a_few_that_cannot_be_dealt(processes):
    dataset = rows([f"a{i // 7}" for i in range(101)])
    sampler = GlobalBatchSampler(dataset, 8, processes)
    assert 101 % processes <= len(sampler.first.uneven) < 2 * processes
    for epoch in range(2):
        assert all(len(step) % processes == 0 for step in sampler.steps(epoch))
        assert_valid(dataset, sampler.steps(epoch), 8 * processes)
    assert {row for epoch in range(3) for step in sampler.steps(epoch) for row in step} == set(range(101))


def test_an_epoch_depends_on_seed_and_epoch_alone():
    dataset = rows([f"a{i // 3}" for i in range(100)])
    one, same, other = (GlobalBatchSampler(dataset, 16, seed=seed) for seed in (3, 3, 4))
    one.steps(5), one.steps(1)
    assert one.steps(2) == same.steps(2) != other.steps(2)
    assert one.steps(0) != one.steps(1)


def test_a_mixture_sees_every_row_of_each_data_set():
    datasets = [rows([f"a{i // 10}" for i in range(40)]), rows([f"b{i}" for i in range(12)])]
    samplers = [GlobalBatchSampler(dataset, 8) for dataset in datasets]
    mixed = MixtureBatchSampler(torch.utils.data.ConcatDataset(datasets), samplers, turns="proportional", seed=1)
    for epoch in range(2):
        mixed.set_epoch(epoch)
        batches = list(mixed)
        assert len(batches) == len(mixed) == 10 + 2
        assert sorted(row for batch in batches for row in batch) == list(range(52))


def test_many_rows_of_one_anchor_take_no_longer_than_others():
    start = time.process_time()
    count = 40_000
    dataset = rows(["a"] * count, negative=["n"] * count)
    sampler = GlobalBatchSampler(dataset, 128)
    next(iter(sampler))
    assert len(sampler) == count
    assert time.process_time() - start < 10  # takes 0.5 s; a quadratic algorithm takes minutes


def test_rows_that_were_selected_are_numbered_as_fast_as_those_of_a_file():
    """Such a data set has one chunk per row; this once took quadratic time, a minute for 22,000 rows."""
    table = Dataset.from_dict(
        {"anchor": [f"a{i}" for i in range(20_000)], "positive": [f"p{i}" for i in range(20_000)]}
    )
    table = table.select([i for i in range(20_000) if i % 7])
    start = time.process_time()
    sampler = GlobalBatchSampler(table, 64)
    assert time.process_time() - start < 10
    assert sorted(row for step in sampler.steps(0) for row in step) == list(range(len(table)))
