"""Loads the model to train, and chooses the precision."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from common.data_files import text_columns
from common.errors import RunError
from common.models import identify, load_model
from common.precision import slowdown, warn_if_slow
from training.utils.lora import add_lora
from training.utils.option_checks import check_static
from training.utils.options import STATIC, TrainingConfig, loading_options
from training.utils.prune_vocabulary import prune_vocabulary
from training.utils.vocabulary import extend_vocabulary, normalize_arabic

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# pairs of columns whose sentences may be translations of each other
MAY_BE_TRANSLATIONS = (("anchor", "positive"), ("sentence", "translation"))


def load_base_model(config: TrainingConfig, *datasets: Dataset) -> SentenceTransformer:
    """Load the model to start from, or create static embeddings from the training texts.

    A transformer without pooling gets mean pooling, or that of the last token if it is a decoder. ``--extend_vocabulary``
    initialises new word pieces from translations in the training data. ``--lora_r`` adds an adapter and freezes all
    other weights.

    Raises:
        RunError: The model cannot be loaded, has no trainable weights, or does not support a key.
    """
    texts = texts_of(datasets)  # read only if they are needed
    if config.model_name == STATIC:
        return make_static_model(texts, config.static_embedding_dim, config.static_vocab_size, config.seed)
    identity = identify(config.model_name, config.max_seq_length)
    model = load_model(config.model_name, identity, **loading_options(config))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RunError(
            f"model {config.model_name}: all of its weights are frozen, so there is nothing to train: choose another model"
        )
    if is_static(model):
        check_static(config)
    if config.normalize_arabic:
        normalize_arabic(model)
    if config.extend_vocabulary:
        pairs = _pairs(datasets) if config.align_vocabulary else ()
        extend_vocabulary(model, texts, config.extend_vocabulary, pairs)
    if config.prune_vocabulary:
        prune_vocabulary(model, texts_of(datasets))
    add_lora(model, config)
    return model


def texts_of(datasets: Iterable[Dataset]) -> Iterator[str]:
    """Yield every text of some data sets, column by column."""
    for dataset in datasets:
        for column in text_columns(dataset):
            yield from dataset[column]


def _pairs(datasets: Iterable[Dataset]) -> Iterator[tuple[str, str]]:
    """Yield every pair of sentences that may be translations of each other."""
    for dataset in datasets:
        for first, second in MAY_BE_TRANSLATIONS:
            if {first, second} <= set(dataset.column_names):
                yield from zip(dataset[first], dataset[second], strict=True)


def make_static_model(texts: Iterable[str], embedding_dim: int, vocab_size: int, seed: int) -> SentenceTransformer:
    """Create static embeddings with random weights: a text's embedding is the mean of its word pieces' vectors.

    They train in minutes without a GPU (Aarsen, 2025, https://huggingface.co/blog/static-embeddings). The word pieces are learnt
    from ``texts``, so that no download is needed.

    Args:
        texts: The texts to learn the word pieces from.
        embedding_dim: Width of the embeddings.
        vocab_size: The largest number of word pieces.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Byte-pair encoding with a mark before each word, because its trainer is deterministic and the WordPiece trainer is not.
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    # NFKD separates accents and Arabic vowel signs from letters; they are removed, and so is the tatweel.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace("\u0640", ""), normalizers.Lowercase()]
    )
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), metaspace])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(tokenizer.get_vocab_size(), embedding_dim, generator=generator)
    logger.info("static embeddings: %d word pieces of %d dimensions", *weights.shape)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def is_static(model: SentenceTransformer) -> bool:
    return type(model[0]).__name__ == "StaticEmbedding"


def choose_precision(wanted: str, model: SentenceTransformer) -> torch.dtype:
    """Return the data type that ``--precision`` selects for matrix products in training.

    ``auto`` chooses bfloat16 if the GPU supports it, or if the CPU has instructions for it and is faster with them; float16 on
    older GPUs; and float32 otherwise and for static embeddings, which have no matrix products. Weights and evaluation remain in
    float32. If bfloat16 was requested and is slower than float32 on this CPU, the log says by how much.

    Raises:
        RunError: The hardware does not support the precision.
    """
    import torch

    device = model.device.type
    if wanted == "auto":
        if is_static(model):
            wanted = "fp32"
        elif device == "cuda":
            wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            fast = device == "cpu" and cpu_has_bfloat16() and slowdown(torch.bfloat16) < 1
            wanted = "bf16" if fast else "fp32"
    if wanted == "fp16" and device != "cuda":
        raise RunError(f"--precision fp16 needs a GPU, but the device is {device}: use bf16 or fp32")
    if wanted == "bf16" and device == "cpu" and not is_static(model):
        warn_if_slow("--precision bf16", torch.bfloat16)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 if the GPU has it
    logger.info("training on %s in %s", device, wanted)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def cpu_has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16 products (AVX512-BF16 or AMX)."""
    import torch

    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
