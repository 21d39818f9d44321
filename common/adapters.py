"""PEFT adapters such as LoRA: detects them in a model's files, loads them onto their base model and merges their weights.

Users pass an adapter's folder or Hub name as ``--model_name``, as for any model. The adapter is merged as soon as it is
loaded, so that all other code sees a plain transformer. The loaders of transformers and sentence-transformers are not used: they
require a version of peft that is not published, and the adapters that they save cannot be loaded again.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunError, one_line
from common.model_files import ModelFiles

if TYPE_CHECKING:
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
IN_ADAPTER = "base_model.model."  # peft's prefix of the names of a transformer's weights
WHOLE = ("weight", "bias", "base_layer.")  # what follows a module's name if an adapter replaces its weights


def base_of(files: ModelFiles) -> tuple[str, str | None] | None:
    """Return the name or path of an adapter's base model, and the revision if the adapter states one.

    Returns:
        None if the files are not an adapter's.

    Raises:
        RunError: The adapter does not name its base model.
    """
    if ADAPTER_CONFIG not in files.names:
        return None
    config = files.object(ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise RunError(
            f"model {files.source}: its {ADAPTER_CONFIG} does not name its base model (base_model_name_or_path)"
        )
    return base, config.get("revision") or None


def with_adapter(base: SentenceTransformer, files: ModelFiles) -> SentenceTransformer:
    """Merge an adapter into its base model and return the result.

    The tokenizer, the modules after the transformer and the prompts come from the adapter if it has them, and otherwise from
    the base model.

    Args:
        base: The base model; its transformer is changed in place.
        files: The adapter's files.

    Raises:
        RunError: The adapter cannot be merged, or its weights do not fit this base model.
    """
    from peft import PeftConfig, PeftType
    from peft.utils import load_peft_weights

    if (kind := files.object(ADAPTER_CONFIG).get("peft_type")) not in [known.value for known in PeftType]:
        raise RunError(
            f"model {files.source}: {ADAPTER_CONFIG} has the peft_type {kind!r}, which the installed peft does not know"
        )
    if not {"adapter_model.safetensors", "adapter_model.bin"} & files.names:
        raise RunError(f"model {files.source}: the adapter has no weights (adapter_model.safetensors)")
    config = PeftConfig.from_pretrained(files.source, revision=files.revision)
    if config.is_prompt_learning:
        raise RunError(
            f"model {files.source}: adapters of type {config.peft_type.value} cannot be merged into a base model; "
            "use a LoRA adapter"
        )
    transformer = base[0]
    weights = load_peft_weights(files.source, device="cpu", revision=files.revision)
    if outer := _prefix_of_head(transformer.auto_model, weights):
        weights = _without_head(weights, outer)
        _describe_without_head(config, weights, transformer.auto_model, outer)
    weights = _load_whole_weights(transformer.auto_model, weights)
    # a task would add a head, and these modules and biases have just been loaded
    config.task_type = config.modules_to_save = None
    if hasattr(config, "bias"):
        config.bias = "none"
    try:
        adapter = wrap(transformer, config)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"model {files.source}: {ADAPTER_CONFIG} has a wrong value, or is not for this base model: {one_line(error)}"
        ) from None
    set_weights(adapter, weights, files.source)
    merge(base)
    if "tokenizer_config.json" in files.names:
        from transformers import AutoTokenizer

        transformer.processor = AutoTokenizer.from_pretrained(files.source, revision=files.revision)
    return _with_modules(base, files) if files.modules else base


def _prefix_of_head(transformer: PreTrainedModel, weights: dict[str, Tensor]) -> str:
    """Return the prefix of the transformer's names in an adapter that was trained on a model with a head, such as ``model.``.

    Returns:
        An empty string if the adapter was trained on the transformer itself.
    """
    name = transformer.base_model_prefix
    within = any(key.startswith(f"{IN_ADAPTER}{name}.") for key in weights)
    return f"{name}." if name and within and not hasattr(transformer, name) else ""


def _without_head(weights: dict[str, Tensor], outer: str) -> dict[str, Tensor]:
    """Remove the weights of the head, which embeddings do not need, and the prefix of the others."""
    outer = f"{IN_ADAPTER}{outer}"
    return {IN_ADAPTER + key.removeprefix(outer): value for key, value in weights.items() if key.startswith(outer)}


def _describe_without_head(config: Any, weights: dict[str, Tensor], transformer: PreTrainedModel, outer: str) -> None:
    """Change the names in an adapter's configuration from those of a model with a head to those of its transformer.

    The modules to adapt are read from the weights: they may be configured as all linear layers, or as a regular expression.
    """
    parts = _split_names(weights, transformer).values()
    config.target_modules = {module for module, rest in parts if not rest.startswith(("token_adapter", *WHOLE))}
    config.exclude_modules = None
    for patterns in ("rank_pattern", "alpha_pattern"):
        if values := getattr(config, patterns, None):
            setattr(config, patterns, {key.removeprefix(outer): value for key, value in values.items()})


def _load_whole_weights(transformer: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Load the weights that an adapter replaces, such as an embedding table with added tokens. Returns the other weights."""
    whole = {key: parts for key, parts in _split_names(weights, transformer).items() if parts[1].startswith(WHOLE)}
    for key, (module, rest) in whole.items():
        name, value = f"{module}.{rest.removeprefix('base_layer.')}", weights[key]
        parameter = transformer.get_parameter(name)
        if parameter is transformer.get_input_embeddings().weight and len(value) != len(parameter):
            transformer.resize_token_embeddings(len(value), mean_resizing=False)
            parameter = transformer.get_parameter(name)
        parameter.data.copy_(value)
    return {key: value for key, value in weights.items() if key not in whole}


def _split_names(weights: dict[str, Tensor], transformer: PreTrainedModel) -> dict[str, tuple[str, str]]:
    """Split the name of each of an adapter's weights into the module of the transformer that it belongs to, and the rest."""
    modules = {name for name, _ in transformer.named_modules()}

    def split(key: str) -> tuple[str, str]:
        parts = key.removeprefix(IN_ADAPTER).split(".")
        length = next(n for n in range(len(parts), -1, -1) if ".".join(parts[:n]) in modules)
        return ".".join(parts[:length]), ".".join(parts[length:])

    return {key: split(key) for key in weights}


def _with_modules(base: SentenceTransformer, files: ModelFiles) -> SentenceTransformer:
    """Combine the base model's transformer with the modules and settings that sentence-transformers saved with the adapter."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import import_from_string

    modules = [base[0]]
    for entry in files.modules[1:]:
        if not str(entry["type"]).startswith("sentence_transformers."):
            raise RunError(
                f"model {files.source}: the adapter's module {entry['type']} is not part of sentence-transformers"
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
    """Add a new adapter to a Transformer module's model, in place, and freeze all other weights.

    Raises:
        ValueError: None of the model's layers matches the adapter's target names.
    """
    from peft import get_peft_model

    base, revision = config.base_model_name_or_path, config.revision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a deprecated name in transformers, and about the renaming undone below
        adapter = get_peft_model(transformer.auto_model, config)
    # get_peft_model sets the name to the transformer's own source, but another adapter may have been merged into it since
    config.base_model_name_or_path, config.revision = base, revision
    # the vocabulary is that of the base model; peft would otherwise look it up on the Hub at each checkpoint
    adapter.save_pretrained = partial(adapter.save_pretrained, save_embedding_layers=False)
    transformer.model = adapter
    return adapter


def adapter_of(model: SentenceTransformer) -> PeftModel | None:
    """Return the adapter of a model's transformer, or None if it has no adapter or the adapter has been merged."""
    transformer = getattr(model[0], "auto_model", None)
    return transformer if hasattr(transformer, "merge_and_unload") else None


def merge(model: SentenceTransformer) -> None:
    """Merge the adapter into the transformer's weights, and make all of the weights trainable again."""
    adapter = adapter_of(model)
    model[0].model = adapter.merge_and_unload(safe_merge=True)
    model[0].model.requires_grad_(True)


def load_weights(model: SentenceTransformer, folder: Path) -> None:
    """Load the adapter's weights from a folder.

    Raises:
        RunError: The weights belong to another model.
    """
    from peft.utils import load_peft_weights

    set_weights(adapter_of(model), load_peft_weights(str(folder), device="cpu"), str(folder))


def set_weights(adapter: PeftModel, weights: dict[str, Tensor], source: str) -> None:
    """Set the weights of an adapter, and check that none is missing or unknown.

    Raises:
        RunError: The names differ from the adapter's. peft itself would only warn, and keep the untrained values.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = set(get_peft_model_state_dict(adapter, save_embedding_layers=False))
    if not expected or set(weights) != expected:
        missing, unknown = expected - set(weights), set(weights) - expected
        raise RunError(
            f"model {source}: the adapter's weights do not fit its base model: {len(missing)} of {len(expected)} "
            f"are missing and {len(unknown)} are unknown, such as {min(missing | unknown, default='all')}"
        )
    set_peft_model_state_dict(adapter, weights)
