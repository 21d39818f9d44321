"""Chooses the rows of each step: no false negatives in a batch, the same data set for all processes, and every row of a data set
once before any is repeated.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.utils.data import Sampler

from common.errors import RunError
from common.packing import HOST_MASK
from training.utils.batches import PAIR, Epoch, RepeatedTexts, chunk, negative_columns, pack, split

logger = logging.getLogger(__name__)

MASK_SUFFIX = "_attention_mask"

PROPORTIONAL, ROUND_ROBIN = "proportional", "round_robin"
SHUFFLES = 5  # orders to try for an epoch, because no epoch may need more steps than the first


class GlobalBatchSampler(Sampler[list[int]]):
    """Draws every row of a data set once per epoch, in steps that the processes share.

    The rows of a step, at most ``batch_size`` times ``processes``, are drawn together and divided into batches of equal size, one
    for each process. If the data set has anchors and positives, its loss has in-batch negatives: in this case no two rows of a step
    conflict (see :mod:`training.utils.batches`), and all have the same number of negatives. Other losses tolerate repeated
    texts, and get ordinary shuffled batches.

    All epochs have as many steps as the first, because the trainer asks for the number only once. The order of an epoch depends
    only on ``seed`` and the epoch.

    Args:
        dataset: The rows, with the columns of :func:`training.utils.data_loading.load_training_data`.
        batch_size: Rows in a batch of one process.
        processes: Number of processes that train.
        drop_last: Whether to drop the steps that are not full.
        seed: Seed of the order.
        name: The data set's name in the log.

    Raises:
        RunError: The data set has too few rows, or too few that can share a batch, for a single step.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        processes: int = 1,
        drop_last: bool = False,
        seed: int = 0,
        name: str | None = None,
        **_: Any,
    ):
        self.dataset, self.processes, self.drop_last, self.seed = dataset, processes, drop_last, seed
        self.size = batch_size * processes
        # accelerate treats batches that differ from the sampler's stated size as incomplete, and skips them
        self.batch_size = None
        self.sampler = self  # accelerate passes the epoch to `batch_sampler.sampler` when it distributes the batches
        self.epoch = 0
        self.where = f"{name}: " if name else ""
        self.texts = RepeatedTexts.of(dataset) if set(PAIR) <= set(dataset.column_names) else None
        self.groups = [np.arange(len(dataset))] if self.texts is None else group_by_negatives(dataset)
        first = self._arrange(0, 0)
        if drop_last and not first.steps:
            raise RunError(
                f"{self.where}{len(dataset)} rows are too few for a step of {batch_size} rows in each of {processes} processes: lower the batch size"
            )
        if not first.steps:
            raise RunError(
                f"{self.where}the {len(dataset)} rows cannot form a batch: they share their anchors or positives, so each would be a false negative of the others; add negatives, or rows with other texts"
            )
        self.first = first
        self._steps = {0: first.steps}
        self._report(first)

    @property
    def count(self) -> int:
        """The number of steps in an epoch."""
        return len(self.first.steps)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.steps(self.epoch):
            yield from deal(rows, self.processes)

    def __len__(self) -> int:
        return self.count * self.processes

    def steps(self, epoch: int) -> list[list[int]]:
        """Return the rows of each step of an epoch, over all processes."""
        if epoch not in self._steps:
            self._steps = {0: self.first.steps, epoch: self._make(epoch)}
        return self._steps[epoch]

    def _make(self, epoch: int) -> list[list[int]]:
        with_negatives = len(self.groups) > 1 and not len(self.groups[0])
        # without negatives of its own, a step of one row would have nothing to learn from
        smallest = self.processes if self.processes > 1 or with_negatives else 2
        for shuffle in range(SHUFFLES):
            steps = self._arrange(epoch, shuffle).steps
            if len(steps) <= self.count and (even := split(steps, self.count, self.processes, smallest)):
                return even
        order = torch.randperm(self.count, generator=self._generator(epoch, 0)).tolist()
        return [self.first.steps[index] for index in order]

    def _generator(self, epoch: int, shuffle: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + epoch + 1_000_003 * shuffle)

    def _arrange(self, epoch: int, shuffle: int) -> Epoch:
        """Shuffle the rows and divide them into steps."""
        generator = self._generator(epoch, shuffle)
        result = Epoch([])
        for count, group in enumerate(self.groups):
            rows = group[torch.randperm(len(group), generator=generator).numpy()].tolist()
            if self.texts is None:
                part = chunk(rows, self.size, self.processes)
            else:
                part = pack(rows, self.texts, self.size, self.processes, own_negatives=count > 0)
            result.steps += part.steps
            result.carried += part.carried
            result.alone += part.alone
            result.uneven += part.uneven
        if sum(len(rows) < self.size for rows in result.steps) > 1:  # so that small steps do not follow one another
            order = torch.randperm(len(result.steps), generator=generator).tolist()
            result.steps = [result.steps[index] for index in order]
        if self.drop_last:
            result.steps = [rows for rows in result.steps if len(rows) == self.size]
        return result

    def _report(self, epoch: Epoch) -> None:
        rows = len(self.dataset)
        if epoch.carried:
            logger.info(
                "%s%d rows in %d steps per epoch (%d if no texts were shared); %d rows are carried over to a later step, because they share a text with the step being filled",
                self.where,
                rows,
                self.count,
                -(-rows // self.size),
                epoch.carried,
            )
        dropped = rows - sum(map(len, epoch.steps)) - len(epoch.alone) - len(epoch.uneven)
        reasons = {
            "sharing a text with every other row that could be in the batch, without a negative of their own": len(
                epoch.alone
            ),
            f"left over when dividing the rows equally among {self.processes} processes": len(epoch.uneven),
            "in incomplete batches (dataloader_drop_last)": dropped,
        }
        if reasons := {reason: count for reason, count in reasons.items() if count}:
            logger.warning(
                "%s%d of %d rows are not used in the first epoch: %s",
                self.where,
                sum(reasons.values()),
                rows,
                "; ".join(f"{count} {reason}" for reason, count in reasons.items()),
            )


def group_by_negatives(dataset: Any) -> list[np.ndarray]:
    """Group the rows of a data set by their number of negatives, from 0. Missing negatives are empty and come last."""
    import pyarrow.compute as pc

    counts = np.zeros(len(dataset), dtype=np.int64)
    table = dataset.with_format("arrow")
    for name in negative_columns(dataset.column_names):
        counts += pc.not_equal(table[name][:], "").to_numpy(zero_copy_only=False)
    return [(counts == count).nonzero()[0] for count in range(counts.max(initial=0) + 1)]


class Collator(SentenceTransformerDataCollator):
    """Tokenises a batch, skipping empty columns: all rows of a batch have the same number of negatives."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__([{key: value for key, value in row.items() if value != ""} for row in features])
        masks = {key: value for key, value in batch.items() if key.endswith(MASK_SUFFIX)}
        # packing needs the masks on the CPU, and would have to wait for the GPU to get them back
        for key, mask in masks.items():
            batch[key.removesuffix(MASK_SUFFIX) + f"_{HOST_MASK}"] = mask.bool().numpy()
        return batch


def deal(rows: list[int], processes: int) -> list[list[int]]:
    """Divide a step's rows into equal parts, one for each process."""
    size = -(-len(rows) // processes)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class MixtureBatchSampler(Sampler[list[int]]):
    """Draws each step from one data set of a mixture, the same for all processes.

    Args:
        dataset: The data sets, concatenated.
        batch_samplers: The sampler of each.
        turns: How the data sets take turns. ``"proportional"``: in proportion to their sizes, until all are used up.
            ``"round_robin"``: one after another, until the smallest is used up. A weight for each data set: each step draws a
            data set at random, by weight. With weights, an epoch has as many steps as all data sets together, and a data set
            that runs out starts again in another order, so that the smallest does not end the epoch.
        seed: Seed of the order.
    """

    def __init__(
        self,
        dataset: Any,
        batch_samplers: list[GlobalBatchSampler],
        turns: str | list[float],
        seed: int = 0,
        **_: Any,
    ):
        self.dataset, self.batch_samplers, self.turns, self.seed = dataset, batch_samplers, turns, seed
        self.batch_size, self.drop_last = None, False  # see GlobalBatchSampler
        self.sampler = self
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> list[int]:
        """Choose the data set of each step."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        counts = [sampler.count for sampler in self.batch_samplers]
        if self.turns == PROPORTIONAL:
            steps = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            return steps[torch.randperm(len(steps), generator=generator)].tolist()
        if self.turns == ROUND_ROBIN:
            return list(range(len(counts))) * min(counts)
        weights = torch.tensor(self.turns, dtype=torch.float64)
        return torch.multinomial(weights, sum(counts), replacement=True, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        offsets = [0, *accumulate(len(dataset) for dataset in self.dataset.datasets)]
        drawn: Counter[int] = Counter()
        for index in self.order():
            sampler = self.batch_samplers[index]
            rounds, step = divmod(drawn[index], sampler.count)  # a data set with a weight may start again
            drawn[index] += 1
            rows = sampler.steps(self.epoch + 1000 * rounds)[step]
            yield from deal([row + offsets[index] for row in rows], sampler.processes)

    def __len__(self) -> int:
        counts = [sampler.count for sampler in self.batch_samplers]
        steps = min(counts) * len(counts) if self.turns == ROUND_ROBIN else sum(counts)
        return steps * self.batch_samplers[0].processes
