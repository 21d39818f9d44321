"""Prepares a model for batches of texts: adds a missing padding token, and truncates texts to the length that it can encode."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.errors import RunError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

logger = logging.getLogger(__name__)

TABLES = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")
OTHER_INPUTS = ("vision", "visual", "image", "audio")  # in the names of modules whose positions are not token positions
UNLIMITED = 10**9  # tokenizers without a limit report numbers far above this


def prepare_text_inputs(model: SentenceTransformer, source: str, max_seq_length: int | None = None) -> None:
    """Add a missing padding token, and truncate texts to the number of tokens that the model can encode.

    Args:
        model: The model; its tokenizers are changed in place, and saved with the model.
        source: The model's name in messages.
        max_seq_length: Truncate texts to this many tokens; by default the model's own limit.

    Raises:
        RunError: The tokenizer has no vocabulary, or neither a padding nor an end-of-text token, or ``max_seq_length`` is above the model's
            limit or too small for any text.
    """
    transformers = list(_transformers(model))
    for transformer in transformers:
        _check_vocabulary(transformer.tokenizer, source)
        _ensure_padding_token(transformer.tokenizer, source)
        _limit_tokens(transformer, source, max_seq_length)
    if max_seq_length is not None and not transformers:
        if type(getattr(model[0], "max_seq_length", None)) is int:  # word vectors
            model.max_seq_length = max_seq_length
        else:
            logger.warning("%s has no limit on the length of texts: --max_seq_length has no effect", source)


def token_limit(transformer: nn.Module) -> int | None:
    """Return how many tokens a transformer can encode, from its position embeddings and its configuration.

    In the RoBERTa family, positions start after the padding index, so that 514 rows serve 512 tokens; in OPT and BART, they
    start at an offset. Models with relative or rotary positions have no table; their limit is the one in the configuration.

    Args:
        transformer: A Transformer module of sentence-transformers.

    Returns:
        The limit, including special tokens, or None if there is none.
    """
    from torch import nn

    config = transformer.auto_model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    for name, parent in transformer.auto_model.named_modules():
        if any(word in name for word in OTHER_INPUTS):
            continue
        for attribute in TABLES:
            table = getattr(parent, attribute, None)
            if isinstance(table, nn.Embedding):
                padding = getattr(parent, "padding_idx", None) if attribute == "position_embeddings" else None
                offset = getattr(table, "offset", padding + 1 if isinstance(padding, int) else 0)
                limits.append(table.num_embeddings - offset)
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def _transformers(model: SentenceTransformer) -> Iterator[Any]:
    for module in model.modules():
        if hasattr(module, "auto_model") and hasattr(getattr(module, "tokenizer", None), "pad_token"):
            yield module


def _check_vocabulary(tokenizer: Any, source: str) -> None:
    """Refuse the empty tokenizer that transformers makes, without a warning, if a model has no tokenizer files."""
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise RunError(
            f"model {source}: its tokenizer has no vocabulary, so all texts would be alike: save the tokenizer in the model's "
            "folder (tokenizer.save_pretrained)"
        )


def _ensure_padding_token(tokenizer: Any, source: str) -> None:
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise RunError(
            f"model {source}: its tokenizer has no padding token, and no end-of-text token to use instead: set "
            "pad_token in its tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token
    logger.info("%s has no padding token: using its end-of-text token %s", source, tokenizer.eos_token)


def _limit_tokens(transformer: Any, source: str, wanted: int | None) -> None:
    limit, current = token_limit(transformer), transformer.max_seq_length
    if limit is not None and (current is None or current > limit):
        transformer.max_seq_length = limit
        if current is not None and current < UNLIMITED:
            logger.info("%s can encode at most %d tokens: longer texts are truncated", source, limit)
    if wanted is None:
        return
    if limit is not None and wanted > limit:
        raise RunError(f"--max_seq_length {wanted} is above the {limit} tokens that {source} can encode")
    special = transformer.tokenizer.num_special_tokens_to_add()
    if wanted <= special:
        raise RunError(
            f"--max_seq_length {wanted} leaves no room for text: {source} adds {special} special tokens to each text"
        )
    transformer.max_seq_length = wanted
