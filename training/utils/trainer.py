"""The trainer of sentence-transformers, with what a Matryoshka run needs beside."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback, ProgressCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import rotate_checkpoints

from common.config import check_value, keys_of, suggest
from common.errors import (
    EXIT_FAILURE,
    EXIT_SIGNAL,
    RunError,
    Stopped,
    UsageError,
    end_at_once_next_time,
    on_signal,
    one_line,
    writing,
)
from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
from training.utils.checkpoints import checkpoints, damage, resume_command, seal
from training.utils.losses import loss_parameters
from training.utils.options import TrainingConfig
from training.utils.sampling import PROPORTIONAL, GlobalBatchSampler, MixtureBatchSampler

logger = logging.getLogger(__name__)

LOSS_STATE = "loss.safetensors"
LOG_STATE = "log_state.json"
GPU_LOADERS = 2  # processes that tokenise the next batches while a GPU computes
# keys of ours that the trainer must not act on: it would upload checkpoints while it trains
LEFT_OUT = {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id"}
# arguments of the library that have no effect here, and what has
WITHOUT_EFFECT = {
    "bf16": "give --precision",
    "fp16": "give --precision",
    "batch_sampler": "no batch ever holds a text twice",
}


class Progress(ProgressCallback):
    """A progress bar on standard error; the reports are lines of the log."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class MatryoshkaTrainer(SentenceTransformerTrainer):
    """Trains, and

    - reports the loss at each dimension, and of each data set where there are several;
    - keeps the parameters of the losses (classification heads), and the loss since the last report, in every checkpoint,
      and brings them back;
    - seals a checkpoint when it is complete, and only then removes an older one;
    - at SIGINT or SIGTERM saves a checkpoint after the step, in all processes alike, and raises :class:`Stopped`;
    - draws batches in which no text stands twice, over all processes, and each step from one data set (see ``turns`` of
      :class:`MixtureBatchSampler`);
    - stops with an error where the library goes on after one: a loss or gradient that is not finite, a best checkpoint
      that cannot be loaded.
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
        self._batches: list[
            tuple[torch.Tensor, str | None, dict[str, Any]]
        ] = []  # of this step: loss, data set, inputs
        self._process = os.getpid()
        self._signal = 0  # that came, in this process
        self._stop = 0  # that came, in any process: the run ends after this step
        self.resumed_at_step: int | None = None

    def get_batch_sampler(self, dataset, batch_size, drop_last, **kwargs):
        self._sampler = GlobalBatchSampler(dataset, batch_size, self.args.world_size, drop_last, **kwargs)
        return self._sampler

    def get_multi_dataset_batch_sampler(self, dataset, batch_samplers, **kwargs):
        self._sampler = MixtureBatchSampler(dataset, batch_samplers=batch_samplers, turns=self.turns, **kwargs)
        return self._sampler

    # The loop

    def train(self, *args: Any, **kwargs: Any):
        with on_signal(self._note_signal):
            result = super().train(*args, **kwargs)
            [stop] = self._over_processes(self._signal)  # that came behind the last step
            self._stop = int(stop)
            self._end_if_stopped()
            return result

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._signal and os.getpid() == self._process:  # the data loader's processes inherit this
            logger.info("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)
        self._signal = number
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun passes on a Ctrl-C that the processes have had already
            end_at_once_next_time()

    def _init_training_state(self, *args: Any):
        found = super()._init_training_state(*args)
        max_steps, *_, checkpoint, _ = args
        if checkpoint is not None:
            self.resumed_at_step = self.state.global_step
            self.state.compute_steps(self.args, max_steps)  # these may differ from before
            self._find_best(Path(checkpoint).parent)
        return found

    def _find_best(self, folder: Path) -> None:
        """The best checkpoint so far, where the run's folder lies now; without it the best is chosen from here on."""
        if self.state.best_global_step is None:
            return
        best = folder / f"checkpoint-{self.state.best_global_step}"
        if reason := damage(best):
            logger.warning("the best checkpoint so far, %s, is left out of the choice: %s", best, reason)
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        else:
            self.state.best_model_checkpoint = str(best)

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # the run died after its last step
            self.control.should_training_stop = True
            return
        # accelerate does not reach the sampler of several processes when it skips the batches of a resumed epoch
        self._sampler.set_epoch(kwargs["epoch"])
        if kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._load_log_state(Path(kwargs["resume_from_checkpoint"]))
        super()._run_epoch(**kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._stop:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        if self._stop:
            if not self.is_world_process_zero():
                sys.exit(EXIT_SIGNAL + self._stop)
            step, steps = self.state.global_step, self.state.max_steps
            name = signal.Signals(self._stop).name
            raise Stopped(self._stop, f"{name}: stopped after step {step} of {steps}; go on with: {resume_command()}")

    @cached_property
    def _cpu_group(self) -> torch.distributed.ProcessGroup:
        return torch.distributed.new_group(backend="gloo")  # what the processes agree on never waits for a GPU

    def _over_processes(self, *numbers: float) -> list[float]:
        """The largest of each number over the processes."""
        if self.args.world_size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._cpu_group)
        return found.tolist()

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
            self._batches.append((loss.detach(), name, inputs))
        return result

    # Numbers that are not finite

    def _get_grad_norm(self, model, grad_norm=None):
        """Before each optimizer step: the gradient's norm, if it is finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        numbers = [loss for loss, *_ in self._batches]
        if getattr(self.accelerator, "scaler", None) is None:  # the scaler of fp16 tries too large a scale now and then
            heads = [p.grad.norm() for p in loss_parameters(self.loss, self.model).values() if p.grad is not None]
            numbers += [torch.as_tensor(norm, device=self.args.device), *heads]
        finite = torch.stack([number.float() for number in numbers]).isfinite().all().item()
        failed, stop = self._over_processes(not finite, self._signal)
        if failed:
            self._fail(norm)
        self._batches.clear()
        self._stop = int(stop)
        return norm

    def _fail(self, norm: torch.Tensor | float) -> None:
        """End the run because of a loss or gradient that is not finite, in the words of the first process that has one."""
        step, wrong = self.state.global_step + 1, [entry for entry in self._batches if not entry[0].isfinite()]
        loss, name, inputs = (wrong or self._batches)[0]
        of = f" of {name}" if name else ""
        said = (
            f"the loss{of} at step {step} is {loss.item()}" if wrong else f"the gradient{of} at step {step} is {norm:g}"
        )
        where = (
            "in a batch that"
            if wrong or len(self._batches) == 1
            else f"in {len(self._batches)} batches, the first of which"
        )
        message = f"{said}, {where} begins with {' | '.join(self._first_texts(inputs))}"
        if self.args.world_size > 1:
            found: list[tuple[bool, str]] = [(False, "")] * self.args.world_size
            torch.distributed.all_gather_object(found, (bool(wrong), message), group=self._cpu_group)
            message = max(found, key=lambda entry: entry[0])[1]
            if not self.is_world_process_zero():
                sys.exit(EXIT_FAILURE)
        raise RunError(f"{message}: lower --learning_rate, or use --precision fp32; {self._last_checkpoint()}")

    def _good_checkpoints(self) -> list[Path]:
        return [path for path in checkpoints(Path(self.args.output_dir)) if damage(path, contents=False) is None]

    def _last_checkpoint(self) -> str:
        found = self._good_checkpoints()
        return f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"

    def _first_texts(self, inputs: dict[str, Any]) -> list[str]:
        """The first text of each column of a batch, as the tokenizer gives it back."""
        texts = []
        for key, ids in inputs.items():
            if key.endswith("input_ids"):
                offsets = inputs.get(key.removesuffix("input_ids") + "offsets")  # static embeddings: texts end to end
                first = ids[0] if offsets is None else ids[: offsets[1]] if len(offsets) > 1 else ids
                text = " ".join(self.model.tokenizer.decode(first.tolist(), skip_special_tokens=True).split())
                texts.append(repr(text if len(text) <= 60 else text[:59] + "…"))
        return texts

    # The log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self._loss_means()
            self._sums, self._counts = {}, defaultdict(int)
            if self.is_world_process_zero():
                self._report(logs)
        super().log(logs, start_time)

    def _report(self, logs: dict[str, float]) -> None:
        parts: dict[str, float] = defaultdict(float)
        for key, value in logs.items():
            if key.startswith("loss_"):
                name, _, dim = key.removeprefix("loss_").rpartition("_")
                parts[name or dim] += value  # a data set's in sum over the dimensions: the trackers have them all
        shown = ", ".join(f"{name}: {value:.3f}" for name, value in parts.items())
        step, steps = self.state.global_step, self.state.max_steps
        logger.info("step %d of %d, loss %.4f (%s)", step, steps, logs["loss"], shown)

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

    def _save_log_state(self, checkpoint: Path) -> None:
        """Keep the losses since the last report, in sum, so that a resumed run reports the same means."""
        names = list(self._sums)
        sums = torch.stack([self._tr_loss, *(self._sums[name].float() for name in names)])
        if self.args.world_size > 1:
            torch.distributed.all_reduce(sums)
            sums /= self.args.world_size
        total, *values = sums.tolist()
        state = {
            "since_step": self._globalstep_last_logged,
            "loss": total,
            "losses": {name: [value, self._counts[name]] for name, value in zip(names, values, strict=True)},
        }
        if self.is_world_process_zero():
            (checkpoint / LOG_STATE).write_text(json.dumps(state), encoding="utf-8")

    def _load_log_state(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / LOG_STATE).read_text(encoding="utf-8"))
        self._globalstep_last_logged = state["since_step"]
        self._tr_loss += state["loss"]
        for name, (value, count) in state["losses"].items():
            self._sums[name] = torch.tensor(value, device=self.args.device)
            self._counts[name] = count

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        output = super().evaluation_loop(*args, **kwargs)
        if isinstance(self.evaluator, MatryoshkaEvaluator) and self.is_world_process_zero():
            self.evaluator.log(output.metrics, prefix=f"{kwargs.get('metric_key_prefix', 'eval')}_")
        return output

    # Checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        first, limit = self.is_world_process_zero(), self.args.save_total_limit
        if first:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
        self._wait_for_all()
        self.args.save_total_limit = None  # nothing is removed before this one is whole
        try:
            with writing(folder, self._after_full_disk()):
                super()._save_checkpoint(model, trial)
                self._save_log_state(folder)
                self._wait_for_all()
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
        if not self._good_checkpoints():
            return "make room and run the command again"
        return f"{self._last_checkpoint()}, and whole; make room and go on with: {resume_command()}"

    def _wait_for_all(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

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
            reason = damage(Path(best))
            if reason is None:
                self._load_from_checkpoint(best)
        except Exception as error:
            reason = one_line(error, 160)
        if reason is not None:
            raise RunError(
                f"the best checkpoint, {best}, cannot be loaded ({reason}); the others are in {self.args.output_dir}"
            )


def trim_heap() -> None:
    """Give free memory back to the system, where the C library is glibc, which otherwise keeps it.

    Batches are of ever other sizes, and what is free between two tensors need not fit the next. Taking the memory anew costs
    a fifth of a step's time, so this is not for every step.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def make_training_arguments(
    config: TrainingConfig, folder: Path, precision: torch.dtype, metric: str | None, **extra: Any
) -> SentenceTransformerTrainingArguments:
    """The training arguments of a configuration.

    Args:
        metric: The evaluator's metric that the best checkpoint is chosen on, or None where there is no dev set.

    Raises:
        UsageError: ``training_arguments`` has a key that is unknown, has a place of its own, or has no effect.
    """
    known = {field.name: field.default for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    own = set(keys_of(type(config)))
    for key, value in config.training_arguments.items():
        if key not in known:
            raise UsageError(f"training_arguments: unknown key {key!r}{suggest(key, known)}")
        if key.endswith("_token"):
            raise UsageError(
                f"training_arguments: {key!r} would lie in every checkpoint: log in with `hf auth login`, or set HF_TOKEN"
            )
        if key in own:
            raise UsageError(f"training_arguments: {key!r} has a place of its own at the top of the file")
        if key in WITHOUT_EFFECT:
            raise UsageError(f"training_arguments: {key!r} has no effect here: {WITHOUT_EFFECT[key]}")
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
