"""Adapters of peft, such as LoRA's: found in a model's files, loaded onto their base model, merged into its weights.

An adapter is a model of its own here: its folder or Hub name is a ``--model_name``. It is merged as soon as it is loaded, so
that everything else sees a plain transformer. What loads adapters in transformers and sentence-transformers is not used: it
asks for a version of peft that is not published, and what it saves cannot be loaded again.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunError
from common.model_files import ModelFiles

if TYPE_CHECKING:
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

ADAPTER_CONFIG = "adapter_config.json"


def base_of(files: ModelFiles) -> tuple[str, str | None] | None:
    """The name or path of the model that an adapter was trained on and the revision that it names, if any.

    Returns:
        None where the files are not those of an adapter.

    Raises:
        RunError: The adapter does not name its base model.
    """
    if ADAPTER_CONFIG not in files.names:
        return None
    config = files.object(ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise RunError(
            f"model {files.source}: its {ADAPTER_CONFIG} does not name the base_model_name_or_path it is for"
        )
    return base, config.get("revision") or None


def with_adapter(base: SentenceTransformer, files: ModelFiles) -> SentenceTransformer:
    """An adapter's model: the base model with the adapter merged into its weights.

    The tokenizer, the modules behind the transformer and the prompts are the adapter's where it brings them, else the base's.

    Args:
        base: The base model; its transformer is changed in place.
        files: The adapter's files.

    Raises:
        RunError: The adapter cannot be merged, or its weights are not those of this base model.
    """
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(files.source, revision=files.revision)
    if config.is_prompt_learning:
        raise RunError(
            f"model {files.source}: an adapter of the kind {config.peft_type.value} cannot be merged into a model: "
            "give one of LoRA's"
        )
    transformer = base[0]
    adapter = wrap(transformer, config)
    weights = load_peft_weights(files.source, device="cpu", revision=files.revision)
    set_weights(adapter, weights, files.source)
    merge(base)
    if "tokenizer_config.json" in files.names:
        from transformers import AutoTokenizer

        transformer.processor = AutoTokenizer.from_pretrained(files.source, revision=files.revision)
    return _with_modules(base, files) if files.modules else base


def _with_modules(base: SentenceTransformer, files: ModelFiles) -> SentenceTransformer:
    """The base's transformer with the modules and settings that sentence-transformers saved with the adapter."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import import_from_string

    modules = [base[0]]
    for entry in files.modules[1:]:
        if not str(entry["type"]).startswith("sentence_transformers."):
            raise RunError(
                f"model {files.source}: the module {entry['type']} of an adapter is not sentence-transformers'"
            )
        module = import_from_string(entry["type"])
        modules.append(module.load(files.source, subfolder=entry["path"], revision=files.revision))
    settings = files.object("config_sentence_transformers.json")
    model = SentenceTransformer(
        modules=modules,
        device=base.device.type,
        prompts=settings.get("prompts"),
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name"),
    )
    card = base.model_card_data
    model.model_card_data.base_model, model.model_card_data.base_model_revision = (
        card.base_model,
        card.base_model_revision,
    )
    return model


def wrap(transformer: Any, config: Any) -> PeftModel:
    """Put a new adapter onto the model of a Transformer module, in place; everything but the adapter is frozen.

    Raises:
        ValueError: The adapter's targets are not in the model.
    """
    from peft import get_peft_model

    base, revision = config.base_model_name_or_path, config.revision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name in transformers is deprecated, and of what comes next
        adapter = get_peft_model(transformer.auto_model, config)
    # which it renames to where the transformer came from, though another adapter may have been merged into it since
    config.base_model_name_or_path, config.revision = base, revision
    # the vocabulary is that of the base, which peft would otherwise ask the Hub at each checkpoint
    adapter.save_pretrained = partial(adapter.save_pretrained, save_embedding_layers=False)
    transformer.model = adapter
    return adapter


def adapter_of(model: SentenceTransformer) -> PeftModel | None:
    """The adapter on a model's transformer, or None where it has none (any more)."""
    transformer = getattr(model[0], "auto_model", None)
    return transformer if hasattr(transformer, "merge_and_unload") else None


def merge(model: SentenceTransformer) -> None:
    """Merge the adapter into the weights of the model's transformer, which can be trained again as a plain one."""
    adapter = adapter_of(model)
    model[0].model = adapter.merge_and_unload(safe_merge=True)
    model[0].model.requires_grad_(True)


def load_weights(model: SentenceTransformer, folder: Path) -> None:
    """Set the adapter's weights to those in a folder.

    Raises:
        RunError: They are those of another model.
    """
    from peft.utils import load_peft_weights

    set_weights(adapter_of(model), load_peft_weights(str(folder), device="cpu"), str(folder))


def set_weights(adapter: PeftModel, weights: dict[str, Tensor], source: str) -> None:
    """Set an adapter's weights, all of them and no others.

    Raises:
        RunError: Their names are not those of the adapter: peft itself would leave some as they are with a warning.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = set(get_peft_model_state_dict(adapter, save_embedding_layers=False))
    if not set(weights) <= expected:
        # trained on a model with a head, which has the transformer under a name of its own: "model.", "bert."
        inner = f"base_model.model.{adapter.get_base_model().base_model_prefix}."
        weights = {name.replace(inner, "base_model.model.", 1): value for name, value in weights.items()}
    if not expected or set(weights) != expected:
        missing, unknown = expected - set(weights), set(weights) - expected
        raise RunError(
            f"model {source}: the adapter's weights are not those of its base model: {len(missing)} of {len(expected)} "
            f"are missing, {len(unknown)} are unknown, such as {min(missing | unknown, default='all')}"
        )
    set_peft_model_state_dict(adapter, weights)
