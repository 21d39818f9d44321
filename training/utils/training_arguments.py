"""From a configuration to the arguments of the library's trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers.integrations import get_available_reporting_integrations

from common.errors import UsageError, one_line
from common.keys import check_value, keys_of, suggest
from training.utils.options import TrainingConfig

GPU_LOADERS = 2  # processes that tokenise the next batches while a GPU computes
# keys of ours that the trainer must not act on: it would upload checkpoints while it trains
NOT_FOR_TRAINER = {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo"}
# arguments of the library that have no effect here, and what has
WITHOUT_EFFECT = {
    "bf16": "give --precision",
    "fp16": "give --precision",
    "batch_sampler": "no batch ever holds a text twice",
}


def make_training_arguments(
    config: TrainingConfig, folder: Path, precision: torch.dtype, metric: str | None, **extra: Any
) -> SentenceTransformerTrainingArguments:
    """The training arguments of a configuration.

    Args:
        metric: The evaluator's metric that the best checkpoint is chosen on, or None where there is no dev set.

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
            f"--report_to {config.report_to}: this tracker is not installed; choose {', '.join(['none', 'all', *trackers])}"
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
