"""Which rows make a step: no text twice in a batch, all processes on the same data set, data sets taking turns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    MultiDatasetDefaultBatchSampler,
    NoDuplicatesBatchSampler,
)

from common.errors import RunError

PROPORTIONAL, ROUND_ROBIN = "proportional", "round_robin"


class GlobalBatchSampler(DefaultBatchSampler):
    """Batches in which no text stands twice, over all processes of a step.

    A step's rows are drawn together, ``batch_size`` times ``processes`` of them, and dealt out as that many batches in a
    row, which is how accelerate hands them to the processes. With one process this is the library's hashed sampler.

    Raises:
        RunError: The data set has too few rows for a single step of several processes.
    """

    def __init__(self, dataset: Any, batch_size: int, processes: int, drop_last: bool, **kwargs: Any):
        # with several processes an incomplete step would leave some of them without a batch, waiting for ever
        drop_last = drop_last or processes > 1
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, **kwargs)
        if drop_last and len(dataset) < batch_size * processes:
            raise RunError(
                f"a data set has {len(dataset)} rows, too few for a step of {processes} x {batch_size}: lower the batch size"
            )
        self.rows = NoDuplicatesBatchSampler(
            dataset, batch_size * processes, drop_last, precompute_hashes=True, **kwargs
        )
        self.rows.precompute_num_proc = None  # hash in this process: a fork would switch off the tokenizer's threads
        self.processes = processes
        self.sampler = self  # accelerate passes the epoch to `batch_sampler.sampler` where it deals out the batches

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.rows:
            yield from deal(rows, self.processes)

    def __len__(self) -> int:
        return len(self.rows) * self.processes


def deal(rows: list[int], processes: int) -> list[list[int]]:
    """A step's rows in equal parts, one for each process."""
    size = -(-len(rows) // processes)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class MixtureBatchSampler(MultiDatasetDefaultBatchSampler):
    """Draws each step from one data set of a mixture, the same for all processes.

    Args:
        turns: ``"proportional"`` to the data sets' sizes, until all are used up; ``"round_robin"``, until the smallest is;
            or a weight for each data set, by which each step's is drawn at random. With weights an epoch has as many steps
            as all data sets together, and one that runs out begins anew in another order, so that the smallest does not
            end the epoch.
    """

    def __init__(self, *args: Any, turns: str | list[float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.turns = turns
        self.sampler = self  # see GlobalBatchSampler
        self.batch_samplers: list[GlobalBatchSampler]

    def order(self) -> list[int]:
        """The data set of each step."""
        generator = torch.Generator().manual_seed((self.seed or 0) + self.epoch)
        counts = [len(sampler.rows) for sampler in self.batch_samplers]
        if self.turns == PROPORTIONAL:
            steps = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            return steps[torch.randperm(len(steps), generator=generator)].tolist()
        if self.turns == ROUND_ROBIN:
            return list(range(len(counts))) * min(counts)
        weights = torch.tensor(self.turns, dtype=torch.float64)
        return torch.multinomial(weights, sum(counts), replacement=True, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        offsets = [0, *accumulate(len(dataset) for dataset in self.dataset.datasets)]
        rounds = [0] * len(self.batch_samplers)
        running = [self._begin(index, 0) for index in range(len(self.batch_samplers))]
        for index in self.order():
            rows = next(running[index], None)
            if rows is None:  # with weights, or where duplicates cost a batch
                rounds[index] += 1
                running[index] = self._begin(index, rounds[index])
                rows = next(running[index], None)
                if rows is None:
                    raise RunError("a data set has too few different texts to fill a batch: lower the batch size")
            yield from deal([row + offsets[index] for row in rows], self.batch_samplers[index].processes)

    def _begin(self, index: int, round_number: int) -> Iterator[list[int]]:
        rows = self.batch_samplers[index].rows
        rows.generator = torch.Generator()  # of its own, since the samplers run side by side
        rows.set_epoch(self.epoch + 1000 * round_number)
        return iter(rows)

    def __len__(self) -> int:
        counts = [len(sampler.rows) for sampler in self.batch_samplers]
        steps = min(counts) * len(counts) if self.turns == ROUND_ROBIN else sum(counts)
        return steps * self.batch_samplers[0].processes
