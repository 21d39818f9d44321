"""Packs batches: the transformer processes only the real tokens of a batch, without padding.

When the rows of a batch of NLI sentences are padded to the longest, most of the batch is padding. Here the rows are sorted by
length and their tokens are concatenated into one sequence. Every layer except attention processes tokens independently and needs
no change. Attention, bidirectional or causal, is computed within each row: on a GPU by one kernel for all rows where possible,
otherwise for each group of rows of equal length. Without dropout, values and
gradients equal those of the padded batch up to rounding. Krell et al., 2021 (https://arxiv.org/abs/2107.02027) introduced the
idea for pre-training.

:func:`pack` checks that the model embeds a text in a packed batch as it does on its own. If not, it falls back to chunks of rows
of similar length. If these also change the embeddings, it falls back to the padded batches of sentence-transformers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import RunError, one_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

ATTENTION = "packed_sdpa"
# the key under which a batch carries a copy of its attention mask in CPU memory, a Boolean array
HOST_MASK = "host_mask"
KERNELS = 64  # compiled kernels that PyTorch and oneDNN keep for each operation; a step of BERT needs a dozen
CHUNK_ROWS = 32  # rows per chunk, for models that cannot be packed
KNOWN_LAYERS = {
    "full_attention",
    "sliding_attention",
}  # other types, such as chunked attention, may fail only for texts longer than those in TRIAL
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # options of Gemma 2, GPT-OSS and T5
# texts whose embeddings must be the same whether packed or alone; the last one exceeds the local attention window of most models
TRIAL = ("word", "a few words more", "one two three four five six seven eight nine ten", "a long text " * 150)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_groups: list[tuple[int, int]] | None = None,
    row_offsets: Tensor | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention within each row of a packed sequence. This is an attention function for transformers.

    Args:
        module: The attention layer; ``is_causal`` says whether tokens attend only to earlier ones.
        query: Tensor of shape ``[1, heads, tokens, head_dim]``.
        key, value: Tensors of the same shape, or with fewer heads (grouped-query attention).
        row_groups: ``(rows, length)`` of each group of rows of equal length, shortest first; the sum of
            ``rows * length`` is ``tokens``.
        row_offsets: The start of each row and the end of the last, int32, shape ``[rows + 1]``; used on GPUs.
        sliding_window: Tokens attend to each other only if their distance is below this number.
        is_causal: Overrides the attribute of the layer.

    Returns:
        A tensor of shape ``[1, tokens, heads, head_dim]``, and None in place of the attention weights.

    Raises:
        ValueError: The layer passes an option that this function does not support.
        RuntimeError: The model was called directly, without ``row_groups``.
    """
    if row_groups is None:
        raise RuntimeError("this model is set up for packed batches: call it through SentenceTransformer")
    if unsupported := [name for name in UNSUPPORTED if options.get(name) is not None]:
        raise ValueError(f"packed attention does not support {unsupported[0]}")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    causal = bool(causal) and getattr(getattr(module, "config", None), "is_causal", True) is not False
    if torch.is_autocast_enabled(query.device.type):  # queries and keys may be float32, after a norm or a rotation
        precision = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(precision), key.to(precision), value.to(precision)
    if key.shape[1] != query.shape[1]:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    longest = row_groups[-1][1]
    window = None if sliding_window is None or longest <= sliding_window else sliding_window
    if query.is_cuda and (kernel := _kernel(query, window)) is not None:
        states = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return kernel(*states, row_offsets, longest, scaling, dropout, causal, window)[None], None
    sizes = [rows * length for rows, length in row_groups]
    split = [tensor[0].transpose(0, 1).split(sizes) for tensor in (query, key, value)]
    outputs = []
    for (rows, length), *states in zip(row_groups, *split, strict=True):
        q, k, v = (state.unflatten(0, (rows, length)).transpose(1, 2) for state in states)
        mask = None
        if window is not None and length > window:
            position = torch.arange(length, device=q.device)
            distance = position[:, None] - position[None, :]
            mask = (distance.abs() < window) & (distance >= 0 if causal else True)
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=causal and mask is None
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def _kernel(query: Tensor, window: int | None) -> Callable[..., Tensor] | None:
    """Return the function that computes the attention of all rows in one kernel on this GPU, or None.

    Launching a kernel for each group of rows takes longer than the arithmetic.
    """
    head_dim = query.shape[-1]
    if head_dim % 8:
        return None
    half = query.dtype in (torch.float16, torch.bfloat16)
    flash = torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(query.device) >= (
        8,
        0,
    )
    if half and flash and head_dim <= 128:
        return flash_attention
    return efficient_attention if window is None else None


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    longest: int,
    scaling: float | None,
    dropout: float,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Compute attention within each row in half precision on a GPU, with PyTorch's FlashAttention kernel.

    ``torch.nn.attention.varlen_attn`` calls the same kernel, but without dropout.

    Args:
        query, key, value: Tensors of shape ``[tokens, heads, head_dim]``.
        row_offsets: The start of each row and the end of the last, int32, shape ``[rows + 1]``.
        longest: The number of tokens of the longest row.

    Returns:
        A tensor of shape ``[tokens, heads, head_dim]``.
    """
    reach = None if window is None else window - 1
    return torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        row_offsets,
        row_offsets,
        longest,
        longest,
        dropout,
        causal,
        False,
        scale=scaling,
        window_size_left=reach,
        window_size_right=0 if causal and window is not None else reach,
    )[0]


def efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    longest: int,
    scaling: float | None,
    dropout: float,
    causal: bool = False,
    window: None = None,
) -> Tensor:
    """Compute attention as :func:`flash_attention` does, in any precision but without a window, with PyTorch's memory-efficient kernel."""
    return torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,
        row_offsets,
        row_offsets,
        longest,
        longest,
        dropout,
        int(causal),
        True,
        scale=scaling,
    )[0][0]


def pack(model: SentenceTransformer, train_dtype: torch.dtype | None = None) -> SentenceTransformer:
    """Make a model process only real tokens, in training and in encoding, and train in ``train_dtype``.

    This changes only the object and the number of compiled kernels that the process keeps, not the saved model. Models
    without token embeddings (static models, CLIP) and batches other than padded text are not affected.

    Args:
        model: The model; it is changed in place.
        train_dtype: The precision of matrix products in training; None for that of the weights. Evaluation always uses the
            precision of the weights.

    Returns:
        The same model.

    Raises:
        RunError: The model cannot embed a text, or its embeddings are not finite.
    """
    transformer = model[0]
    if not hasattr(transformer, "auto_model") or isinstance(transformer.__dict__.get("forward"), _Forward):
        return model
    if getattr(transformer, "module_output_name", "token_embeddings") != "token_embeddings":
        return model
    # on a CPU, oneDNN compiles a bfloat16 kernel for each new shape, hence for each packed batch; by default it keeps 1,024 of
    # them, each 0.7 MiB in size
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KERNELS))
    forward = _Forward(transformer, train_dtype)
    try:
        alone = torch.cat([_embed(model, [text]) for text in TRIAL])
    except Exception as error:  # unknown architectures can raise anything, and token ids may exceed the embedding table
        raise RunError(f"the model cannot embed a text: {type(error).__name__}: {one_line(error, 200)}") from None
    if not torch.isfinite(alone).all():
        raise RunError("the model produced NaN or infinite embeddings: its weights are corrupt")
    transformer.forward = forward
    if forward.use_packing() and _same(alone, model):
        return model
    forward.use_chunks()
    how = "chunks of rows of similar length"
    if not _same(alone, model):
        forward.use_padding()
        how = "padded batches"
    logger.info("%s cannot be packed: processing %s instead", type(transformer.auto_model).__name__, how)
    return model


def _embed(model: SentenceTransformer, texts: Sequence[str], in_training_precision: bool = False) -> Tensor:
    training = model.training
    model.eval()
    model[0].training = in_training_precision  # of this module alone: its layers still apply no dropout
    with torch.no_grad():
        features = {
            key: value.to(model.device) if isinstance(value, Tensor) else value
            for key, value in model.preprocess(list(texts)).items()
        }
        embeddings = model(features)["sentence_embedding"]
    model.train(training)
    return embeddings.float()


def _same(alone: Tensor, model: SentenceTransformer) -> bool:
    """Return whether each trial text has the same embedding in a batch as on its own."""
    try:
        together = _embed(model, TRIAL)
    except (
        TypeError,
        RuntimeError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:  # the architecture or a module after it does not accept an argument or a shape, or lacks an input
        logger.debug("packing failed: %s", error)
        return False
    if alone.device.type == "cuda" and not _same_in_training_precision(alone, model):
        return False
    exact = next(model.parameters()).dtype == torch.float32 and alone.device.type == "cpu"
    tolerance = 1e-4 if exact else 3e-2  # GPUs may use TF32
    return together.shape == alone.shape and torch.allclose(
        alone, together, atol=tolerance * float(alone.abs().max()), rtol=0
    )


def _same_in_training_precision(alone: Tensor, model: SentenceTransformer) -> bool:
    """Return whether the trial texts have nearly the same embeddings in the precision of training, which has its own kernels."""
    in_training = _embed(model, TRIAL, in_training_precision=True)
    return bool((torch.cosine_similarity(alone, in_training, dim=-1) > 0.98).all())


def register() -> None:
    """Register the attention function of packed batches with transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


@dataclass
class Layout:
    """Where the tokens of a padded batch are in its packed sequence, in which the rows are sorted by length.

    It is computed on the CPU, so that nothing waits for the GPU if the CPU already has the attention mask.

    Attributes:
        tokens: For each token of the sequence, its index in the flattened batch.
        positions: The position of each token in its row, plus the model's first position.
        back: For each token in the original order, its index in the sequence.
        row_of_token: For each token in the original order, its row.
        cu_seq_lens: The start of each row, and the end of the last, in the original order.
        row_offsets: The same in the order of the sequence, int32.
        row_groups: ``(rows, length)`` of each group of rows of equal length, shortest first.
    """

    tokens: Tensor
    positions: Tensor
    back: Tensor
    row_of_token: Tensor
    cu_seq_lens: Tensor
    row_offsets: Tensor
    row_groups: list[tuple[int, int]]

    @classmethod
    def of(cls, mask: np.ndarray, first_position: int, device: torch.device) -> Layout:
        """Return the layout of a batch.

        Args:
            mask: True for tokens, False for padding, shape ``[rows, width]``.
            first_position: The position of the first token of a row.
            device: Where the tensors go.
        """
        lengths = mask.sum(axis=1)
        order = lengths.argsort(kind="stable")
        ends, sorted_ends = lengths.cumsum(), lengths[order].cumsum()
        position = np.arange(lengths.sum()) - np.repeat(sorted_ends - lengths[order], lengths[order])
        original = np.repeat((ends - lengths)[order], lengths[order]) + position
        back = np.empty_like(original)
        back[original] = np.arange(len(original))
        parts = (
            np.flatnonzero(mask)[original],
            position + first_position,
            back,
            np.repeat(np.arange(len(lengths)), lengths),
            np.append(0, ends),
            np.append(0, sorted_ends),
        )
        # one copy to the device, which does not wait for the GPU if it starts from pinned memory
        together = torch.from_numpy(np.concatenate(parts))
        if device.type == "cuda":
            together = together.pin_memory()
        *tensors, row_offsets = together.to(device, non_blocking=True).split([len(part) for part in parts])
        length, rows = np.unique(lengths, return_counts=True)
        return cls(*tensors, row_offsets.int(), list(zip(rows.tolist(), length.tolist(), strict=True)))


class _Forward:
    """Replaces the ``forward`` of a Transformer module."""

    def __init__(self, transformer: nn.Module, train_dtype: torch.dtype | None):
        self.transformer, self.train_dtype = transformer, train_dtype
        self.original: Callable[..., dict[str, Any]] = transformer.forward
        self.attention = transformer.auto_model.config._attn_implementation
        self.run = self._packed
        register()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        register()  # this may be another process, which encodes in parallel

    def use_packing(self) -> bool:
        config = self.transformer.auto_model.config
        if not set(getattr(config, "layer_types", None) or ()) <= KNOWN_LAYERS:
            return False
        try:
            self.transformer.auto_model.set_attn_implementation(ATTENTION)
        except (ValueError, AttributeError, ImportError):
            return False
        return self.transformer.auto_model.config._attn_implementation == ATTENTION

    def use_chunks(self) -> None:
        self.transformer.auto_model.set_attn_implementation(self.attention)
        self.run = self._chunked

    def use_padding(self) -> None:
        self.run = self._padded

    def __call__(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        mask = features.get("attention_mask")
        ids = features.get("input_ids")
        if mask is None or ids is None or ids.ndim != 2 or mask.shape != ids.shape or "cu_seq_lens_q" in features:
            return self.original(features, **kwargs)
        # a copy, because the caller may pass these texts to another model, which needs the padded features
        features = dict(features)
        dtype = self.train_dtype if self.transformer.training and self.train_dtype != torch.float32 else None
        with torch.autocast(ids.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return self.run(features, mask.bool(), **kwargs)

    def _padded(self, features: dict[str, Any], mask: Tensor, **kwargs: Any) -> dict[str, Any]:
        return self.original(features, **kwargs)

    def _packed(self, features: dict[str, Any], mask: Tensor, **kwargs: Any) -> dict[str, Any]:
        known = features.pop(HOST_MASK, None)
        if known is None or known.shape != mask.shape:
            known = mask.cpu().numpy()  # waits for the GPU
        layout = Layout.of(known, self._position_offset(), mask.device)
        inputs = {
            key: features[key].flatten().index_select(0, layout.tokens)[None]
            for key in ("input_ids", "token_type_ids")
            if key in features and self._takes(key)
        }
        model = self.transformer.auto_model
        output = model(
            **inputs,
            position_ids=layout.positions[None],
            row_groups=layout.row_groups,
            row_offsets=layout.row_offsets,
            **(
                {"attention_mask": {"full_attention": None, "sliding_attention": None}}
                if model.config.model_type == "modernbert"
                else {}
            ),
        )
        # restore the order of the rows, still without padding: pooling finds them with cu_seq_lens_q and seq_idx
        features["token_embeddings"] = output[0][0].index_select(0, layout.back)[None]
        if layers := getattr(output, "hidden_states", None):  # for WeightedLayerPooling
            features["all_layer_embeddings"] = tuple(layer[0].index_select(0, layout.back)[None] for layer in layers)
        features["cu_seq_lens_q"] = layout.cu_seq_lens
        features["seq_idx"] = layout.row_of_token[None]
        return features

    def _takes(self, key: str) -> bool:
        parameters = getattr(self.transformer, "model_forward_params", None)
        return parameters is None or key in parameters

    def _position_offset(self) -> int:
        """Return the first position: models of the RoBERTa family start after the padding index."""
        for module in self.transformer.auto_model.modules():
            index = getattr(module, "padding_idx", None)
            if isinstance(index, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
                return index + 1
        return 0

    def _chunked(self, features: dict[str, Any], mask: Tensor, **kwargs: Any) -> dict[str, Any]:
        lengths = mask.sum(dim=1)
        order = torch.argsort(lengths, stable=True)
        rows, width = mask.shape
        chunks = []
        for index in order.split(CHUNK_ROWS):
            used = mask[index].any(dim=0).nonzero()  # the tokenizer may pad on the left
            start, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, width)
            part = {
                key: value[index][:, start:end] if isinstance(value, Tensor) and value.shape == mask.shape else value
                for key, value in features.items()
            }
            output = self.original(part, **kwargs)
            # the last layer, and every layer for WeightedLayerPooling
            layers = [output["token_embeddings"], *output.get("all_layer_embeddings", ())]
            chunks.append([F.pad(layer, (0, 0, start, width - end)) for layer in layers])
        back = torch.empty_like(order)
        back[order] = torch.arange(rows, device=order.device)
        last, *others = (torch.cat(layer).index_select(0, back) for layer in zip(*chunks, strict=True))
        features["token_embeddings"] = last
        if others:
            features["all_layer_embeddings"] = tuple(others)
        return features
