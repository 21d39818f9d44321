"""Writes what embedding servers read in a model's folder: the Matryoshka dimensions, and module names that they know.

- vLLM accepts ``dimensions`` in an embedding request if ``config.json`` has ``matryoshka_dimensions``
  (https://docs.vllm.ai, "Matryoshka Embeddings").
- vLLM and text-embeddings-inference read the modules and the pooling in the format of sentence-transformers before version 6.
  They do not recognise the newer names. If they find no pooling, they fall back to a pooling that the model was not trained with.
  sentence-transformers reads both formats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.model_cards import PLACEHOLDER, TAG, usage, with_section

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DIMENSIONS = "matryoshka_dimensions"
KNOWN_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding")
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def get_matryoshka_dimensions(model: SentenceTransformer) -> list[int]:
    """Return the dimensions that a model states it was trained for, largest first; none if it does not state any."""
    dims = getattr(_transformer_config(model), DIMENSIONS, None)
    if not isinstance(dims, list) or not all(isinstance(dim, int) for dim in dims):
        return []
    return sorted(dims, reverse=True)


def set_matryoshka_dimensions(model: SentenceTransformer, dims: Sequence[int]) -> None:
    """Set the dimensions that ``config.json`` will state when the model is saved; none if ``dims`` is empty.

    Static embeddings have no ``config.json``, so nothing is set.
    """
    config = _transformer_config(model)
    if config is None:
        return
    if dims:
        setattr(config, DIMENSIONS, sorted(dims, reverse=True))
    elif hasattr(config, DIMENSIONS):
        delattr(config, DIMENSIONS)


def _transformer_config(model: SentenceTransformer) -> Any:
    return getattr(getattr(model[0], "auto_model", None), "config", None)


def save_servable(model: SentenceTransformer, folder: Path, dims: Sequence[int]) -> None:
    """Save a trained model so that servers can load it, with a card that explains how to use fewer dimensions.

    Args:
        dims: The dimensions that the model was trained for, the full width first; empty for an untrained model.
    """
    set_matryoshka_dimensions(model, dims)
    if dims:
        model.model_card_data.add_tags(TAG)
    model.save_pretrained(str(folder))
    write_known_names(folder)
    card = folder / "README.md"
    if dims[1:] and card.exists():
        name = model.model_card_data.model_id or PLACEHOLDER
        text = usage(name, dims, served=_transformer_config(model) is not None)
        card.write_text(with_section(card.read_text(encoding="utf-8"), dims, text), encoding="utf-8")


def write_known_names(folder: Path) -> None:
    """Rewrite ``modules.json`` and the modules' settings in a saved model's folder in the format that servers know.

    The embeddings do not change. Modules and settings without an older form stay as they are.
    """
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if package.startswith("sentence_transformers.") and name in KNOWN_MODULES:
            module["type"] = f"sentence_transformers.models.{name}"
            settings = folder / module["path"] / "config.json"
            if name in ("Pooling", "Dense") and settings.exists():
                rewrite = _older_pooling if name == "Pooling" else _older_dense
                _write_json(settings, rewrite(json.loads(settings.read_text(encoding="utf-8"))))
    _write_json(path, modules)


def _older_pooling(settings: dict[str, Any]) -> dict[str, Any]:
    mode = settings.get("pooling_mode")
    if (
        not isinstance(mode, str) or mode not in POOLING_FLAGS
    ):  # several modes: separate flags would not keep their order
        return settings
    flags = {flag: name == mode for name, flag in POOLING_FLAGS.items()}
    rest = {key: value for key, value in settings.items() if key not in ("pooling_mode", "embedding_dimension")}
    return {"word_embedding_dimension": settings["embedding_dimension"]} | flags | rest


def _older_dense(settings: dict[str, Any]) -> dict[str, Any]:
    keys = ("module_input_name", "module_output_name")
    return {key: value for key, value in settings.items() if key not in keys or value != "sentence_embedding"}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
