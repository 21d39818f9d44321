"""LoRA: trains two low-rank matrices for each linear layer, and freezes the layer itself (Hu et al., 2021,
https://arxiv.org/abs/2106.09685).

The adapter comes from peft. A checkpoint contains only the adapter; at the end of the run it is merged into the weights.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from common.adapters import wrap
from common.errors import RunError, one_line
from common.models import identify
from training.utils.options import TrainingConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

logger = logging.getLogger(__name__)


def add_lora(model: SentenceTransformer, config: TrainingConfig) -> None:
    """Add a new adapter to the model's transformer and freeze all other weights, if ``lora_r`` is not 0.

    Raises:
        RunError: The model is not a transformer, or does not have the target modules.
    """
    if not config.lora_r:
        return
    from peft import LoraConfig

    transformer = model[0]
    if not hasattr(transformer, "auto_model"):
        raise RunError(
            f"--lora_r is for transformers, but {config.model_name} is a {type(transformer).__name__}: use --lora_r 0"
        )
    local = Path(config.model_name).is_dir()
    identity = None if local else identify(config.model_name)
    _check_names(config.lora_target_modules, transformer.auto_model)
    targets = config.lora_target_modules or layer_pattern(transformer.auto_model)
    known = _list_of_linear_layers(transformer.auto_model)  # before peft adds its own
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=2 * config.lora_r if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        base_model_name_or_path=str(Path(config.model_name).resolve()) if local else identity.name,
        revision=None if local else identity.commit,
    )
    model.requires_grad_(False)
    try:
        adapter = wrap(transformer, lora)
    except ValueError as error:
        key = "--lora_target_modules" if config.lora_target_modules else "--lora_r"
        raise RunError(f"{key}: {one_line(error, 120)}; the model's linear layers are {known}") from None
    trained, total = adapter.get_nb_trainable_parameters()
    logger.info(
        "LoRA of rank %d: %d of %d parameters are trained (%.2f%%)", lora.r, trained, total, 100 * trained / total
    )


def layer_pattern(transformer: nn.Module) -> str:
    """Return a pattern for the names of all linear layers in a transformer's blocks.

    QLoRA found that adapting all of them, not only queries and values, matters most (Dettmers et al., 2023,
    https://arxiv.org/abs/2305.14314). The pooler, which embeddings do not use, is outside the blocks.

    Raises:
        RunError: The transformer has no such layers.
    """
    names = sorted(_names_of_linear_layers(transformer, repeated=True))
    if not names:
        raise RunError(
            f"the blocks of {type(transformer).__name__} have no linear layers that can be detected: name them with --lora_target_modules"
        )
    return rf".*\.\d+\.(.*\.)?({'|'.join(map(re.escape, names))})"


def _check_names(targets: list[str] | None, transformer: nn.Module) -> None:
    """Refuse names that no layer has. peft refuses them only if none of the names matches."""
    if not targets or targets == ["all-linear"]:
        return
    names = [f".{name}" for name, _ in transformer.named_modules()]
    unknown = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
    if unknown:
        raise RunError(
            f"--lora_target_modules: the model has no layer called {', '.join(unknown)}; its linear layers are "
            f"{_list_of_linear_layers(transformer)}"
        )


def _list_of_linear_layers(transformer: nn.Module) -> str:
    return ", ".join(sorted(_names_of_linear_layers(transformer)))


def _names_of_linear_layers(transformer: nn.Module, repeated: bool = False) -> set[str]:
    """Return the last parts of the layers' names, such as ``query``; with ``repeated``, only of layers in numbered blocks."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D  # GPT-2's

    return {
        name.rpartition(".")[2]
        for name, module in transformer.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and (not repeated or re.search(r"\.\d+\.", name))
    }
