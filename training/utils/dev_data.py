"""Loads dev sets from any source, and removes pairs that are also test pairs.

A dev set is an entry of ``dev_data``: a known name, a file, or a data set on the Hub, written as ``path``, ``path:config`` or
``path:config:split``. It can also be an entry of ``dev_datasets`` in a --config file, which can map columns. All 250 pairs of STS17
en-en are in the STS Benchmark, 125 of them in the split that chooses checkpoints. Therefore pairs that are also in a test
set are removed here from the dev sets.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from common.data_files import is_hub_spec, is_local_path, load_hub_dataset, parse_hub_spec
from common.errors import RunError, UsageError
from evaluation.utils.dev_evaluator import is_scored
from training.utils.data_loading import TRANSLATIONS, as_graded_pairs, as_translations, load_dev_sets
from training.utils.leaks import benchmark_sets, normalise
from training.utils.options import DevEntry

if TYPE_CHECKING:
    from training.utils.options import TrainingConfig

logger = logging.getLogger(__name__)

Sets = dict[str, dict[str, list[Any]]]
LANGUAGES = {"en": "English", "ar": "Arabic"}


def load_development_data(config: TrainingConfig, language: str) -> tuple[Sets, Sets, dict[str, Any]]:
    """Load a run's dev sets, without pairs that are also test pairs, its test sets, and the counts for the run's record.

    Returns:
        The dev and test sets as :func:`training.utils.data_loading.load_dev_sets` returns them, and for each dev set the
        number of pairs removed, and of pairs that share a sentence with a test set.

    Raises:
        UsageError, RunError: A set cannot be loaded, or too few pairs remain after the test pairs are removed.
    """
    named = [name for name in config.dev_data if not is_hub_spec(name)]
    specs = {
        label_of(name): DevEntry(*parse_hub_spec(name, "validation")) for name in config.dev_data if is_hub_spec(name)
    }
    for name, entry in config.dev_datasets.items():
        if name in specs:
            raise UsageError(f"'dev_datasets': --dev_data also has a set named {name!r}: rename one")
        specs[name] = entry
    if "none" in named and specs:
        raise UsageError("--dev_data: 'none' cannot be combined with other sets")
    if "auto" in named:
        logger.info(
            "the dev set is STS-B in %s; to choose the checkpoint on other data, set --dev_data", LANGUAGES[language]
        )
    try:
        dev, test = load_dev_sets(named, language) if named or not specs else ({}, {})
    except RunError as error:
        if not isinstance(error, UsageError) and not config.is_set("dev_data"):
            raise RunError(
                f"{error}. This is a dev set: use your own with --dev_data FILE, or do without with --dev_data none"
            ) from None
        raise
    for name, entry in specs.items():
        if name in dev:
            raise UsageError(f"--dev_data: two sets have the name {name!r}: list each set once, or rename one")
        dev[name] = load_dev_dataset(entry)
    paths = [*(name for name in named if name != "none"), *(entry.path for entry in specs.values())]
    from_hub = any(not is_local_path(path) for path in paths)
    tests = test | (benchmark_sets("dev pairs")[0] if from_hub else {})
    dev, checked = without_test_pairs(dev, tests)
    return dev, test, checked


def label_of(text: str) -> str:
    """Return the name of a dev set from the Hub: ``org/x:en-ar:dev`` is ``x-en-ar-dev``."""
    path, *others = text.split(":")
    return "-".join([path.split("/")[-1], *filter(None, others)])


def load_dev_dataset(entry: DevEntry) -> dict[str, list[Any]]:
    """Load graded pairs (``sentence1``, ``sentence2``, ``score``) or translations (``source``, ``target``) from the Hub or a file.

    Raises:
        UsageError, RunError: The data set cannot be loaded, or its columns fit neither kind; the message lists them.
    """
    from pathlib import Path

    from common.data_files import read_rows

    own = is_local_path(entry.path)
    if own:
        where, dataset = entry.path, read_rows(Path(entry.path))
    else:
        where = f"data set {entry.path}" + (f" ({entry.name})" if entry.name else "")
        dataset = load_hub_dataset(entry.path, entry.name, entry.split)
    columns = dataset.column_names
    if set(entry.columns) & set(TRANSLATIONS) if entry.columns else "non_english" in columns:
        return as_translations(where, dataset, own, entry.columns)
    return as_graded_pairs(where, dataset, own, entry.columns)


def without_test_pairs(dev: Sets, tests: Sets) -> tuple[Sets, dict[str, Any]]:
    """Remove dev pairs that are also test pairs, in either order, after normalisation.

    Other pairs that share a sentence with a test set are counted and kept.

    Returns:
        The dev sets, and ``{set: {"rows": ..., "test_pairs_removed": {test set: n}, "share_a_sentence": n}}``.

    Raises:
        RunError: Fewer than three pairs of a dev set remain.
    """
    pairs_of: dict[frozenset[str], list[str]] = {}
    sentences: set[str] = set()
    for name, rows in tests.items():
        for pair in {_pair(*texts) for texts in _texts(rows)}:
            pairs_of.setdefault(pair, []).append(name)
            sentences |= pair
    kept: Sets = {}
    record: dict[str, Any] = {}
    for name, rows in dev.items():
        pairs = [_pair(*texts) for texts in _texts(rows)]
        removed: dict[str, int] = {}
        for pair in pairs:
            for test in pairs_of.get(pair, ()):
                removed[test] = removed.get(test, 0) + 1
        keep = [row for row, pair in enumerate(pairs) if pair not in pairs_of]
        shared = sum(bool(pairs[row] & sentences) for row in keep)
        if len(pairs) < 3:
            raise RunError(f"dev set {name}: {len(pairs)} pairs are too few; use a set with at least 3")
        if len(keep) < 3:
            raise RunError(
                f"dev set {name}: only {len(keep)} of {len(pairs)} pairs are not test pairs; use another set"
            )
        kept[name] = {column: [values[row] for row in keep] for column, values in rows.items()}
        record[name] = {"rows": len(keep), "test_pairs_removed": removed, "share_a_sentence": shared}
        if removed or shared:
            by_set = f" ({', '.join(f'{number} of {test}' for test, number in removed.items())})" if removed else ""
            logger.info(
                "dev set %s: %d of %d pairs are also test pairs and are removed%s; %d others share a sentence with a test set",
                name, len(pairs) - len(keep), len(pairs), by_set, shared,
            )  # fmt: skip
    return kept, record


def _texts(rows: dict[str, list[Any]]) -> zip:
    first, second = ("sentence1", "sentence2") if is_scored(rows) else ("source", "target")
    return zip(rows[first], rows[second], strict=True)


def _pair(first: str, second: str) -> frozenset[str]:
    return frozenset((normalise(first), normalise(second)))
