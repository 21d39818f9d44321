"""The end of a training run: final scores, the saved model with its card, and the upload."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.adapters import adapter_of, merge
from common.errors import RunError
from common.model_cards import with_scores
from common.records import RunRecord, folder_atomically, write_atomically
from evaluation.utils.dev_evaluator import PRIMARY_METRIC, MatryoshkaEvaluator
from training.utils.checkpoints import resume_command
from training.utils.licences import describe_licences, licences_of
from training.utils.options import TrainingConfig
from training.utils.run_folder import ADAPTER, FINAL, save_atomically, unlock_run_folder
from training.utils.serving import save_servable
from training.utils.upload import upload

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from training.utils.trainer import MatryoshkaTrainer

logger = logging.getLogger(__name__)


def finish(
    trainer: MatryoshkaTrainer,
    result: Any,
    record: RunRecord,
    config: TrainingConfig,
    dims: list[int],
    dev_sets: dict[str, dict[str, list[Any]]],
    test_sets: dict[str, dict[str, list[Any]]],
) -> None:
    """Score the final model on the dev and test sets, save it with its card and the record, and print its path.

    An adapter is saved next to the final model, and merged into it.
    """
    # our samplers yield as many batches as they announce, so this can happen only if a library drops some of them
    if trainer.state.global_step < trainer.state.max_steps and not trainer.control.should_training_stop:
        raise RunError(
            f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}, because the data loader "
            "yielded fewer batches than expected: if 'training_arguments' has data loading settings (dataloader_*, "
            "accelerator_config), remove them and start again with --overwrite_output_dir; otherwise, report this as a bug"
        )
    if not trainer.is_world_process_zero():
        return
    model: SentenceTransformer = trainer.model
    folder = Path(trainer.args.output_dir)
    advice = f"free some disk space and resume with `{resume_command()}`"
    if adapter_of(model) is not None:
        save_atomically(model, folder, ADAPTER, [], advice)
        merge(model)
    scores: dict[str, float] = {}
    by_set: dict[str, list[float]] = {}
    interval: tuple[float, float] | None = None
    licences = licences_of(entry["path"] for entry in record.values["datasets"].values())
    step = trainer.state.best_global_step or trainer.state.global_step
    for part, sets in (("dev", dev_sets), ("test", test_sets)):
        if sets:
            evaluator = MatryoshkaEvaluator(sets, dims)
            metrics = evaluator(model, epoch=trainer.state.epoch, steps=step)
            evaluator.log(metrics)
            by_set |= evaluator.by_set(metrics)
            mean = metrics.pop(evaluator.primary_metric)
            if part == "dev":
                interval = evaluator.estimate().interval()
                logger.info("dev mean × 100: %.2f (95%% interval %.2f to %.2f)", *(100 * x for x in (mean, *interval)))
            scores |= metrics | {f"{part}_{evaluator.primary_metric}": mean}
    history = [entry for entry in trainer.state.log_history if f"eval_{PRIMARY_METRIC}" in entry]
    record.write(  # before the final model, whose existence marks the run as complete
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
    final = folder / FINAL
    with folder_atomically(final, advice) as partial:
        save_servable(model, partial, dims)
        add_to_card(partial, dims, by_set, licences)
    record.finish()
    unlock_run_folder()
    if config.push_to_hub:
        logger.info("uploaded: %s", upload(final, config.hub_model_id or folder.name, config.hub_private_repo))
    print(final)


def add_to_card(folder: Path, dims: list[int], scores: dict[str, list[float]], licences: dict[str, str]) -> None:
    """Add the scores of each set by dimension, and the licences of the training data, to the card of a saved model."""
    card = folder / "README.md"
    text = with_scores(card.read_text(encoding="utf-8") if card.exists() else "", dims, scores)
    write_atomically(card, text.rstrip("\n") + "\n\n" + describe_licences(licences))
