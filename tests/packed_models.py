"""Tiny models of the architectures that can be packed, and some that cannot; their loss and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import batch_to_device
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

TEXTS = [
    "a man walks",
    "the quick brown fox jumps over the lazy dog near the river bank today",
    "no",
    "two dogs run fast in the wide park",
    "hello there my friend of old",
    "a man walks his dog",
    "",
    " ".join(["word"] * 100),
]
COLUMNS = (TEXTS[:5], TEXTS[1:6], TEXTS[3:])
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
GEMMA = {
    **SIZES,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
ARCHITECTURES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "DistilBert": DISTILBERT,
    "Electra": {**SIZES, "embedding_size": 32},
    "ModernBert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 4},
    "MPNet": SIZES,
    "Qwen2": {**SIZES, "num_key_value_heads": 2},
    "Qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "Llama": {**SIZES, "num_key_value_heads": 1},
    "Mistral": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80},
    "Gemma3Text": GEMMA,
    "EmbeddingGemma": {**GEMMA, "use_bidirectional_attention": True},
    "BidirectionalQwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "is_causal": False},
    "Gemma2": {**GEMMA, "attn_logit_softcapping": 50.0},
}
CONFIGS = {"EmbeddingGemma": "Gemma3Text", "BidirectionalQwen3": "Qwen3"}
FALLS_BACK = ("MPNet", "Gemma2")  # relative positions; logits that are capped


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=list(specials.values())))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **specials)


def builder(root: Path) -> Callable[..., SentenceTransformer]:
    """``builder(root)("Bert", pooling="cls")``: a model with random weights, the same ones each time, and no dropout."""

    tokenizer = make_tokenizer()

    def make(name: str, pooling: str = "mean", **options) -> SentenceTransformer:
        folder = root / name
        if not folder.exists():
            torch.manual_seed(0)
            config = getattr(transformers, f"{CONFIGS.get(name, name)}Config")(
                vocab_size=len(tokenizer), **ARCHITECTURES[name]
            )
            transformers.AutoModel.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        transformer = Transformer(str(folder), **options)
        pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
        model = SentenceTransformer(modules=[transformer, pool], device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for attribute, value in list(vars(module).items()):
                if "dropout" in attribute and isinstance(value, float):
                    setattr(module, attribute, 0.0)
        return model

    return make


def loss_and_gradients(model: SentenceTransformer, loss: type, columns=COLUMNS):
    model.train()
    model.zero_grad()
    features = [batch_to_device(model.preprocess(list(texts)), model.device) for texts in columns]
    value = loss(model, st.MultipleNegativesRankingLoss(model), [32, 16, 8])(features, None)
    value.backward()
    return value.item(), {n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys() and first
    largest = max(float(gradient.abs().max()) for gradient in first.values())
    assert largest > 1e-3
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)
