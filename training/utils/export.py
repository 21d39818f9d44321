"""Truncates a model to a dimension: the exported model returns the first numbers of the embeddings, normalised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import RunError, one_line
from common.models import ModelIdentity
from common.packing import TRIAL
from training.utils.serving import get_matryoshka_dimensions, set_matryoshka_dimensions, write_known_names

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

logger = logging.getLogger(__name__)

# element-wise activation functions of a Dense module: with these, its first rows produce the first numbers of the embedding
ELEMENTWISE = (
    "Identity",
    "Tanh",
    "ReLU",
    "GELU",
    "Sigmoid",
    "SiLU",
    "LeakyReLU",
    "ELU",
    "Softplus",
    "Mish",
    "Hardswish",
)
EMBEDDING = "sentence_embedding"
TRIAL_TEXTS = [*TRIAL, "السماء صافية اليوم", "Ça coûte 12,50 €, n’est-ce pas ?", "two  spaces,\nand a line break"]
TOLERANCE = 1e-4  # rounding of float32 in large models; the tests require 1e-5 of tiny ones


def prefixes(model: SentenceTransformer, texts: list[str], dim: int, prompt: str = "") -> np.ndarray:
    """Compute what every export must reproduce: the first ``dim`` numbers of the embeddings, normalised, shape ``[texts, dim]``."""
    embeddings = model.encode(texts, prompt=prompt, convert_to_numpy=True, show_progress_bar=False)[:, :dim]
    return normalise(embeddings.astype(np.float32))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Normalise rows to length 1. A row of zeros, the static embedding of an empty text, does not change."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cut(model: SentenceTransformer, dim: int) -> SentenceTransformer:
    """Return a model whose embeddings are the first ``dim`` numbers of ``model``'s embeddings, normalised.

    Normalising before truncation does not change the normalised prefix, so a ``Normalize`` at the end moves after the
    truncation. A ``Dense`` at the end keeps its first rows, and a table of static embeddings its first columns. Any other
    model gets a ``Dense`` whose weight is the first rows of the identity matrix.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    modules = list(model.children())
    while type(modules[-1]) is Normalize and modules[-1].module_output_name == EMBEDDING:
        modules.pop()
    width = model.get_embedding_dimension()
    if dim < width and (smaller := _cut_last(modules[-1], dim)) is not None:
        modules[-1] = smaller
    elif dim < width:
        modules.append(Dense(width, dim, bias=False, activation_function=None, init_weight=torch.eye(dim, width)))
    smaller_model = SentenceTransformer(
        modules=[*modules, Normalize()],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        device="cpu",
    )
    set_matryoshka_dimensions(smaller_model, dims_up_to(model, dim))
    return smaller_model.eval()


def dims_up_to(model: SentenceTransformer, dim: int) -> list[int]:
    """Return ``dim`` and the model's smaller Matryoshka dimensions, largest first; an empty list if the model states none."""
    trained_for = get_matryoshka_dimensions(model)
    return sorted({dim, *(smaller for smaller in trained_for if smaller < dim)}, reverse=True) if trained_for else []


def warn_if_untrained(model: SentenceTransformer, dim: int) -> None:
    """Log a warning if ``dim`` is not one of the dimensions that the model was trained for."""
    trained_for = get_matryoshka_dimensions(model)
    if trained_for and dim not in (*trained_for, model.get_embedding_dimension()):
        logger.warning(
            "the model was trained for %s dimensions, not for %d: measure what %d costs with evaluation/evaluate_mteb.py --dims %d",
            ", ".join(map(str, trained_for)), dim, dim, dim,
        )  # fmt: skip


def _cut_last(module: nn.Module, dim: int) -> nn.Module | None:
    """Return a copy of ``module`` that outputs only the first ``dim`` numbers, or None if it cannot be truncated."""
    from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding

    if type(module) is StaticEmbedding:
        return StaticEmbedding(module.tokenizer, embedding_weights=module.embedding.weight.detach()[:, :dim].clone())
    if type(module) is not Dense or getattr(module, "use_residual", False):
        return None
    names = {module.module_input_name, module.module_output_name}
    if names != {EMBEDDING} or type(module.activation_function).__name__ not in ELEMENTWISE:
        return None
    linear = module.linear
    return Dense(
        module.in_features,
        dim,
        bias=linear.bias is not None,
        activation_function=module.activation_function,
        init_weight=linear.weight.detach()[:dim].clone(),
        init_bias=None if linear.bias is None else linear.bias.detach()[:dim].clone(),
    )


def save_sentence_transformers(model: SentenceTransformer, folder: Path, identity: ModelIdentity, dim: int) -> None:
    """Save ``model``, truncated to ``dim``, in ``folder``, load it again, and compare its embeddings with the original's.

    Raises:
        RunError: The model needs its own Python code, or the exported embeddings differ from those of ``model``.
    """
    from sentence_transformers import SentenceTransformer

    if any(type(part).__module__.startswith("transformers_modules.") for part in model.modules()):
        raise RunError(
            f"model {identity.source} needs its own Python code, and so would the exported folder: use --format onnx"
        )
    cut(model, dim).save_pretrained(str(folder), create_model_card=False)
    write_known_names(folder)
    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    check_equal(
        identity, prefixes(model, TRIAL_TEXTS, dim), loaded.encode(TRIAL_TEXTS, prompt="", show_progress_bar=False)
    )


def check_equal(identity: ModelIdentity, expected: np.ndarray, embeddings: np.ndarray) -> None:
    """Raise :class:`RunError` if the exported model's embeddings differ from the original's."""
    if embeddings.shape != expected.shape:
        raise RunError(
            f"model {identity.source}: the exported model returns embeddings of shape {embeddings.shape}, not {expected.shape}"
        )
    difference = float(np.abs(embeddings - expected).max())
    if not difference <= TOLERANCE:
        raise RunError(
            f"model {identity.source} cannot be exported: its embeddings would differ from the original's by {difference:.1e}"
        )
    logger.info("the exported embeddings equal the original's normalised prefix (largest difference %.1e)", difference)


def original_card_data(identity: ModelIdentity) -> dict:
    """Return the metadata of the original model's card, or an empty dictionary if it cannot be read."""
    from huggingface_hub import ModelCard
    from sentence_transformers.util import load_file_path

    try:
        revision = None if Path(identity.source).is_dir() else identity.commit
        path = load_file_path(identity.source, "README.md", revision=revision)
        return {} if path is None else ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # the Hub and the YAML parser can raise anything
        logger.warning("the model card of %s cannot be read (%s): the licence and languages are not copied",
                       identity.source, one_line(error, 100))  # fmt: skip
        return {}
