"""Checks a loaded model: no weight is missing, token ids fit the embedding table, and embeddings have the stated width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common.errors import RunError, one_line

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedModel

TEXT = "a few words"
EMBEDDING = "sentence_embedding"


class MissingWeights(list[tuple["PreTrainedModel", set[str]]]):
    """Transformers, and the names of the weights that their files lack; transformers fills these with random numbers."""

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the missing parameters and their names, without buffers, which are computed and often not saved."""
        return [
            (name, parameter)
            for transformer, missing in self
            for name, parameter in transformer.named_parameters()
            if name in missing
        ]


@contextmanager
def recorded_missing_weights() -> Iterator[MissingWeights]:
    """Within this context, record the weights that are missing from the files of each transformer that is loaded.

    sentence-transformers has no argument for this, so ``from_pretrained`` of transformers is replaced temporarily.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    missing = MissingWeights()

    def from_pretrained(cls: type, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        model, info = original.__func__(cls, *args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            missing.append((model, set(info["missing_keys"])))
        return (model, info) if output_loading_info else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield missing
    finally:
        PreTrainedModel.from_pretrained = original


def check_token_ids(model: SentenceTransformer, source: str) -> None:
    """Refuse a model whose tokenizer has ids above the rows of its embedding table, as after ``add_tokens`` alone.

    Raises:
        RunError: Texts with these tokens cannot be embedded.
    """
    for module in model.modules():
        rows = _rows(module)
        if rows is not None and (largest := _largest_id(module)) >= rows:
            raise RunError(
                f"model {source}: its tokenizer has token ids up to {largest}, but its embedding table has only {rows} "
                f"rows: add the missing rows, in transformers with resize_token_embeddings({largest + 1}), and save the "
                "model again"
            )


def _rows(module: torch.nn.Module) -> int | None:
    """Return the number of rows of a module's table of token embeddings, or None if it has no such table."""
    table = getattr(module, "embedding", None)  # of static embeddings
    if hasattr(module, "auto_model"):
        try:
            table = module.auto_model.get_input_embeddings()
        except (NotImplementedError, AttributeError):  # CANINE, for example, computes its embeddings from characters
            return None
    return getattr(table, "num_embeddings", None)


def _largest_id(module: torch.nn.Module) -> int:
    """Return the largest token id of a module's tokenizer, or -1 if it does not list its tokens."""
    tokenizer = getattr(module, "tokenizer", None)
    return max(tokenizer.get_vocab().values(), default=-1) if hasattr(tokenizer, "get_vocab") else -1


def check_embedding(model: SentenceTransformer, source: str, missing: MissingWeights) -> None:
    """Embed a text, to check the width of the embedding and whether it depends on missing weights.

    A pooler or a head is often missing and not used; what an embedding depends on has a gradient.

    Args:
        missing: The weights that the files of the model's transformers lack.

    Raises:
        RunError: The model cannot embed a text, its files lack a weight that its embeddings use, or its embeddings do not
            have the stated width.
    """
    import torch

    parameters = missing.parameters()
    frozen = [parameter for _, parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.set_grad_enabled(bool(parameters)):
            embeddings = _embed(model, source)
            used = _names_of_used(embeddings, parameters)
    except RunError:
        raise
    except Exception as error:  # unknown architectures and modules that do not fit each other can raise anything
        raise RunError(f"model {source} cannot embed a text: {type(error).__name__}: {one_line(error, 200)}") from None
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if used:
        raise RunError(
            f"model {source}: its files lack {len(used)} of its weights, such as {used[0]}, which would be random: the "
            "file is incomplete, its weights have other names, or config.json is not this model's"
        )
    width, stated = embeddings[0].shape[-1], model.get_embedding_dimension()
    if width != stated:
        raise RunError(
            f"model {source} states {stated} dimensions, but its embeddings have {width}: correct the width in the "
            "configuration of its last module, such as 1_Pooling/config.json"
        )


def _embed(model: SentenceTransformer, source: str) -> list[Tensor]:
    """Return the embedding of a text; if the model has a router, that of each route."""
    from sentence_transformers.base.modules import Router

    routes = [
        {"task": route}
        for router in model
        if isinstance(router, Router)
        for route, (first, *_) in router.sub_modules.items()
        if "text" in getattr(first, "modalities", ["text"])
    ]
    training = [module for module in model.modules() if module.training]  # transformers are loaded in evaluation mode
    model.eval()
    embeddings = []
    for route in routes or [{}]:
        features = model.preprocess([TEXT], **route)
        features = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in features.items()}
        features = model(features, **route)
        if EMBEDDING not in features:
            raise RunError(f"model {source} has no pooling module: add one to its modules.json")
        embeddings.append(features[EMBEDDING])
    for module in training:
        module.training = True
    return embeddings


def _names_of_used(embeddings: list[Tensor], parameters: list[tuple[str, torch.nn.Parameter]]) -> list[str]:
    """Return the sorted names of the parameters that the embeddings depend on."""
    import torch

    total = sum(embedding.float().sum() for embedding in embeddings)
    if not parameters or not total.requires_grad:
        return []
    gradients = torch.autograd.grad(total, [parameter for _, parameter in parameters], allow_unused=True)
    return sorted(name for (name, _), gradient in zip(parameters, gradients, strict=True) if gradient is not None)
