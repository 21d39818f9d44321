"""The card of an exported model: what it is, how to use it, how it was made, and how much int8 lowers its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.model_cards import TAG
from common.models import ModelIdentity
from common.records import versions
from training.utils.export_options import INT8, ONNX, ExportConfig

KEPT = ("license", "license_name", "license_link", "language")  # keys copied from the original's metadata
MADE_WITH = ("torch", "transformers", "sentence-transformers", "tokenizers")


@dataclass(frozen=True)
class Loss:
    """The effect of int8 on a set of graded pairs: Spearman × 100 before and after, and the difference's 95% interval."""

    name: str
    pairs: int
    before: float
    after: float
    low: float
    high: float


def export_card(
    config: ExportConfig,
    identity: ModelIdentity,
    original: dict[str, Any],
    dim: int,
    dims: Sequence[int],
    losses: Sequence[Loss],
) -> str:
    """Return the README of an exported folder.

    Args:
        original: The metadata of the original model's card.
        dims: The remaining Matryoshka dimensions, largest first; empty if the model states none.
        losses: The effect of int8 on each set; empty for float32, and if there were no pairs to measure it on.
    """
    from huggingface_hub import ModelCardData

    onnx = config.format == ONNX
    on_hub = not Path(identity.source).is_dir()
    matryoshka = bool(dims) or TAG in (original.get("tags") or [])
    data = ModelCardData(
        library_name="onnx" if onnx else "sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", *([TAG] if matryoshka else [])],
        base_model=identity.name if on_hub else original.get("base_model"),
        **({"base_model_relation": "quantized"} if config.weights == INT8 else {}),
        **{key: original[key] for key in KEPT if key in original},
    )
    title = f"{identity.name}, {dim} dimensions{', ONNX' if onnx else ''}{', int8' if config.weights == INT8 else ''}"
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {title}",
        f"[{identity.name}](https://huggingface.co/{identity.name})" if on_hub else f"`{identity.name}`",
    ]
    parts[-1] += (
        f" (revision `{identity.revision}`), with its embeddings truncated to the first {dim} numbers and normalised."
    )
    parts += ["## Usage", ONNX_USAGE.replace("DIM", str(dim)) if onnx else st_usage(dim, dims)]
    if config.weights == INT8:
        parts += ["## Effect of int8 on the score", loss_table(losses)]
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items() if name in MADE_WITH)
    source = identity.name if on_hub else "MODEL"  # the card may be uploaded, so it must not contain a local path
    command = (
        f"python training/export_model.py {source} --dim {dim} --format {config.format} --weights {config.weights}"
    )
    parts += ["## How it was made", f"    {command}", f"With {made_with}."]
    return "\n\n".join(parts) + "\n"


def loss_table(losses: Sequence[Loss]) -> str:
    """Return the scores before and after quantisation as Markdown."""
    if not losses:
        return "Not measured, because there were no graded pairs (`--data`)."
    lines = ["| pairs | n | float32 | int8 | difference |", "|---|---:|---:|---:|---:|"]
    for loss in losses:
        difference = f"{loss.after - loss.before:+z.2f} [{loss.low:+z.2f}, {loss.high:+z.2f}]"
        lines.append(f"| {loss.name} | {loss.pairs} | {loss.before:.2f} | {loss.after:.2f} | {difference} |")
    return "\n".join(
        [*lines, "", "Spearman × 100 of the cosine similarities; in brackets the 95% interval (paired bootstrap)."]
    )


def st_usage(dim: int, dims: Sequence[int]) -> str:
    text = f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder, or its name on the Hub
embeddings = model.encode(["The sky is clear today", "السماء صافية اليوم"])  # unit vectors, shape (2, {dim})
print(model.similarity(embeddings, embeddings))
```"""
    if dims[1:]:
        smaller = ", ".join(map(str, dims[1:]))
        text += f"\n\nFor fewer dimensions ({smaller}), set `truncate_dim`, and pass `normalize_embeddings=True` to `encode`."
    return text


ONNX_USAGE = """With `pip install onnxruntime tokenizers numpy`, in this folder:

```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("model.onnx")
tokenizer = Tokenizer.from_file("tokenizer.json")
with open("prompts.json", encoding="utf-8") as file:
    prompts = json.load(file)


def embed(texts, prompt=prompts["default"]):
    \"\"\"Unit vectors, shape (texts, DIM). `prompt` is the name of a prompt, such as "query", or None.\"\"\"
    prefix = prompts["prompts"].get(prompt, "")
    encoded = tokenizer.encode_batch([prefix + text for text in texts])
    ids = np.array([text.ids for text in encoded], dtype=np.int64)
    mask = np.array([text.attention_mask for text in encoded], dtype=np.int64)
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


embeddings = embed(["The sky is clear today", "السماء صافية اليوم"])
print(embeddings @ embeddings.T)
```

Pooling, truncation and normalisation are in `model.onnx`; truncation and padding of the tokens are in `tokenizer.json`."""
