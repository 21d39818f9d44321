"""Puts the rows of an epoch into batches in which no text is a false negative of another row.

A contrastive loss treats the texts of all other rows in a batch as negatives of a row. Two rows therefore conflict if the anchor
or the positive of one is the anchor, the positive or a negative of the other. This covers every direction that a loss may
contrast: anchors with texts (a text that equals the anchor is at least as near to it as its positive), texts with anchors,
anchors with anchors (two rows with the same anchor), and texts with texts (two rows with the same positive). A text that repeats
only among negatives is a negative of both rows, which is harmless.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

SMALL = 8  # a batch with fewer than 1/8 of the requested rows is small
DONORS = 4  # batches without a suitable row to try before a small batch stays small
PAIR = ("anchor", "positive")
MOST_BATCHES = 2**32  # a text's number is a multiple of this, so that text + batch is unique
PROBES = 64  # batches, or rows of a batch, to try before moving on


def negative_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns that hold negatives: ``negative``, ``negative_1``, ..."""
    return [name for name in columns if name == "negative" or name.startswith("negative_")]


@dataclass
class RepeatedTexts:
    """The texts that can make two rows conflict, as numbers, by row. Most rows have none.

    Attributes:
        own: The repeated texts among a row's anchor and positive.
        negatives: The texts among a row's negatives that are the anchor or positive of another row.
    """

    own: dict[int, tuple[int, ...]] = field(default_factory=dict)
    negatives: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset) -> RepeatedTexts:
        """Find the repeated texts of a data set with ``anchor``, ``positive`` and any number of (possibly empty) negatives."""
        others = negative_columns(dataset.column_names)
        texts = _number_texts(dataset, [*PAIR, *others])
        counts = np.bincount(texts[texts >= 0])
        in_pairs = np.bincount(texts[: len(PAIR)].ravel(), minlength=len(counts))
        conflicting = np.append((counts > 1) & (in_pairs > 0), False)  # the last entry stands for missing texts, -1
        return cls(own=_by_row(texts[: len(PAIR)], conflicting), negatives=_by_row(texts[len(PAIR) :], conflicting))


def _number_texts(dataset: Dataset, columns: list[str]) -> np.ndarray:
    """Number the texts: equal texts get the same number, empty ones -1. Shape ``[columns, rows]``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = dataset.with_format("arrow")
    # one chunk per column: a filtered data set has one chunk per row, and unify_dictionaries is quadratic in their number
    texts = [pa.chunked_array(_chunks(table[name])).cast(pa.large_string()).combine_chunks() for name in columns]
    encoded = pa.chunked_array(texts).dictionary_encode().unify_dictionaries()
    numbers = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    empty = pc.index(encoded.chunk(0).dictionary, pa.scalar("", pa.large_string())).as_py()
    numbers[numbers == empty] = -1
    return numbers.reshape(len(columns), len(dataset))


def _chunks(column: Any) -> list[Any]:
    values = column[:] if not hasattr(column, "chunks") else column
    return list(values.chunks) if hasattr(values, "chunks") else [values]


def _by_row(texts: np.ndarray, wanted: np.ndarray) -> dict[int, tuple[int, ...]]:
    rows: dict[int, set[int]] = defaultdict(set)
    for column in texts:
        places = wanted[column].nonzero()[0]
        for row, text in zip(places.tolist(), column[places].tolist(), strict=True):
            rows[row].add(text * MOST_BATCHES)
    return {row: tuple(sorted(numbers)) for row, numbers in rows.items()}


class Packing:
    """Batches of at most ``size`` rows without conflicts.

    A row goes into the first batch with room and without a conflict (first fit). The result is the same as if every row
    that does not fit the current batch were carried over to the next. The cost of a row does not depend on how often its texts
    repeat.

    Attributes:
        batches: Lists of rows.
        carried: Number of rows that did not fit the batch being filled.
    """

    def __init__(self, texts: RepeatedTexts, size: int):
        self.texts, self.size = texts, size
        self.batches: list[list[int]] = []
        self.carried = 0
        self._open = [0]  # for each batch: itself if it has room, otherwise a later one; the last entry is a new batch
        # text + batch for each text that is an anchor or positive in a batch, and for each negative there
        self._own: set[int] = set()
        self._negative: set[int] = set()
        self._first: dict[int, int] = {}  # every batch before this one is full or has the text as an anchor or positive
        self._latest: dict[int, int] = {}  # no batch after this one has the text

    def add(self, rows: Iterable[int]) -> None:
        own_texts, negative_texts = self.texts.own, self.texts.negatives
        filling = self._room(0)
        for row in rows:
            own, negatives = own_texts.get(row, ()), negative_texts.get(row, ())
            batch = filling
            if not self._allow(filling, own, negatives):
                batch = self._place(filling, own, negatives)
                self.carried += 1
            if batch == len(self.batches):
                self.batches.append([])
                self._open.append(batch + 1)
            self._put(row, batch)
            if len(self.batches[batch]) == self.size:
                self._open[batch] = batch + 1
                filling = self._room(filling)

    def _allow(self, batch: int, own: tuple[int, ...], negatives: tuple[int, ...]) -> bool:
        for text in own:
            if text + batch in self._own or text + batch in self._negative:
                return False
        return all(text + batch not in self._own for text in negatives)

    def _place(self, filling: int, own: tuple[int, ...], negatives: tuple[int, ...]) -> int:
        """Return the first batch after the one being filled that has room and allows the texts."""
        texts = (*own, *negatives)
        batch = filling
        for text in texts:
            first = self._room(self._first.get(text, 0))
            while text + first in self._own:
                first = self._room(first + 1)
            self._first[text] = first
            batch = max(batch, first)
        for _ in range(PROBES):
            if self._allow(batch, own, negatives):
                return batch
            batch = self._room(batch + 1)
        return self._room(max(self._latest.get(text, -1) for text in texts) + 1)

    def _room(self, batch: int) -> int:
        """Return the first batch with room, starting with this one."""
        ahead = self._open
        while ahead[batch] != batch:
            ahead[batch] = batch = ahead[ahead[batch]]
        return batch

    def _put(self, row: int, batch: int) -> None:
        self.batches[batch].append(row)
        for where, texts in ((self._own, self.texts.own), (self._negative, self.texts.negatives)):
            for text in texts.get(row, ()):
                where.add(text + batch)
                if self._latest.get(text, -1) < batch:
                    self._latest[text] = batch

    def _take(self, row: int, batch: int) -> None:
        self.batches[batch].remove(row)
        for text in self.texts.own.get(row, ()):  # negatives stay recorded: other rows of the batch may share them
            self._own.discard(text + batch)

    def fits(self, row: int, batch: int) -> bool:
        """Return whether no row of the batch conflicts with this row."""
        return self._allow(batch, self.texts.own.get(row, ()), self.texts.negatives.get(row, ()))

    def pair_up(self) -> list[int]:
        """Give each row that is alone in its batch a partner from the largest batches. Returns the rows without a partner."""
        alone = [batch for batch, rows in enumerate(self.batches) if len(rows) == 1]
        largest = [(-len(rows), batch) for batch, rows in enumerate(self.batches) if len(rows) > 2]
        heapq.heapify(largest)
        unused = []
        for batch in alone:
            tried = []
            while largest and len(tried) < PROBES:
                _, other = heapq.heappop(largest)
                tried.append(other)
                partner = next((row for row in self.batches[other][-PROBES:] if self.fits(row, batch)), None)
                if partner is not None:
                    self._take(partner, other)
                    self._put(partner, batch)
                    break
            else:
                [row] = self.batches[batch]
                self._take(row, batch)
                unused.append(row)
            for other in tried:
                if len(self.batches[other]) > 2:
                    heapq.heappush(largest, (-len(self.batches[other]), other))
        return unused

    def level(self, least: int) -> None:
        """Fill batches of fewer than ``least`` rows from the largest, because small batches have few negatives."""
        largest = [(-len(rows), batch) for batch, rows in enumerate(self.batches) if len(rows) > least]
        heapq.heapify(largest)
        for batch in [batch for batch, rows in enumerate(self.batches) if 0 < len(rows) < least]:
            failed: list[tuple[int, int]] = []
            while len(self.batches[batch]) < least and largest and len(failed) < DONORS:
                entry = heapq.heappop(largest)
                rows = self.batches[entry[1]]
                row = next((row for row in rows[-PROBES:] if self.fits(row, batch)), None)
                if row is None:
                    failed.append(entry)
                    continue
                self._take(row, entry[1])
                self._put(row, batch)
                if len(rows) > least:
                    heapq.heappush(largest, (-len(rows), entry[1]))
            for entry in failed:
                heapq.heappush(largest, entry)

    def even_out(self, parts: int) -> list[int]:
        """Move rows until every batch divides into ``parts`` equal parts. Returns the rows that fit nowhere."""
        uneven = deque(
            sorted((len(rows) % parts, batch) for batch, rows in enumerate(self.batches) if len(rows) % parts)
        )
        spare: list[int] = []
        while uneven:
            over, batch = uneven.pop()  # the batch that lacks the fewest rows
            lacking = parts - over
            while uneven and len(spare) < lacking:
                spare += self._cut(uneven.popleft()[1], parts)
            for row in spare[-PROBES:]:
                if lacking and self.fits(row, batch):
                    self._put(row, batch)
                    spare.remove(row)
                    lacking -= 1
            if lacking:
                spare += self._cut(batch, parts)
        rest = Packing(self.texts, self.size)
        rest.add(spare)
        unused = [row for batch in range(len(rest.batches)) for row in rest._cut(batch, parts)]
        self.batches += rest.batches
        return unused

    def _cut(self, batch: int, parts: int) -> list[int]:
        rows = self.batches[batch]
        over = rows[len(rows) - len(rows) % parts :]
        for row in over:
            self._take(row, batch)
        return over


@dataclass
class Epoch:
    """The steps of an epoch.

    Attributes:
        steps: The rows of each step, over all processes.
        carried: Number of rows that did not fit the step being filled and were carried over to a later one.
        alone: Rows that have no negative and cannot share a batch with any other row; they are not used.
        uneven: Rows that cannot be divided equally among the processes; they are not used.
    """

    steps: list[list[int]]
    carried: int = 0
    alone: list[int] = field(default_factory=list)
    uneven: list[int] = field(default_factory=list)


def pack(rows: list[int], texts: RepeatedTexts, size: int, parts: int, own_negatives: bool) -> Epoch:
    """Put each row into one step of at most ``size`` rows, in the given order, so that no two rows of a step conflict.

    Args:
        rows: Rows that have the same number of negatives.
        texts: The repeated texts, which make rows conflict.
        size: Rows of a step, over all processes.
        parts: Number of processes that share a step equally.
        own_negatives: Whether rows have their own negatives, so that a row can be alone in a step.
    """
    packing = Packing(texts, size)
    packing.add(rows)
    alone = [] if own_negatives else packing.pair_up()
    if parts == 1:
        packing.level(size // SMALL)
    uneven = packing.even_out(parts) if parts > 1 else []
    return Epoch([batch for batch in packing.batches if batch], packing.carried, alone, uneven)


def chunk(rows: list[int], size: int, parts: int) -> Epoch:
    """Divide rows into steps of ``size``, in the given order. A step has a single row only if that cannot be avoided."""
    last = len(rows) % size // parts * parts
    used = len(rows) // size * size + last
    steps = [rows[start : min(start + size, used)] for start in range(0, used, size)]
    if len(steps) > 1 and len(steps[-1]) == 1 and size > 2:
        steps[-1].insert(0, steps[-2].pop())
    return Epoch(steps, uneven=rows[used:])


def split(steps: list[list[int]], count: int, parts: int, smallest: int) -> list[list[int]] | None:
    """Split the largest steps in two until there are ``count`` steps.

    Returns None if a part would have fewer than ``smallest`` rows.
    """
    if not steps:
        return None
    heap = [(-len(rows), number, rows) for number, rows in enumerate(steps)]
    heapq.heapify(heap)
    for number in range(len(steps), count):
        size, first, rows = heapq.heappop(heap)
        half = -size // 2 // parts * parts
        if half < smallest:
            return None
        heapq.heappush(heap, (-(len(rows) - half), first, rows[half:]))
        heapq.heappush(heap, (-half, number, rows[:half]))
    return [rows for _, _, rows in sorted(heap, key=lambda entry: entry[1])]
