"""What a model needs to take texts in batches: a padding token, and a limit of tokens that its positions reach."""

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
OTHER_INPUTS = ("vision", "visual", "image", "audio")  # in the names of modules whose positions are not those of tokens
UNLIMITED = 10**9  # tokenizers without a limit of their own name numbers far above this


def prepare_text_inputs(model: SentenceTransformer, source: str, max_seq_length: int | None = None) -> None:
    """Give a model a padding token where it has none, and a limit of tokens that it can take.

    Args:
        model: The model; its tokenizers are changed in place, and saved with it.
        source: Its name, for messages.
        max_seq_length: Cut texts to so many tokens; by default the model's own limit.

    Raises:
        RunError: There is nothing to pad with, or ``max_seq_length`` is above what the model can take, or holds no text.
    """
    transformers = list(_transformers(model))
    for transformer in transformers:
        _ensure_padding_token(transformer.tokenizer, source)
        _limit_tokens(transformer, source, max_seq_length)
    if max_seq_length is not None and not transformers:
        if type(getattr(model[0], "max_seq_length", None)) is int:  # word vectors
            model.max_seq_length = max_seq_length
        else:
            logger.warning("%s takes texts of any length: --max_seq_length has no effect on it", source)


def token_limit(transformer: nn.Module) -> int | None:
    """How many tokens a transformer can take: the rows of its table of positions, and what its configuration says.

    Positions of the RoBERTa family start behind the padding index, so that 514 rows hold 512 tokens; those of OPT and BART
    behind an offset. Models with relative or rotary positions have no table, and the configuration's limit.

    Args:
        transformer: A Transformer module of sentence-transformers.

    Returns:
        The limit, special tokens included, or None where there is none.
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


def _ensure_padding_token(tokenizer: Any, source: str) -> None:
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise RunError(
            f"model {source}: its tokenizer has no padding token, and no end-of-text token to take its place: name one as "
            "pad_token in tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token
    logger.info("%s has no padding token: its end-of-text token %s takes the place", source, tokenizer.eos_token)


def _limit_tokens(transformer: Any, source: str, wanted: int | None) -> None:
    limit, current = token_limit(transformer), transformer.max_seq_length
    if limit is not None and (current is None or current > limit):
        transformer.max_seq_length = limit
        if current is not None and current < UNLIMITED:
            logger.info("%s has positions for %d tokens: longer texts are cut there", source, limit)
    if wanted is None:
        return
    if limit is not None and wanted > limit:
        raise RunError(f"--max_seq_length {wanted} is above the {limit} tokens that {source} can take")
    special = transformer.tokenizer.num_special_tokens_to_add()
    if wanted <= special:
        raise RunError(
            f"--max_seq_length {wanted} leaves no room for a text: {source} adds {special} special tokens to each"
        )
    transformer.max_seq_length = wanted
