"""Extends the trainer of sentence-transformers with what a Matryoshka run needs."""

from __future__ import annotations

import ctypes
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import rotate_checkpoints

from common.adapters import adapter_of, load_weights
from common.errors import RunError, one_line, writing
from common.keys import suggest
from evaluation.utils.dev_evaluator import PRIMARY_METRIC, MatryoshkaEvaluator
from training.utils.callbacks import (
    DevReport,
    EarlyStopping,
    FewSteps,
    FiniteCheck,
    LossReport,
    Progress,
    ResumedState,
    StopOnSignal,
)
from training.utils.checkpoints import (
    complete_checkpoints,
    describe_last_checkpoint,
    resume_command,
    seal,
    why_unusable,
)
from training.utils.losses import loss_parameters
from training.utils.processes import mean_over_processes, wait_for_all_processes
from training.utils.sampling import PROPORTIONAL, Collator, GlobalBatchSampler, MixtureBatchSampler
from training.utils.training_arguments import refusing

logger = logging.getLogger(__name__)

LOSS_STATE = "loss.safetensors"
LOG_STATE = "log_state.json"

# Private methods of the libraries that this class overrides, as of transformers 5.24.0 and sentence-transformers 6.2.0. A test
# fails if a later version removes one of them or changes how it is called.
#   _run_epoch        no event lets a callback skip an epoch without remaining steps
#   _get_grad_norm    callbacks do not get the norm, and a clipped gradient does not show that it was infinite
#   _save_checkpoint  removes older checkpoints before the event at which a callback could seal the new one
#   _load_best_model  logs a failure and continues with the last weights
#   _load_from_checkpoint  loads adapters through transformers, which needs a version of peft that is not published
# Called or read but not overridden: _tr_loss, _globalstep_last_logged.
PRIVATE_OVERRIDES = {
    "_run_epoch": {"epoch"},
    "_get_grad_norm": {"model", "grad_norm"},
    "_save_checkpoint": {"model", "trial"},
    "_load_best_model": set(),
    "_load_from_checkpoint": {"checkpoint_path"},
}


class MatryoshkaTrainer(SentenceTransformerTrainer):
    """Trains a Matryoshka model. In addition to what the library's trainer does, it

    - keeps the parameters of the losses (classification heads), and the loss since the last report, in every checkpoint;
    - seals a checkpoint when it is complete, and only then removes an older one;
    - draws the rows of a step, over all processes, from one data set, without false negatives, and draws every row of a data set
      once before repeating any (see :class:`GlobalBatchSampler` and :class:`MixtureBatchSampler`);
    - ends with an error if the best checkpoint cannot be loaded, where the library would continue with the last weights.

    The callbacks are in :mod:`training.utils.callbacks`.

    Args:
        mixing: How the data sets of a mixture are drawn: see ``turns`` of :class:`MixtureBatchSampler`.
        early_stopping_patience: End training when the dev score has not improved for this many evaluations in a row.
        *args, **kwargs: The arguments of ``SentenceTransformerTrainer``.

    Attributes:
        resumed_from: The checkpoint that the run was resumed from, or None.
        resumed_at_step: The step of that checkpoint.
        grad_norm: The norm of the model's gradients before clipping, at the latest optimizer step.
    """

    data_collator_class = Collator

    def __init__(
        self,
        *args: Any,
        mixing: str | list[float] = PROPORTIONAL,
        early_stopping_patience: int | None = None,
        **kwargs: Any,
    ):
        self.mixing = mixing
        self.resumed_from: Path | None = None
        self.resumed_at_step: int | None = None
        self.grad_norm: torch.Tensor | float = 0.0
        with refusing("training_arguments"):
            super().__init__(*args, **kwargs)
            self._check_metric()
            self._check_router_mapping()
        self.loss_report, self.finite_check, self.stop_on_signal = LossReport(), FiniteCheck(self), StopOnSignal()
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress)
        self.add_callback(FewSteps)
        self.add_callback(ResumedState(self))
        self.add_callback(self.loss_report)
        self.add_callback(DevReport(self.evaluator))
        self.early_stopping = None if early_stopping_patience is None else EarlyStopping(early_stopping_patience)
        if self.early_stopping is not None:
            self.add_callback(self.early_stopping)
        self.add_callback(self.stop_on_signal)
        self.add_callback(self.finite_check)  # last, because it must know whether the step ends with a checkpoint

    def _check_metric(self) -> None:
        """Raise :class:`ValueError` if the metric for the best checkpoint is not one of the evaluator's."""
        metric = (self.args.metric_for_best_model or PRIMARY_METRIC).removeprefix("eval_")
        if isinstance(self.evaluator, MatryoshkaEvaluator) and metric not in self.evaluator.metrics:
            raise ValueError(f"'metric_for_best_model' is {metric!r}; choose from {', '.join(self.evaluator.metrics)}")

    def _check_router_mapping(self) -> None:
        """Raise :class:`ValueError` if ``router_mapping`` names an unknown data set or column, which the library would ignore."""
        datasets = self.train_dataset if isinstance(self.train_dataset, dict) else {"": self.train_dataset}
        columns = {column for rows in datasets.values() for column in rows.column_names}
        for name, value in self.args.router_mapping.items():
            if isinstance(value, dict) and name not in datasets:
                raise ValueError(f"'router_mapping' names an unknown data set {name!r}{suggest(name, datasets)}")
            for column in value if isinstance(value, dict) else [name]:
                if column not in columns:
                    raise ValueError(
                        f"'router_mapping' names an unknown column {column!r} (the columns are {', '.join(sorted(columns))}){suggest(column, columns)}"
                    )

    def get_batch_sampler(self, dataset, batch_size, drop_last, **kwargs):
        names = self.train_dataset.items() if isinstance(self.train_dataset, dict) else ()
        name = next((name for name, rows in names if rows is dataset), None)
        self._sampler = GlobalBatchSampler(dataset, batch_size, self.args.world_size, drop_last, name=name, **kwargs)
        return self._sampler

    def get_multi_dataset_batch_sampler(self, dataset, batch_samplers, **kwargs):
        self._sampler = MixtureBatchSampler(dataset, batch_samplers=batch_samplers, turns=self.mixing, **kwargs)
        return self._sampler

    # The loop

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any):
        self.resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        with self.stop_on_signal.listening():
            return super().train(None if self.resumed_from is None else str(self.resumed_from), **kwargs)

    def _run_epoch(self, **kwargs: Any) -> None:
        ended_early = self.early_stopping is not None and self.early_stopping.is_due(self.args, self.state)
        if ended_early or self.state.global_step >= self.state.max_steps:  # the checkpoint is from the end of training
            self.control.should_training_stop = True
            return
        # with several processes, accelerate does not pass the epoch to the sampler when it skips batches of a resumed epoch
        self._sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def get_optimizer_cls_and_kwargs(self, *args: Any, **kwargs: Any):
        """Number the losses while the library lists their parameters as those of one module.

        Attributes of a module, such as "train", "eval" and "type", cannot be names of its parts, and a name such as "unbiased" would
        exempt all parameters from weight decay, as those of a bias are.
        """
        losses = self.loss
        try:
            if isinstance(losses, dict):
                self.loss = {str(place): loss for place, loss in enumerate(losses.values())}
            return super().get_optimizer_cls_and_kwargs(*args, **kwargs)
        finally:
            self.loss = losses

    def training_step(self, *args: Any, **kwargs: Any):
        loss = super().training_step(*args, **kwargs)
        if self.args.world_size > 1 and self.accelerator.sync_gradients:
            # DDP averages the model's gradients over the processes; those of the losses' parameters are averaged here
            for parameter in loss_parameters(self.loss, self.model).values():
                if parameter.grad is not None:
                    mean_over_processes(parameter.grad)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        name = inputs.get("dataset_name")  # before the library removes it from the inputs
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training:
            loss = self.loss[name] if isinstance(self.loss, dict) else self.loss
            self.loss_report.add(name, getattr(loss, "components", {}))
            self.finite_check.add(result[0] if return_outputs else result, name, inputs)
        return result

    def _get_grad_norm(self, model, grad_norm=None):
        self.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.loss_report.take_means() if "loss" in logs else logs, start_time)

    # Checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        first, limit = self.is_world_process_zero(), self.args.save_total_limit
        if first:
            shutil.rmtree(folder, ignore_errors=True)  # left by an earlier attempt
        wait_for_all_processes()
        self.args.save_total_limit = None  # remove nothing before this checkpoint is complete
        try:
            with writing(folder, self._after_full_disk()):
                super()._save_checkpoint(model, trial)
                if first:
                    self._save_loss_parameters(folder)
                self.loss_report.save(folder / LOG_STATE, self._tr_loss, self._globalstep_last_logged)
                wait_for_all_processes()
                if first:
                    seal(folder)
        except RunError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self.args.save_total_limit = limit
        if first:
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint, use_mtime=True)
        trim_heap()

    def _after_full_disk(self) -> str:
        folder = Path(self.args.output_dir)
        if not complete_checkpoints(folder):
            return "free some disk space and run the command again"
        return f"{describe_last_checkpoint(folder)}; free some disk space and resume with: {resume_command()}"

    def _save_loss_parameters(self, checkpoint: Path) -> None:
        parameters = loss_parameters(self.loss, self.model)
        if parameters:
            tensors = {name: value.detach().contiguous() for name, value in parameters.items()}
            save_file(tensors, checkpoint / LOSS_STATE)

    def load_loss_parameters(self, checkpoint: Path) -> None:
        """Load from a checkpoint the parameters of the losses that are not part of the model."""
        parameters = loss_parameters(self.loss, self.model)
        if parameters:
            saved = load_file(checkpoint / LOSS_STATE)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(saved[name])

    def load_loss_report(self, checkpoint: Path) -> None:
        """Restore from a checkpoint the sums of the losses since the last report."""
        loss, self._globalstep_last_logged = self.loss_report.load(checkpoint / LOG_STATE, self.args.device)
        self._tr_loss += loss
        self._total_loss_scalar -= loss  # from steps before those by which transformers divides the total loss

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        if adapter_of(self.model) is None:
            super()._load_from_checkpoint(checkpoint_path)
        else:
            load_weights(self.model, Path(checkpoint_path))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None:
            return
        logger.info("the best checkpoint is %s, with a dev mean of %.2f", Path(best).name, 100 * self.state.best_metric)
        self.model.model_card_data.set_best_model_step(int(best.rsplit("-", 1)[-1]))
        try:
            reason = why_unusable(Path(best))
            if reason is None:
                self._load_from_checkpoint(best)
                self.load_loss_parameters(Path(best))
        except Exception as error:
            reason = one_line(error, 160)
        if reason is not None:
            raise RunError(
                f"the best checkpoint, {best}, cannot be loaded ({reason}); the others are in {self.args.output_dir}"
            )


def trim_heap() -> None:
    """Return free memory to the system. glibc would otherwise keep it.

    Batches differ in size, so the gaps between tensors often do not fit the next one. Allocating the memory again costs a fifth
    of a step's time, so this is not called in every step.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
