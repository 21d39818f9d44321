"""The output directory of a run: the run's record, the saved models, and the checks for an earlier run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import as_dict
from common.data_files import dataset_revision
from common.errors import RunError, check_writable
from common.models import identify
from common.records import RunRecord, folder_atomically, read_record
from common.redact import redact_values
from training.utils.checkpoints import (
    checkpoints,
    complete_checkpoints,
    find_checkpoint,
    is_latest,
    remove_incomplete,
    resume_command,
)
from training.utils.options import LOSSES, STATIC, DatasetEntry, TrainingConfig
from training.utils.processes import get_world_size, is_first_process
from training.utils.serving import save_servable

if TYPE_CHECKING:
    from datasets import Dataset
    from filelock import BaseFileLock
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

FINAL = "final"
ADAPTER = "final-adapter"
UNTRAINED = "untrained"
RECORD = "run.json"
PARTIAL = ".partial"
LOCK = ".lock"
# seconds; the data-loading processes of a killed run hold its lock until they notice that the run has ended
LOCK_WAIT = 10
# keys that a resumed run may change, because the weights do not depend on them
MAY_CHANGE = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
}
# entries of a record, other than the configuration, that the weights depend on
MUST_MATCH = ("matryoshka_dims", "datasets", "dev_and_test_rows", "processes")


def run_folder(config: TrainingConfig, script: str) -> Path:
    """Return the output directory: ``output_dir``, or ``output/<script>-<model>``."""
    return Path(config.output_dir or f"output/{script}-{Path(config.model_name).name}")


def prepare_run_folder(folder: Path, config: TrainingConfig) -> Path | None:
    """Check that no earlier run would be lost, and find the checkpoint to resume from. Removes nothing.

    Returns:
        The checkpoint to resume from, or None for a fresh start.

    Raises:
        UsageError: The folder cannot be written.
        RunError: See :func:`check_nothing_is_lost`; or the run cannot be resumed.
    """
    check_writable("--output_dir", folder)
    check_nothing_is_lost(folder, config)
    if config.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(folder, config.resume_from_checkpoint)
        check_same_settings(checkpoint.parent / RECORD, config)
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    return None


def check_nothing_is_lost(folder: Path, config: TrainingConfig) -> None:
    """Check that the flags say what to do with an earlier run in the folder.

    Raises:
        RunError: The folder contains a finished or unfinished run, but no flag says what to do with it; or it contains a
            ``checkpoint-*`` that is not a checkpoint.
    """
    paths = checkpoints(folder)
    if others := sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir() and path not in paths):
        raise RunError(
            f"{folder} contains {others[0]}, which is not a checkpoint: move it elsewhere, because transformers deletes the oldest checkpoint-*"
        )
    if config.resume_from_checkpoint is not None:
        if (folder / FINAL).exists():
            raise RunError(
                f"{folder} contains a finished run: there is nothing to resume; to start it again, use --overwrite_output_dir without --resume_from_checkpoint"
            )
    elif config.overwrite_output_dir:
        pass  # clear_run_folder removes it later, when this run is certain to start
    elif (folder / FINAL).exists():
        raise RunError(
            f"{folder} contains a finished run: choose another --output_dir, or replace it with --overwrite_output_dir"
        )
    elif complete_checkpoints(folder):
        raise RunError(
            f"{folder} contains an unfinished run: resume it with `{resume_command()}`, or replace it with --overwrite_output_dir"
        )
    elif paths:
        raise RunError(
            f"{folder} contains a run that ended before its first complete checkpoint: start it again with --overwrite_output_dir"
        )


def check_same_settings(path: Path, config: TrainingConfig) -> None:
    """Check that a run is resumed with its original settings, which are in the record at ``path``.

    Raises:
        RunError: A setting that the weights depend on differs; the message lists all such settings.
    """
    before = read_record(path)
    if before is None:
        logger.warning("%s cannot be read, so the settings are not compared with those of the original run", path)
        return
    after = as_dict(config)
    check_unchanged(path, {key: before["config"].get(key, after[key]) for key in after}, after)


def check_unchanged(path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise :class:`RunError` if a value that the weights depend on differs from the record at ``path``."""
    old, new = flatten(before), flatten(redact_values(json.loads(json.dumps(after, default=str))))  # as in a record
    changed = [
        f"{key} was {json.dumps(old.get(key), ensure_ascii=False)} and is now {json.dumps(new.get(key), ensure_ascii=False)}"
        for key in {**old, **new}
        if key not in MAY_CHANGE and old.get(key) != new.get(key)
    ]
    if changed:
        raise RunError(
            f"cannot resume, because settings differ from those in {path}: {'; '.join(changed)}; restore them, or start a new "
            "run in another --output_dir"
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def make_record(
    folder: Path,
    config: TrainingConfig,
    model: SentenceTransformer,
    dims: list[int],
    datasets: dict[str, tuple[DatasetEntry, Dataset]],
    held_out: dict[str, dict[str, list[Any]]],
    leaks: dict[str, Any],
) -> RunRecord:
    """Create the record of the facts known before training, without writing it.

    Raises:
        RunError: The data, the dimensions or the number of processes differ from those of the run that is resumed.
    """
    record = RunRecord(
        folder / RECORD,
        as_dict(config),
        seed=config.seed,
        matryoshka_dims=dims,
        base_model={"name": config.model_name, "revision": getattr(model.model_card_data, "base_model_revision", None)},
        datasets={name: _describe(config, entry, dataset) for name, (entry, dataset) in datasets.items()},
        dev_and_test_rows={name: len(next(iter(rows.values()))) for name, rows in held_out.items()},
        leaks=leaks,
        processes=get_world_size(),
    )
    wanted = config.resume_from_checkpoint
    if wanted is not None:
        path = (folder if is_latest(wanted) else Path(wanted).parent) / RECORD
        before = read_record(path) or {}
        known = [key for key in MUST_MATCH if key in before]
        check_unchanged(path, {key: before[key] for key in known}, {key: record.values[key] for key in known})
    return record


def _describe(config: TrainingConfig, entry: DatasetEntry, dataset: Dataset) -> dict[str, Any]:
    """Describe a data set, and the guide or teacher of its loss, for the record."""
    models = {
        role: getattr(entry, role) or config.model_name
        for role in ("guide", "teacher")
        if role in LOSSES[entry.loss].keys
    }
    return {
        "path": entry.path,
        "revision": dataset_revision(entry.path, dataset),
        "rows": len(dataset),
        "columns": dataset.column_names,
        **{role: {"name": name, "revision": identify(name).revision} for role, name in models.items()},
    }


def clear_run_folder(folder: Path, config: TrainingConfig) -> None:
    """Lock the folder, remove incomplete files of a killed run and, with ``--overwrite_output_dir``, all files of an earlier run.

    Files that runs do not write are kept.

    Raises:
        RunError: Another process is training in the folder, or has trained in it since :func:`prepare_run_folder`.
    """
    if not is_first_process():
        return
    lock_run_folder(folder)
    check_nothing_is_lost(folder, config)  # again, because a run may have ended in the meantime
    for name in (FINAL, ADAPTER, UNTRAINED):
        shutil.rmtree(folder / f".{name}{PARTIAL}", ignore_errors=True)
    for path in folder.glob(f".{RECORD}.*"):
        path.unlink()
    remove_incomplete(folder)
    if not config.overwrite_output_dir or config.resume_from_checkpoint is not None:
        return
    for path in (
        folder / FINAL,
        folder / ADAPTER,
        folder / UNTRAINED,
        folder / RECORD,
        folder / "eval",
        *checkpoints(folder),
    ):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


_locks: list[BaseFileLock] = []  # the lock of this process's run


def lock_run_folder(folder: Path) -> None:
    """Reserve the folder for this process until it ends. Raises :class:`RunError` if another process holds it."""
    from filelock import FileLock, Timeout

    unlock_run_folder()
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_WAIT)
    except Timeout:
        raise RunError(
            f"another process is training in {folder}: wait for it to end, or choose another --output_dir"
        ) from None
    except NotImplementedError:
        logger.warning(
            "%s: this file system does not support locks: start only one run in this folder at a time", folder
        )
    _locks.append(lock)


def unlock_run_folder() -> None:
    """Remove the lock of :func:`lock_run_folder`, if this process holds one. It is also released when the process ends."""
    while _locks:
        lock = _locks.pop()
        # Delete the file before releasing the lock: afterwards, another run may have locked it. If another run creates and
        # locks a new file in between, that does no harm, because that run finds the results of this one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def write_initial_files(record: RunRecord, model: SentenceTransformer, config: TrainingConfig) -> None:
    """Write the record. A new static model is also saved untrained, as a baseline."""
    if not is_first_process():
        return
    folder = record.path.parent
    resumed = config.resume_from_checkpoint is not None
    if config.model_name == STATIC and not (resumed and (folder / UNTRAINED).exists()):
        save_atomically(model, folder, UNTRAINED, [], "free some disk space and run the command again")
    record.write()


def save_atomically(model: SentenceTransformer, folder: Path, name: str, dims: list[int], advice: str) -> Path:
    """Save the model, with its card and its dimensions, as ``<folder>/<name>``, atomically.

    Raises:
        RunError: The model could not be written; the message ends with ``advice``.
    """
    with folder_atomically(folder / name, advice) as partial:
        save_servable(model, partial, dims)
    return folder / name
