"""Checks across keys: keys that contradict each other, and keys that have no effect with a model or loss."""

from __future__ import annotations

from common.data_files import is_local_path
from common.errors import UsageError
from training.utils.options import (
    LOSSES,
    STATIC,
    DatasetEntry,
    HybridConfig,
    MatryoshkaNLIConfig,
    TrainingConfig,
    losses_with,
)


def check_training(config: TrainingConfig) -> None:
    """Raise :class:`UsageError` if two keys contradict each other."""
    if config.max_steps == 0:
        raise UsageError("--max_steps must be at least 1, or -1 to train for num_train_epochs")
    if config.push_to_hub:
        from training.utils.upload import check_login  # imports packages that only an upload needs

        check_login()
    if config.early_stopping_patience is not None and config.dev_data == ["none"]:
        raise UsageError("--early_stopping_patience needs dev data: remove it, or replace --dev_data none")
    if config.start_share >= 1:
        raise UsageError(
            f"--start_share {config.start_share:g} must be below 1: at 1, the final model would be the untrained one"
        )
    if config.start_share and config.model_name == STATIC:
        raise UsageError("--start_share needs a pretrained model: new static embeddings start with random weights")
    if config.start_share and config.lora_r:
        raise UsageError("--start_share does not work with --lora_r: to weaken an adapter, lower --lora_alpha")
    if config.model_name == STATIC:
        check_static(config)
    check_lora(config)
    if config.matryoshka_weights is not None and len(config.matryoshka_weights) != len(config.matryoshka_dims):
        raise UsageError(
            f"the length of --matryoshka_weights is {len(config.matryoshka_weights)}, but that of --matryoshka_dims is {len(config.matryoshka_dims)}: set one weight for each dimension"
        )
    if config.mini_batch_size is not None and config.mini_batch_size >= config.per_device_train_batch_size:
        raise UsageError(
            f"--mini_batch_size {config.mini_batch_size} must be below --per_device_train_batch_size {config.per_device_train_batch_size}"
        )


def check_lora(config: TrainingConfig) -> None:
    """Raise :class:`UsageError` if a LoRA key has no effect, or if LoRA would not train weights that need training."""
    if not config.lora_r:
        for key in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if config.is_set(key):
                raise UsageError(f"--{key} is for LoRA adapters: also set --lora_r, for example to 16")
    if config.lora_dropout >= 1:
        raise UsageError(f"--lora_dropout {config.lora_dropout} would drop all inputs: use a number below 1")
    if config.lora_r and config.extend_vocabulary:
        raise UsageError(
            "--extend_vocabulary adds embeddings that need training, but LoRA does not train embeddings: use --lora_r 0"
        )


def check_nli(config: MatryoshkaNLIConfig) -> None:
    """Raise :class:`UsageError` if a key describes the user's own data, but there is none."""
    if config.columns is not None and config.train_data is None:
        raise UsageError("'columns' describes your own data: set --train_data too")


def check_static(config: TrainingConfig) -> None:
    """Raise :class:`UsageError` if a key has no effect on static embeddings."""
    if config.mini_batch_size is not None:
        raise UsageError("--mini_batch_size has no effect on static embeddings: a batch needs hardly any memory")
    if config.max_seq_length is not None:
        raise UsageError("--max_seq_length has no effect on static embeddings: they accept texts of any length")
    if config.lora_r:
        raise UsageError("--lora_r is for transformers: static embeddings have no layers to adapt")
    if config.extend_vocabulary or config.normalize_arabic or config.prune_vocabulary:
        raise UsageError(
            "--extend_vocabulary, --prune_vocabulary and --normalize_arabic are for pretrained transformers: static embeddings learn word pieces of normalised text"
        )


def check_mixture(config: HybridConfig) -> None:
    """Raise :class:`UsageError` if the mixture is empty, only some data sets have weights, or two keys contradict each other."""
    if not config.datasets:
        raise UsageError("'datasets' is empty: a mixture needs at least one data set")
    weighted = [name for name, entry in config.datasets.items() if entry.weight is not None]
    if weighted and len(weighted) < len(config.datasets):
        unweighted = next(name for name in config.datasets if name not in weighted)
        raise UsageError(
            f"'datasets': {weighted[0]!r} has a weight, but {unweighted!r} has none: set a weight for all data sets or for none"
        )
    contrastive = [name for name, loss in LOSSES.items() if loss.contrastive]
    if config.mini_batch_size is not None and not any(e.loss in contrastive for e in config.datasets.values()):
        raise UsageError(
            f"--mini_batch_size is for the losses {' and '.join(contrastive)}, but no data set uses one of them"
        )
    for name, entry in config.datasets.items():
        if not name or "." in name:
            raise UsageError(
                f"'datasets': the name {name!r} must not be empty or contain a dot, because it begins the names of the loss's parameters"
            )
        check_entry(f"'datasets.{name}'", entry)
        if "guide" in LOSSES[entry.loss].keys and config.model_name == STATIC:
            raise UsageError(
                f"'datasets.{name}': {entry.loss} needs a tokenizer of transformers, which static embeddings do not have"
            )
        if "teacher" in LOSSES[entry.loss].keys and entry.teacher is None and config.model_name == STATIC:
            raise UsageError(f"'datasets.{name}': new static embeddings cannot be their own teacher: set 'teacher'")


def check_entry(where: str, entry: DatasetEntry) -> None:
    """Raise :class:`UsageError` if an entry has a key that its loss does not support, or an invalid value."""
    for key in sorted({key for loss in LOSSES.values() for key in loss.keys} - set(LOSSES[entry.loss].keys)):
        if getattr(entry, key) is not None:
            raise UsageError(f"{where}: {key!r} is for {', '.join(losses_with(key))}, but the loss is {entry.loss}")
    if entry.translate is not None and entry.translations is None:
        raise UsageError(f"{where}: 'translate' needs 'translations', the parallel sentences to translate with")
    if (entry.name is not None or entry.split != "train") and is_local_path(entry.path):
        raise UsageError(f"{where}: 'name' and 'split' are for data sets on the Hub, but {entry.path} is a file")
    if entry.directions is not None and "query_to_doc" not in entry.directions:
        raise UsageError(f"{where}: 'directions' must include query_to_doc, which contrasts the positive pairs")
    if entry.directions is not None and len(set(entry.directions)) < len(entry.directions):
        raise UsageError(f"{where}: 'directions' has a duplicate")
    if entry.score_range is not None and (len(entry.score_range) != 2 or entry.score_range[0] >= entry.score_range[1]):
        raise UsageError(f"{where}: 'score_range' must be the lowest and the highest score, such as [0, 5]")
