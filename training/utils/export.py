"""Cutting a model to a dimension: the first numbers of its embeddings, normalised, with nothing to configure."""

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

# of a Dense module: those that compute each number from one number, so that the first rows give the first numbers
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
TOLERANCE = 1e-4  # rounding of float32, for large models too; the tests hold tiny ones to 1e-5


def prefixes(model: SentenceTransformer, texts: list[str], dim: int, prompt: str = "") -> np.ndarray:
    """What every export must reproduce: the first ``dim`` numbers of the embeddings, normalised, shape ``[texts, dim]``."""
    embeddings = model.encode(texts, prompt=prompt, convert_to_numpy=True, show_progress_bar=False)[:, :dim]
    return normalise(embeddings.astype(np.float32))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros, as static embeddings give an empty text, stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cut(model: SentenceTransformer, dim: int) -> SentenceTransformer:
    """A model whose embeddings are the first ``dim`` numbers of those of ``model``, normalised.

    The prefix of a normalised vector is, normalised, that of the vector itself: a ``Normalize`` at the end moves behind the
    cut. A ``Dense`` at the end keeps its first rows, and a table of static embeddings its first columns. Any other model
    gets a ``Dense`` whose weight is the first rows of the identity.
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
    """The dimensions that a model cut to ``dim`` can still be cut to; none where it was not trained for any."""
    trained_for = get_matryoshka_dimensions(model)
    return sorted({dim, *(smaller for smaller in trained_for if smaller < dim)}, reverse=True) if trained_for else []


def _cut_last(module: nn.Module, dim: int) -> nn.Module | None:
    """The module that gives the first ``dim`` numbers of what ``module`` gives, where it can be cut itself."""
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
    """Save ``model``, cut to ``dim``, into ``folder``, and check what is loaded from there against ``model``.

    Raises:
        RunError: The folder would need code of the model's own, or its embeddings are not those of ``model``.
    """
    from sentence_transformers import SentenceTransformer

    if any(type(part).__module__.startswith("transformers_modules.") for part in model.modules()):
        raise RunError(
            f"model {identity.source} runs code of its own, which the exported folder would need too: use --format onnx"
        )
    cut(model, dim).save_pretrained(str(folder), create_model_card=False)
    write_known_names(folder)
    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    check_equal(
        identity, prefixes(model, TRIAL_TEXTS, dim), loaded.encode(TRIAL_TEXTS, prompt="", show_progress_bar=False)
    )


def check_equal(identity: ModelIdentity, expected: np.ndarray, embeddings: np.ndarray) -> None:
    """Raise :class:`RunError` where the exported model's embeddings are not the original's."""
    if embeddings.shape != expected.shape:
        raise RunError(
            f"model {identity.source}: the export gives embeddings of shape {embeddings.shape}, not {expected.shape}"
        )
    difference = float(np.abs(embeddings - expected).max())
    if not difference <= TOLERANCE:
        raise RunError(
            f"model {identity.source} cannot be exported: the export's embeddings differ from the original's by {difference:.1e}"
        )
    logger.info("the exported embeddings equal the original's normalised prefix (largest difference %.1e)", difference)


def original_card_data(identity: ModelIdentity) -> dict:
    """The metadata of the original model's card; an empty dictionary where there is none that can be read."""
    from huggingface_hub import ModelCard
    from sentence_transformers.util import load_file_path

    try:
        revision = None if Path(identity.source).is_dir() else identity.commit
        path = load_file_path(identity.source, "README.md", revision=revision)
        return {} if path is None else ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # whatever the Hub or the parser of a stranger's YAML raises
        logger.warning("the card of %s cannot be read (%s): its licence and languages are not taken over",
                       identity.source, one_line(error, 100))  # fmt: skip
        return {}
