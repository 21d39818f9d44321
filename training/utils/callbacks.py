"""Trainer callbacks: report losses and scores, check that numbers are finite, and stop on a signal."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from common.errors import EXIT_FAILURE, EXIT_SIGNAL, RunError, Stopped, cut, end_at_once_next_time, on_signal
from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
from training.utils.checkpoints import describe_last_checkpoint, resume_command, why_unusable
from training.utils.losses import loss_parameters
from training.utils.processes import gather_objects, is_first_process, largest_over_processes, mean_over_processes

if TYPE_CHECKING:
    from training.utils.trainer import MatryoshkaTrainer

logger = logging.getLogger(__name__)

FEW_STEPS = 10


class Progress(ProgressCallback):
    """A progress bar on standard error. The reports go to the log."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class FewSteps(TrainerCallback):
    """Warns if a run has so few steps that it can hardly change the model."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.max_steps < FEW_STEPS and state.is_world_process_zero:
            more = "a smaller --per_device_train_batch_size or a larger --num_train_epochs"
            logger.warning(
                "the run has only %d step%s (learning rate still rising from 0: %d): use %s",
                state.max_steps,
                "s" * (state.max_steps != 1),
                min(args.get_warmup_steps(state.max_steps), state.max_steps),
                more if args.max_steps <= 0 else "a larger --max_steps",
            )


class LossReport(TrainerCallback):
    """Reports the mean loss since the last report, at each dimension and for each data set of a mixture."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, dataset_name: str | None, components: dict[int | str, torch.Tensor]) -> None:
        """Add the losses of a batch."""
        prefix = f"loss_{dataset_name}_" if dataset_name else "loss_"
        for dim, value in components.items():
            key = f"{prefix}{dim}"
            self._sums[key] = self._sums.get(key, 0) + value
            self._counts[key] += 1

    def take_means(self) -> dict[str, float]:
        """Return the mean of each loss since the last call, over all processes."""
        names = list(self._sums)  # all processes use the same data set in a step, so they have the same names
        if not names:
            return {}
        means = mean_over_processes(torch.stack([self._sums[name] / self._counts[name] for name in names]))
        self._reset()
        return {name: round(value, 4) for name, value in zip(names, means.tolist(), strict=True)}

    def save(self, path: Path, total_loss: torch.Tensor, since_step: int) -> None:
        """Write the sums since the last report, so that a resumed run reports the same means.

        Args:
            total_loss: The sum of the losses since ``since_step``, the step of the last report.
        """
        names = list(self._sums)
        sums = mean_over_processes(torch.stack([total_loss, *(self._sums[name].float() for name in names)]))
        total, *values = sums.tolist()
        losses = {name: [value, self._counts[name]] for name, value in zip(names, values, strict=True)}
        if is_first_process():
            state = {"since_step": since_step, "loss": total, "losses": losses}
            path.write_text(json.dumps(state), encoding="utf-8")

    def load(self, path: Path, device: torch.device) -> tuple[float, int]:
        """Read the sums that :meth:`save` wrote. Returns the total loss and the step at which its sum began."""
        state = json.loads(path.read_text(encoding="utf-8"))
        for name, (value, count) in state["losses"].items():
            self._sums[name] = torch.tensor(value, device=device)
            self._counts[name] = count
        return state["loss"], state["since_step"]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        parts: dict[str, float] = defaultdict(float)
        for key, value in logs.items():
            if key.startswith("loss_"):
                name, _, dim = key.removeprefix("loss_").rpartition("_")
                # for a mixture, each data set's sum over the dimensions; the trackers get all values
                parts[name or dim] += value
        listed = ", ".join(f"{name}: {value:.3f}" for name, value in parts.items())
        logger.info("step %d of %d, loss %.4f (%s)", state.global_step, state.max_steps, logs["loss"], listed)


class DevReport(TrainerCallback):
    """Reports the scores of the dev sets after each evaluation."""

    def __init__(self, evaluator: Any):
        self.evaluator = evaluator

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics=None, **_: Any
    ) -> None:
        if isinstance(self.evaluator, MatryoshkaEvaluator) and state.is_world_process_zero:
            self.evaluator.log(metrics, prefix="eval_")


class EarlyStopping(TrainerCallback):
    """Ends training when the dev score has not risen for ``patience`` evaluations in a row.

    The library's callback keeps a counter that a resumed run does not restore by default. This one reads the history, which is
    always restored, so that a resumed run ends at the same step as an uninterrupted one.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def is_due(self, args: TrainingArguments, state: TrainerState) -> bool:
        metric = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        scores = [entry[metric] for entry in state.log_history if metric in entry]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.is_due(args, state):
            control.should_training_stop = True
            if state.is_world_process_zero:
                logger.info("the dev score has not improved for %d evaluations: ending training", self.patience)


class ResumedState(TrainerCallback):
    """Restores what the library does not restore from a checkpoint."""

    def __init__(self, trainer: MatryoshkaTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = self.trainer.resumed_from
        if checkpoint is None:
            return
        self.trainer.resumed_at_step = state.global_step
        state.compute_steps(args, state.max_steps)  # logging_steps may have changed
        self._find_best(state, checkpoint.parent)
        self.trainer.load_loss_parameters(checkpoint)
        # otherwise the run ended after its last step and has nothing more to report
        if state.global_step < state.max_steps:
            self.trainer.load_loss_report(checkpoint)

    def _find_best(self, state: TrainerState, folder: Path) -> None:
        """Find the best checkpoint so far in the output directory. If it is no longer intact, only later ones compete."""
        if state.best_global_step is None:
            return
        best = folder / f"checkpoint-{state.best_global_step}"
        if reason := why_unusable(best):
            logger.warning("the best checkpoint so far, %s, is no longer intact: %s", best, reason)
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        else:
            state.best_model_checkpoint = str(best)


@dataclass
class PendingStep:
    """What :class:`FiniteCheck` remembers of a step.

    Attributes:
        step: The number of the step.
        batches: For each of its batches: the loss, the data set's name, the inputs.
        norm: The norm of the model's gradients, without those of classification heads.
        finite: Whether all losses and gradients are finite, a tensor in CPU memory.
        known: On a GPU, the event after which ``finite`` has its value.
    """

    step: int
    batches: list[tuple[torch.Tensor, str | None, dict[str, Any]]]
    norm: torch.Tensor | float
    finite: torch.Tensor
    known: torch.cuda.Event | None


class FiniteCheck(TrainerCallback):
    """Ends the run, in all processes, if a loss or a gradient is not finite.

    On a CPU it does so before the optimizer step. Waiting for the GPU in each step would leave the GPU idle. On a GPU, a step is
    therefore checked later, when the weights have already been updated: before the next optimizer step, or before a log line, an
    evaluation or a checkpoint, whichever comes first.
    """

    def __init__(self, trainer: MatryoshkaTrainer):
        self.trainer = trainer
        self._batches: list[tuple[torch.Tensor, str | None, dict[str, Any]]] = []  # of the current step
        self._pending: PendingStep | None = None

    @property
    def deferred(self) -> bool:
        """Whether a step is checked after its optimizer step."""
        return self.trainer.args.device.type == "cuda"

    def add(self, loss: torch.Tensor, dataset_name: str | None, inputs: dict[str, Any]) -> None:
        """Remember a batch of the current step."""
        self._batches.append((loss.detach(), dataset_name, inputs))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        norm = self.trainer.grad_norm
        numbers = [loss for loss, *_ in self._batches]
        # with fp16, infinite gradients are normal: the scaler occasionally tries too large a scale
        if getattr(self.trainer.accelerator, "scaler", None) is None:
            # the norm does not include the gradients of the heads
            heads = loss_parameters(self.trainer.loss, self.trainer.model).values()
            numbers += [
                torch.as_tensor(norm, device=args.device),
                *(p.grad.norm() for p in heads if p.grad is not None),
            ]
        self._check()  # the step before
        finite, known = torch.stack([number.float() for number in numbers]).isfinite().all(), None
        if finite.is_cuda:  # copy the answer without waiting for it
            finite = torch.empty(finite.shape, dtype=finite.dtype, pin_memory=True).copy_(finite, non_blocking=True)
            known = torch.cuda.Event()
            known.record()
        self._pending = PendingStep(state.global_step + 1, self._batches, norm, finite, known)
        self._batches = []
        if not self.deferred:
            self._check()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._check()

    def _check(self) -> None:
        """End the run if the pending step has numbers that are not finite."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        if step.known is not None:
            step.known.synchronize()
        if largest_over_processes(not step.finite):
            self._fail(step)

    def _fail(self, step: PendingStep) -> None:
        """End the run with the message of the first process whose loss is not finite, or else of process 0."""
        wrong = [batch for batch in step.batches if not batch[0].isfinite()]
        loss, name, inputs = (wrong or step.batches)[0]
        of = f" of {name}" if name else ""
        several = not wrong and len(step.batches) > 1
        if wrong:
            number = f"the loss{of} at step {step.step} is {loss.item()}"
        elif not math.isfinite(float(step.norm)):
            number = f"the gradient{of} at step {step.step} is {step.norm:g}"
        else:
            number = f"the gradient of a classification head{of} at step {step.step} is not finite"
        where = f"in {len(step.batches)} batches, the first of which" if several else "in a batch that"
        message = f"{number}, {where} begins with {' | '.join(self._first_texts(inputs))}"
        _, message = max(gather_objects((bool(wrong), message)), key=lambda entry: entry[0])
        if not is_first_process():
            sys.exit(EXIT_FAILURE)
        checkpoint = describe_last_checkpoint(Path(self.trainer.args.output_dir))
        raise RunError(f"{message}: lower --learning_rate, or use --precision fp32; {checkpoint}")

    def _first_texts(self, inputs: dict[str, Any]) -> list[str]:
        """Return the first text of each column of a batch, decoded by the tokenizer."""
        texts = []
        for key, ids in inputs.items():
            if key.endswith("input_ids"):
                # static embeddings: the texts are concatenated
                offsets = inputs.get(key.removesuffix("input_ids") + "offsets")
                first = ids[0] if offsets is None else ids[: offsets[1]] if len(offsets) > 1 else ids
                decoded = self.trainer.model.tokenizer.decode(first.tolist(), skip_special_tokens=True)
                texts.append(repr(cut(" ".join(decoded.split()), 60)))
        return texts


class StopOnSignal(TrainerCallback):
    """On SIGINT or SIGTERM, saves a checkpoint after the current step, in all processes, and raises :class:`Stopped`."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._received = 0  # the signal that this process received
        self._agreed = 0  # the signal that any process received: the run ends after this step
        self._state: TrainerState | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in this way within the context."""
        with on_signal(self._receive):
            yield
            self._agree()  # for a signal that arrived after the last step
            self._end_if_agreed()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._received and os.getpid() == self._process:  # the data loader's processes inherit this handler
            logger.info("%s: saving a checkpoint after this step, then stopping", signal.Signals(number).name)
        self._received = number
        # torchrun forwards a Ctrl-C that the processes have already received
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            end_at_once_next_time()

    def _agree(self) -> None:
        self._agreed = int(largest_over_processes(self._received))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._state = state

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._agree()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._agreed:
            control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        self._end_if_agreed()

    def _end_if_agreed(self) -> None:
        if not self._agreed:
            return
        if not is_first_process():
            sys.exit(EXIT_SIGNAL + self._agreed)
        name, state = signal.Signals(self._agreed).name, self._state
        progress = f"stopped after step {state.global_step} of {state.max_steps}"
        raise Stopped(self._agreed, f"{name}: {progress}; resume with: {resume_command()}")
