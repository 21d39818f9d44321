"""Converts a configuration to the arguments of the library's trainer."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from common.errors import RunError, UsageError, one_line
from common.keys import check_value, keys_of, suggest
from evaluation.utils.dev_evaluator import PRIMARY_METRIC
from training.utils.options import TrainingConfig
from training.utils.processes import get_world_size

logger = logging.getLogger(__name__)

GPU_LOADERS = 8  # at most this many processes tokenise batches ahead of a GPU
# our own keys that are not copied to the trainer: with the Hub keys, it would upload checkpoints during training
NOT_FOR_TRAINER = {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo"}
# arguments of the library that have no effect here, and why
WITHOUT_EFFECT = {
    "bf16": "set --precision",
    "fp16": "set --precision",
    "batch_sampler": "every row of a data set is drawn once before any is repeated, and no batch has a known false negative",
}
# exceptions that the libraries raise for an invalid value, or for a missing package that a value needs
REFUSALS = (ValueError, TypeError, KeyError, ImportError, NotImplementedError, AssertionError, OSError)


def check_training_arguments(config: TrainingConfig, folder: Path) -> None:
    """Check the training arguments before any data is loaded, by creating an optimizer and a scheduler for a tiny model.

    The libraries check some of them only when training starts, after minutes of loading.

    Raises:
        UsageError: An argument is unknown, has an invalid value, or needs a package that is not installed.
    """
    metric = None if config.dev_data == ["none"] else PRIMARY_METRIC
    args = make_training_arguments(config, folder, torch.float32, metric)
    if args.eval_strategy != "no" and metric is None:
        raise UsageError(
            f"training_arguments: 'eval_strategy' is {args.eval_strategy.value}, but with --dev_data none there is nothing to "
            "evaluate on: remove it, or set --dev_data"
        )
    optimizer = None
    with refusing(f"training_arguments: 'optim' {args.optim.value}"):
        model = torch.nn.Linear(1, 1)
        make_optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if isinstance(make_optimizer, type) and not {"params", "model", "optimizer_dict"} & options.keys():
            optimizer = make_optimizer(
                model.parameters(), **options
            )  # other optimizers need the layers of the real model
    with refusing(
        f"training_arguments: 'lr_scheduler_type' {args.lr_scheduler_type.value} with its 'lr_scheduler_kwargs'"
    ):
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer or torch.optim.SGD(model.parameters()),
            num_warmup_steps=args.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn the libraries' exceptions about a configuration into one line that begins with ``where``.

    Raises:
        UsageError: Replaces any of ``REFUSALS``; the debug log has the traceback.
    """
    try:
        yield
    except RunError:
        raise
    except REFUSALS as error:
        logger.debug("traceback:", exc_info=True)
        raise UsageError(f"{where}: {one_line(error)}") from error


def loader_arguments() -> dict[str, Any]:
    """Return the training arguments for the processes that tokenise the next batches, and for copying these to the GPU.

    A GPU would wait for the tokenizer, so each GPU gets half of its share of the cores, up to ``GPU_LOADERS``. On a CPU a step takes
    a hundred times as long as tokenising the next batch, so no other process is needed.
    """
    if not torch.cuda.is_available():
        return {"dataloader_num_workers": 0, "dataloader_persistent_workers": False}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loaders = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) // 2
    return {
        "dataloader_num_workers": max(1, min(GPU_LOADERS, loaders)),
        "dataloader_persistent_workers": True,
        "accelerator_config": {"non_blocking": True},  # copy a batch to the GPU without waiting for the last step
    }


def make_training_arguments(
    config: TrainingConfig, folder: Path, precision: torch.dtype, metric: str | None, **extra: Any
) -> SentenceTransformerTrainingArguments:
    """Return the training arguments of a configuration.

    Args:
        metric: The evaluator's metric that decides which checkpoint is best, or None without a dev set.

    Raises:
        UsageError: ``training_arguments`` has a key that is unknown, is a key of the configuration itself, or has no effect.
    """
    known = {field.name: field.default for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    own = set(keys_of(type(config)))
    for key, value in config.training_arguments.items():
        if key not in known:
            raise UsageError(f"training_arguments: unknown key {key!r}{suggest(key, known)}")
        if key.endswith("_token"):
            raise UsageError(
                f"training_arguments: {key!r} would be stored in every checkpoint: log in with `hf auth login`, or set HF_TOKEN"
            )
        if key in own:
            raise UsageError(
                f"training_arguments: {key!r} is a key of the configuration itself: move it to the top level of the file"
            )
        if key in WITHOUT_EFFECT:
            raise UsageError(f"training_arguments: {key!r} has no effect here: {WITHOUT_EFFECT[key]}")
        if type(known[key]) in (bool, int, float):
            check_value(f"training_arguments: {key!r}", value, type(known[key]))
    trackers = get_available_reporting_integrations()
    if config.report_to not in ("none", "all", *trackers):
        raise UsageError(
            f"--report_to {config.report_to}: this tracker is not installed; choose from {', '.join(['none', 'all', *trackers])}"
        )
    same_name = {key: getattr(config, key) for key in (own & known.keys()) - NOT_FOR_TRAINER}
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
        **loader_arguments(),
        "bf16": precision == torch.bfloat16,
        "fp16": precision == torch.float16,
        **extra,
    }
    # With several processes, sentence-transformers would set this to True, with a warning: its samplers may give the processes
    # different numbers of rows. Ours never do, so no row is lost unless the user asks for it.
    in_effect = values | config.training_arguments | {"dataloader_drop_last": get_world_size() > 1}
    with refusing("training_arguments"):
        arguments = SentenceTransformerTrainingArguments(**in_effect)
    arguments.dataloader_drop_last = bool(config.training_arguments.get("dataloader_drop_last"))
    return arguments
