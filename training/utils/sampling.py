"""How the data sets of a mixture take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler

from training.utils.options import HybridConfig


class WeightedBatchSampler(MultiDatasetDefaultBatchSampler):
    """Draws each batch from a data set chosen at random by the weights.

    An epoch is as many batches as all data sets have together. A data set that runs out begins anew, in another order, so
    the smallest does not end the epoch.
    """

    def __init__(self, *args: Any, weights: list[float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed or 0) + self.epoch)
        offsets = [0, *accumulate(len(dataset) for dataset in self.dataset.datasets)]
        rounds = [0] * len(self.batch_samplers)
        running = [self._begin(index, 0) for index in range(len(self.batch_samplers))]
        for index in torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist():
            batch = next(running[index], None)
            if batch is None:
                rounds[index] += 1
                running[index] = self._begin(index, rounds[index])
                batch = next(running[index])
            yield [row + offsets[index] for row in batch]

    def _begin(self, index: int, round_number: int) -> Iterator[list[int]]:
        sampler = self.batch_samplers[index]
        sampler.generator = torch.Generator()  # of its own, since the samplers run side by side
        sampler.set_epoch(self.epoch + 1000 * round_number)
        return iter(sampler)

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self.batch_samplers)


def make_mixture_sampler(config: HybridConfig) -> str | Callable[..., WeightedBatchSampler]:
    """What goes into the training argument ``multi_dataset_batch_sampler``."""
    weights = [entry.weight for entry in config.datasets.values()]
    if None in weights:
        return config.multi_dataset_batch_sampler
    return lambda dataset, **kwargs: WeightedBatchSampler(dataset, weights=weights, **kwargs)
