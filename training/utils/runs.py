"""The beginning and the end of a training run, which both scripts share: its record, its last scores, its final model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import as_dict
from common.data_files import dataset_revision
from common.errors import RunError, UsageError, one_line
from common.models import identify
from common.records import RunRecord, read_record
from evaluation.utils.dev_evaluator import PRIMARY_METRIC, MatryoshkaEvaluator
from training.utils.checkpoints import is_latest, resume_command
from training.utils.dev_data import dev_estimate
from training.utils.licences import add_licences, licences_of
from training.utils.model_utils import (
    FINAL,
    UNTRAINED,
    check_unchanged,
    remove_earlier_run,
    remove_leftovers,
    save_whole,
)
from training.utils.options import LOSSES, STATIC, DatasetEntry, TrainingConfig
from training.utils.processes import get_world_size, is_first_process

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from training.utils.trainer import MatryoshkaTrainer

logger = logging.getLogger(__name__)

# what of a record the weights depend on
LEARNT_FROM = ("matryoshka_dims", "datasets", "dev_and_test_rows", "processes")


def texts_of(*datasets: Dataset) -> Iterator[str]:
    """Every text of some data sets, a column at a time."""
    for dataset in datasets:
        for column in dataset.column_names:
            if dataset.features[column].dtype in ("string", "large_string"):
                yield from dataset[column]


def pairs_of(*datasets: Dataset) -> Iterator[tuple[str, str]]:
    """Every pair of sentences that mean the same, of some data sets: anchors and positives, sentences and translations."""
    for dataset in datasets:
        for first, second in (("anchor", "positive"), ("sentence", "translation")):
            if {first, second} <= set(dataset.column_names):
                yield from zip(dataset[first], dataset[second], strict=True)


def fit_weights(config: TrainingConfig, dims: list[int]) -> list[float] | None:
    """The weights of ``dims``, given for ``matryoshka_dims`` in their order; a full width that was added weighs 1.

    Raises:
        UsageError: There is to be self-distillation, and no dimension below the full width to teach.
    """
    if config.self_distillation_weight and len(dims) == 1:
        raise UsageError(
            f"--self_distillation_weight needs a smaller dimension to teach: of --matryoshka_dims there is only the full width, {dims[0]}"
        )
    if config.matryoshka_weights is None:
        return None
    given = dict(zip(config.matryoshka_dims, config.matryoshka_weights, strict=True))
    return [given.get(dim, 1.0) for dim in dims]


def start_record(
    folder: Path,
    config: TrainingConfig,
    model: SentenceTransformer,
    dims: list[int],
    datasets: dict[str, tuple[DatasetEntry, Dataset]],
    held_out: dict[str, dict[str, list[Any]]],
    leaks: dict[str, Any],
) -> RunRecord:
    """Write ``run.json`` with what is known before training; a static model is also saved untrained, as its own baseline."""
    resumed = config.resume_from_checkpoint is not None
    record = RunRecord(
        folder / "run.json",
        as_dict(config),
        seed=config.seed,
        matryoshka_dims=dims,
        base_model={"name": config.model_name, "revision": getattr(model.model_card_data, "base_model_revision", None)},
        datasets={
            name: {
                "path": entry.path,
                "revision": dataset_revision(entry.path, dataset),
                "rows": len(dataset),
                "columns": dataset.column_names,
                **{
                    role: {"name": other, "revision": identify(other).revision}
                    for role in ("guide", "teacher")
                    if role in LOSSES[entry.loss].keys and (other := getattr(entry, role) or config.model_name)
                },
            }
            for name, (entry, dataset) in datasets.items()
        },
        dev_and_test_rows={name: len(next(iter(rows.values()))) for name, rows in held_out.items()},
        leaks=leaks,
        processes=get_world_size(),
    )
    if resumed:
        check_same_data(config, folder, record)
    if not is_first_process():
        return record
    remove_leftovers(folder)
    if config.overwrite_output_dir and not resumed:
        remove_earlier_run(folder)
    if config.model_name == STATIC and not (resumed and (folder / UNTRAINED).exists()):
        save_whole(model, folder, UNTRAINED, "make room, and run the command again")
    record.write()
    return record


def check_same_data(config: TrainingConfig, folder: Path, record: RunRecord) -> None:
    """Make sure that a resumed run goes on with the data, dimensions and processes that it began with.

    Raises:
        RunError: One of these differs.
    """
    wanted = config.resume_from_checkpoint
    path = (folder if is_latest(wanted) else Path(wanted).parent) / "run.json"
    before = read_record(path) or {}
    known = [key for key in LEARNT_FROM if key in before]
    check_unchanged(path, {key: before[key] for key in known}, {key: record.values[key] for key in known})


def finish(
    trainer: MatryoshkaTrainer,
    result: Any,
    record: RunRecord,
    config: TrainingConfig,
    dims: list[int],
    dev_sets: dict[str, dict[str, list[Any]]],
    test_sets: dict[str, dict[str, list[Any]]],
) -> None:
    """Score the final model on the dev and test sets, save it with its card and the record, and print its path."""
    if trainer.state.global_step < trainer.state.max_steps and not trainer.control.should_training_stop:
        raise RunError(
            f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}: the data ran out of batches"
        )
    if not trainer.is_world_process_zero():
        return
    model: SentenceTransformer = trainer.model
    folder = Path(trainer.args.output_dir)
    scores: dict[str, float] = {}
    interval = None
    step = trainer.state.best_global_step or trainer.state.global_step
    for sets in (dev_sets, test_sets):
        if sets:
            evaluator = MatryoshkaEvaluator(sets, dims)
            found = evaluator(model, epoch=trainer.state.epoch, steps=step)
            evaluator.log(found)
            scores |= {key: value for key, value in found.items() if key != evaluator.primary_metric}
            scores[f"{'dev' if sets is dev_sets else 'test'}_{evaluator.primary_metric}"] = found[
                evaluator.primary_metric
            ]
        if sets and sets is dev_sets:
            interval = dev_estimate(evaluator.embeddings, dev_sets, dims).interval()
            logger.info("the dev mean's 95%% interval × 100: %.2f to %.2f", *(100 * bound for bound in interval))
    licences = licences_of(entry["path"] for entry in record.values["datasets"].values())
    history = [entry for entry in trainer.state.log_history if f"eval_{PRIMARY_METRIC}" in entry]
    record.write(  # before the final model, which shows that all is there
        steps=trainer.state.global_step,
        best_step=step,
        resumed_at_step=trainer.resumed_at_step,
        train_runtime_s=result.metrics.get("train_runtime"),
        train_samples_per_second=result.metrics.get("train_samples_per_second"),
        train_loss=result.metrics.get("train_loss"),
        scores=scores,
        dev_interval=interval,
        licences=licences,
        dev_history=[{"step": entry["step"], PRIMARY_METRIC: entry[f"eval_{PRIMARY_METRIC}"]} for entry in history],
        final_model=FINAL,
    )
    final = save_whole(model, folder, FINAL, f"make room and go on with `{resume_command()}`")
    add_licences(final, licences)
    record.finish()
    if config.push_to_hub:
        try:
            url = model.push_to_hub(config.hub_model_id or folder.name, exist_ok=True)
            logger.info("uploaded to %s", url)
        except Exception as error:
            raise RunError(
                f"the model is trained and saved as {final}, but the upload failed: {one_line(error)}"
            ) from None
    print(final)
