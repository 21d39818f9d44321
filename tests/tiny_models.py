"""Tiny models with random weights, one of each kind that users have: ``make_model("decoder", folder)``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = [f"word{i}" for i in range(60)]
WIDTH, POSITIONS = 32, 32
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}


def tokenizer(special: dict[str, str], template: str | None = None, **options: Any) -> Any:
    """A word-level tokenizer; ``special`` is ``{"pad_token": "[PAD]", ...}``, ``template`` what is put around each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = list(dict.fromkeys([*special.values(), "[UNK]"]))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*names, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        used = [(name, names.index(name)) for name in names if name in template]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special, **options)


def bert_tokenizer() -> Any:
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return tokenizer(special, "[CLS] $A [SEP]", model_max_length=POSITIONS)


def decoder_tokenizer(pad: bool = True) -> Any:
    """Like Qwen3-Embedding's: pads on the left, and appends the end-of-text token, which also serves as padding."""
    special = {"eos_token": "<end>"} | ({"pad_token": "<end>"} if pad else {})
    return tokenizer(special, "$A <end>", padding_side="left" if pad else "right")


def save_plain(words: Any, name: str, folder: Path, dtype: str = "float32", **config: Any) -> None:
    """A transformer and its tokenizer as transformers saves them: ``name`` is ``Bert``, ``BertForMaskedLM``."""
    import torch
    import transformers

    torch.manual_seed(0)
    base = name.partition("For")[0].removesuffix("Model")
    values = getattr(transformers, f"{base}Config")(vocab_size=len(words), **config)
    model = getattr(transformers, name if "For" in name else f"{name}Model")(values)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    words.save_pretrained(folder)


def save_sentence(words: Any, name: str, folder: Path, pooling: str = "mean", more: tuple[Any, ...] = (),
                  truncate_dim: int | None = None, **config: Any) -> None:  # fmt: skip
    """The same, as sentence-transformers saves it, with pooling and ``more`` modules."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as plain:
        save_plain(words, name, Path(plain), **config)
        transformer = Transformer(plain, model_kwargs={"dtype": "auto"})
        pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
        model = SentenceTransformer(modules=[transformer, pool, *more], device="cpu", truncate_dim=truncate_dim)
        model.save_pretrained(str(folder))


def save_other(kind: str, name: str, folder: Path, **config: Any) -> None:
    """A model of another class of sentence-transformers, such as ``SparseEncoder``."""
    import sentence_transformers

    with tempfile.TemporaryDirectory() as plain:
        save_plain(bert_tokenizer(), name, Path(plain), **SIZES, max_position_embeddings=POSITIONS, **config)
        getattr(sentence_transformers, kind)(plain, device="cpu").save_pretrained(str(folder))


def encoder(folder: Path, **options: Any) -> None:
    save_sentence(bert_tokenizer(), "Bert", folder, **SIZES, max_position_embeddings=POSITIONS, **options)


def dense(folder: Path) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    torch.manual_seed(0)
    encoder(folder, more=(Dense(WIDTH, 24), Normalize()))


def roberta(folder: Path) -> None:
    """Two more rows of positions than tokens, and a tokenizer that names no limit; saved by transformers alone."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    words = tokenizer(special, "<s> $A </s>")
    save_plain(words, "XLMRoberta", folder, **SIZES, max_position_embeddings=POSITIONS + 2, pad_token_id=1)


def qwen(folder: Path) -> None:
    save_sentence(decoder_tokenizer(), "Qwen3", folder, "lasttoken", **GROUPED, max_position_embeddings=POSITIONS)


def gemma(folder: Path) -> None:
    """A window of 8 tokens on one layer (14 // 2 + 1), attention in both directions, as in EmbeddingGemma."""
    layers = ["sliding_attention", "full_attention"]
    window = {"sliding_window": 14, "layer_types": layers, "use_bidirectional_attention": True}
    save_sentence(decoder_tokenizer(), "Gemma3Text", folder, **GROUPED, **window, max_position_embeddings=POSITIONS)


def llama(folder: Path) -> None:
    """Without a padding token, and saved by transformers alone, as LLaMA is published."""
    save_plain(decoder_tokenizer(pad=False), "LlamaForCausalLM", folder, **GROUPED, max_position_embeddings=POSITIONS)


def gpt2(folder: Path) -> None:
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
    save_plain(decoder_tokenizer(pad=False), "GPT2", folder, **sizes, bos_token_id=0, eos_token_id=0)


def opt(folder: Path) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    sizes |= {"word_embed_proj_dim": WIDTH, "max_position_embeddings": POSITIONS}
    save_plain(decoder_tokenizer(), "OPT", folder, **sizes)


def static(folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    module = StaticEmbedding(bert_tokenizer().backend_tokenizer, embedding_dim=WIDTH)
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(folder))


def word_vectors(folder: Path) -> None:
    """Frozen, like GloVe vectors."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    vectors = np.random.default_rng(0).normal(size=(len(WORDS), WIDTH)).astype("float32")
    modules = [WordEmbeddings(WhitespaceTokenizer(WORDS, stop_words=[]), vectors), Pooling(WIDTH)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))


def stanford_colbert(folder: Path) -> None:
    """As ColBERT's authors publish it; the architecture's name identifies it."""
    save_plain(bert_tokenizer(), "Bert", folder, **SIZES, max_position_embeddings=POSITIONS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))


def colbert(folder: Path) -> None:
    """The form that PyLate publishes."""
    encoder(folder)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "ColBERT"}))


MODELS: dict[str, Callable[[Path], None]] = {
    "encoder": encoder,
    "encoder of transformers": lambda f: save_plain(
        bert_tokenizer(), "Bert", f, **SIZES, max_position_embeddings=POSITIONS
    ),
    "RoBERTa": roberta,
    "Qwen3": qwen,
    "Gemma": gemma,
    "LLaMA": llama,
    "GPT-2": gpt2,
    "OPT": opt,
    "static": static,
    "Dense and Normalize": dense,
    "half precision": lambda f: encoder(f, dtype="float16"),
    "bfloat16": lambda f: encoder(f, dtype="bfloat16"),
    "truncate_dim": lambda f: encoder(f, truncate_dim=16),
    "word vectors": word_vectors,
}
OTHER_KINDS: dict[str, Callable[[Path], None]] = {
    "sparse": lambda f: save_other("SparseEncoder", "BertForMaskedLM", f),
    "multi-vector": lambda f: save_other("MultiVectorEncoder", "Bert", f),
    "PyLate": colbert,
    "HF_ColBERT": stanford_colbert,
    "cross-encoder": lambda f: save_other("CrossEncoder", "BertForSequenceClassification", f, num_labels=1),
    "cross-encoder of three classes": lambda f: save_other(
        "CrossEncoder", "BertForSequenceClassification", f, num_labels=3
    ),
    "classifier": lambda f: save_plain(
        bert_tokenizer(), "BertForSequenceClassification", f, **SIZES, max_position_embeddings=POSITIONS, num_labels=3
    ),
}


def make_model(kind: str, folder: Path) -> Path:
    """Write the model into a new folder and return it."""
    folder.mkdir(parents=True)
    {**MODELS, **OTHER_KINDS}[kind](folder)
    return folder
