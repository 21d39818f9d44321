"""Determines from a model's files what kind of model it is. Only dense bi-encoders have prefixes to train and score.

sentence-transformers loads every other kind as a dense model too: it adds mean pooling to the underlying encoder, and the
resulting embeddings are meaningless.
"""

from __future__ import annotations

from common.errors import RunError
from common.model_files import ModelFiles

DENSE = "SentenceTransformer"
SPARSE, MULTI_VECTOR, CROSS_ENCODER = "SparseEncoder", "MultiVectorEncoder", "CrossEncoder"
INSTEAD = {
    SPARSE: "a sparse encoder (one weight for each word of a vocabulary, like SPLADE)",
    MULTI_VECTOR: "a multi-vector model (one vector for each token, like ColBERT)",
    CROSS_ENCODER: "a cross-encoder or classifier (it scores texts or pairs of texts, and produces no embeddings)",
}
# values of transformer_task in sentence_bert_config.json
TASKS = {
    "fill-mask": SPARSE,
    "retrieval": MULTI_VECTOR,
    "sequence-classification": CROSS_ENCODER,
    "text-generation": CROSS_ENCODER,
    "any-to-any": CROSS_ENCODER,
}
# substrings of a module's type in modules.json
MODULES = {
    "sentence_transformers.sparse_encoder.": SPARSE,
    "SpladePooling": SPARSE,
    "sentence_transformers.multi_vector_encoder.": MULTI_VECTOR,
    "pylate.": MULTI_VECTOR,
    "sentence_transformers.cross_encoder.": CROSS_ENCODER,
}
# suffixes of the architecture in config.json; if there is a modules.json, they only say where the weights came from
ARCHITECTURES = {
    "ForSequenceClassification": CROSS_ENCODER,
    "ForRetrieval": MULTI_VECTOR,
    "ColBERT": MULTI_VECTOR,
    "ForMaskedLMSplade": SPARSE,
}


def refuse_other_kinds(files: ModelFiles) -> None:
    """Raise :class:`RunError` if, according to its files, a model is not a dense bi-encoder for text.

    Reads only the JSON files, so that nothing large is downloaded first.
    """
    kind, where = kind_of(files)
    if kind != DENSE:
        what = INSTEAD.get(kind, f"a {kind}")
        use = f", or load this model with sentence_transformers.{kind}" if kind in INSTEAD else ""
        raise RunError(
            f"model {files.source} is {what}, according to {where}: use a dense embedding model, or the encoder that "
            f"this model is based on{use}"
        )
    modalities = files.object("sentence_bert_config.json").get("modality_config")
    if isinstance(modalities, dict) and not {"text", "message"} & set(modalities):
        raise no_text(files.source, modalities)


def kind_of(files: ModelFiles) -> tuple[str, str]:
    """Return the kind of a model, by the name of its sentence-transformers class, and the file that determines it."""
    name = "config_sentence_transformers.json"
    kind = files.object(name).get("model_type", DENSE)
    if kind != DENSE:
        return {"ColBERT": MULTI_VECTOR}.get(kind, str(kind)), f"{name} ({kind})"
    for module in files.modules:
        for part, kind in MODULES.items():
            if part in str(module.get("type")):
                return kind, f"modules.json ({str(module['type']).rpartition('.')[2]})"
    name = "sentence_bert_config.json"
    task = files.object(name).get("transformer_task")
    if task in TASKS:
        return TASKS[task], f"{name} ({task})"
    name = "adapter_config.json"
    if files.object(name).get("task_type") == "SEQ_CLS":
        return CROSS_ENCODER, f"{name} (SEQ_CLS)"
    if not files.modules:
        config = files.object("config.json")
        for architecture in config.get("architectures") or []:
            for ending, kind in ARCHITECTURES.items():
                if str(architecture).endswith(ending):
                    labels = len(config.get("id2label") or ()) or config.get("num_labels")
                    of = f", {labels} label{'s' * (labels != 1)}" if kind == CROSS_ENCODER and labels else ""
                    return kind, f"config.json ({architecture}{of})"
    return DENSE, ""


def no_text(source: str, modalities: object) -> RunError:
    known = ", ".join(sorted(map(str, modalities or ())))
    return RunError(f"model {source} does not accept text, only {known or 'other inputs'}: use a text embedding model")
