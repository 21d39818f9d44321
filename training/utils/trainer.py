"""The trainer of sentence-transformers, with what a Matryoshka run needs beside."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback, ProgressCallback
from transformers.integrations import get_available_reporting_integrations

from common.config import check_value, suggest
from common.errors import RunError, UsageError, one_line
from evaluation.utils.sts_evaluator import MatryoshkaSTSEvaluator
from training.utils.losses import loss_parameters
from training.utils.options import TrainingConfig
from training.utils.sampling import PROPORTIONAL, GlobalBatchSampler, MixtureBatchSampler

logger = logging.getLogger(__name__)

LOSS_STATE = "loss.safetensors"
GPU_LOADERS = 2  # processes that tokenise the next batches while a GPU computes
# keys of ours that the trainer must not act on: it would upload checkpoints while it trains
LEFT_OUT = {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id"}


class Progress(ProgressCallback):
    """A progress bar, and a line of the log for each report, on standard error."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs is not None and "loss" in logs:
            parts: dict[str, float] = defaultdict(float)
            for key, value in logs.items():
                if key.startswith("loss_"):
                    name, _, dim = key.removeprefix("loss_").rpartition("_")
                    parts[name or dim] += value  # a data set's in sum over the dimensions: the trackers have them all
            shown = ", ".join(f"{name}: {value:.3f}" for name, value in parts.items())
            logger.info("step %d of %d, loss %.4f (%s)", state.global_step, state.max_steps, logs["loss"], shown)


class MatryoshkaTrainer(SentenceTransformerTrainer):
    """Trains, and

    - reports the loss at each dimension, and of each data set where there are several;
    - keeps the parameters of the losses (classification heads) in every checkpoint, and brings them back;
    - draws batches in which no text stands twice, over all processes, and each step from one data set (see ``turns`` of
      :class:`MixtureBatchSampler`);
    - stops with an error where the library goes on after one: a loss that is not finite, a best checkpoint that cannot be
      loaded.
    """

    def __init__(self, *args: Any, turns: str | list[float] = PROPORTIONAL, **kwargs: Any):
        self.turns = turns
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress)
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def get_batch_sampler(self, dataset, batch_size, drop_last, **kwargs):
        return GlobalBatchSampler(dataset, batch_size, self.args.world_size, drop_last, **kwargs)

    def get_multi_dataset_batch_sampler(self, dataset, batch_samplers, **kwargs):
        return MixtureBatchSampler(dataset, batch_samplers=batch_samplers, turns=self.turns, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any):
        loss = super().training_step(*args, **kwargs)
        if self.args.world_size > 1 and self.accelerator.sync_gradients:
            # the model's gradients are averaged over the processes by DDP, those of the losses' own parameters here
            for parameter in loss_parameters(self.loss, self.model).values():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.args.world_size
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        name = inputs.get("dataset_name")
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if self.model.training:
            wrapper = self.loss[name] if isinstance(self.loss, dict) else self.loss
            prefix = f"loss_{name}_" if name else "loss_"
            for dim, value in getattr(wrapper, "components", {}).items():
                key = f"{prefix}{dim}"
                self._sums[key] = self._sums.get(key, 0) + value
                self._counts[key] += 1
            if not torch.isfinite(loss.detach()):
                of = f" of {name}" if name else ""
                raise RunError(
                    f"the loss{of} at step {self.state.global_step + 1} is {loss.item()}: lower --learning_rate, or use --precision fp32"
                )
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self._loss_means()
            self._sums, self._counts = {}, defaultdict(int)
        super().log(logs, start_time)

    def _loss_means(self) -> dict[str, float]:
        """The mean of each loss since the last report, over all processes."""
        names = list(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        if self.args.world_size > 1:  # the processes share each step's data set, so they have the same names
            torch.distributed.all_reduce(means)
            means /= self.args.world_size
        return {name: round(value, 4) for name, value in zip(names, means.tolist(), strict=True)}

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        output = super().evaluation_loop(*args, **kwargs)
        if isinstance(self.evaluator, MatryoshkaSTSEvaluator) and self.is_world_process_zero():
            self.evaluator.log(output.metrics, prefix=f"{kwargs.get('metric_key_prefix', 'eval')}_")
        return output

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        parameters = {
            name: value.detach().contiguous() for name, value in loss_parameters(self.loss, self.model).items()
        }
        if parameters:
            save_file(parameters, os.path.join(output_dir or self.args.output_dir, LOSS_STATE))

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        parameters = loss_parameters(self.loss, self.model)
        if parameters:
            saved = load_file(os.path.join(checkpoint_path, LOSS_STATE))
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(saved[name])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None:
            return
        logger.info("the best checkpoint is %s, with a dev mean of %.2f", Path(best).name, 100 * self.state.best_metric)
        self.model.model_card_data.set_best_model_step(int(best.rsplit("-", 1)[-1]))
        try:
            self._load_from_checkpoint(best)
        except Exception as error:
            raise RunError(
                f"the best checkpoint, {best}, cannot be loaded ({one_line(error, 160)}); the others are in {self.args.output_dir}"
            ) from None


def make_training_arguments(
    config: TrainingConfig, folder: Path, precision: torch.dtype, metric: str | None, **extra: Any
) -> SentenceTransformerTrainingArguments:
    """The training arguments of a configuration.

    Args:
        metric: The evaluator's metric that the best checkpoint is chosen on, or None where there is no dev set.

    Raises:
        UsageError: ``training_arguments`` has a key that is unknown, or has a place of its own.
    """
    known = {field.name: field.default for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    own = set(vars(config))
    for key, value in config.training_arguments.items():
        if key not in known:
            raise UsageError(f"training_arguments: unknown key {key!r}{suggest(key, known)}")
        if key.endswith("_token"):
            raise UsageError(
                f"training_arguments: {key!r} would lie in every checkpoint: log in with `hf auth login`, or set HF_TOKEN"
            )
        if key in own:
            raise UsageError(f"training_arguments: {key!r} has a place of its own at the top of the file")
        if type(known[key]) in (bool, int, float):
            check_value(f"training_arguments: {key!r}", value, type(known[key]))
    trackers = get_available_reporting_integrations()
    if config.report_to not in ("none", "all", *trackers):
        raise UsageError(
            f"--report_to {config.report_to}: no such tracker is installed; there are none, all, {', '.join(trackers)}".rstrip(
                ", "
            )
        )
    same_name = {key: getattr(config, key) for key in (own & known.keys()) - LEFT_OUT}
    values = same_name | {
        "output_dir": str(folder),
        "per_device_eval_batch_size": config.per_device_train_batch_size,
        "logging_strategy": "steps",
        "save_strategy": "steps",
        "save_steps": config.eval_steps,
        "eval_strategy": "steps" if metric else "no",
        "eval_on_start": metric is not None and config.resume_from_checkpoint is None,
        "load_best_model_at_end": metric is not None,
        "metric_for_best_model": metric,
        "greater_is_better": True if metric else None,
        "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        "logging_nan_inf_filter": False,
        # a GPU would wait for the tokenizer; on a CPU the step takes a hundred times as long as the tokens of the next
        "dataloader_num_workers": GPU_LOADERS if torch.cuda.is_available() else 0,
        "dataloader_persistent_workers": torch.cuda.is_available(),
        "bf16": precision == torch.bfloat16,
        "fp16": precision == torch.float16,
        **extra,
    }
    try:
        return SentenceTransformerTrainingArguments(**(values | config.training_arguments))
    except (ValueError, TypeError) as error:
        raise UsageError(f"training arguments: {one_line(error)}") from None
