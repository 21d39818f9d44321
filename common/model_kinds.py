"""What kind of model a model's own files say it is. Only dense bi-encoders have a Matryoshka prefix to train and score.

sentence-transformers loads any of the others as a dense model all the same: it puts mean pooling on top of the encoder that
is inside of it, and the embeddings mean nothing.
"""

from __future__ import annotations

from common.errors import RunError
from common.model_files import ModelFiles

DENSE = "SentenceTransformer"
SPARSE, MULTI_VECTOR, CROSS_ENCODER = "SparseEncoder", "MultiVectorEncoder", "CrossEncoder"
INSTEAD = {
    SPARSE: "a sparse encoder (one weight for each word of a vocabulary, as SPLADE has)",
    MULTI_VECTOR: "a multi-vector model (one vector for each token, as ColBERT has)",
    CROSS_ENCODER: "a cross-encoder or classifier (it scores a pair of texts, and gives no embedding of a text)",
}
# the transformer_task of sentence_bert_config.json
TASKS = {
    "fill-mask": SPARSE,
    "retrieval": MULTI_VECTOR,
    "sequence-classification": CROSS_ENCODER,
    "text-generation": CROSS_ENCODER,
    "any-to-any": CROSS_ENCODER,
}
# parts of a module's type in modules.json
MODULES = {
    "sentence_transformers.sparse_encoder.": SPARSE,
    "SpladePooling": SPARSE,
    "sentence_transformers.multi_vector_encoder.": MULTI_VECTOR,
    "pylate.": MULTI_VECTOR,
    "sentence_transformers.cross_encoder.": CROSS_ENCODER,
}
# endings of the architectures in config.json; behind modules.json these are only where the weights came from
ARCHITECTURES = {
    "ForSequenceClassification": CROSS_ENCODER,
    "ForRetrieval": MULTI_VECTOR,
    "ColBERT": MULTI_VECTOR,
    "ForMaskedLMSplade": SPARSE,
}


def refuse_other_kinds(files: ModelFiles) -> None:
    """Raise :class:`RunError` where a model's files say that it is not a dense bi-encoder for text.

    Reads only the JSON files, so nothing large is downloaded before the answer.
    """
    kind, where = kind_of(files)
    if kind != DENSE:
        what = INSTEAD.get(kind, f"a {kind}")
        use = f", or load it with sentence_transformers.{kind}" if kind in INSTEAD else ""
        raise RunError(
            f"model {files.source}: {where} says that it is {what}: give a dense embedding model, or the encoder that "
            f"this one was made from{use}"
        )
    modalities = files.object("sentence_bert_config.json").get("modality_config")
    if isinstance(modalities, dict) and not {"text", "message"} & set(modalities):
        raise no_text(files.source, modalities)


def kind_of(files: ModelFiles) -> tuple[str, str]:
    """The kind of a model, as sentence-transformers names its classes, and what says so."""
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
    return RunError(f"model {source}: it takes no text ({known}): give an embedding model for text")
