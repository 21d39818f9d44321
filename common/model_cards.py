"""The part of a model's card that tells how to use fewer dimensions."""

from __future__ import annotations

import re
from collections.abc import Sequence

TAG = "matryoshka"
PLACEHOLDER = "sentence_transformers_model_id"  # what a card calls a model that has no name on the Hub yet
BEGIN, END = "<!-- matryoshka -->", "<!-- end of matryoshka -->"
SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def with_section(card: str, section: str) -> str:
    """A card (Markdown, with its metadata) with ``section`` in place of an earlier one, or before its first heading of level 2."""
    block = f"{BEGIN}\n{section.strip()}\n{END}"
    if SECTION.search(card):
        return SECTION.sub(lambda _: block, card, count=1)
    heading = re.search(r"^## ", card, re.MULTILINE)
    if heading is None:
        return f"{card.rstrip()}\n\n{block}\n"
    return f"{card[: heading.start()]}{block}\n\n{card[heading.start() :]}"


def usage_section(model_id: str, dims: Sequence[int], dim: int, recommended: bool, served: bool) -> str:
    """How to use a model at ``dim`` of its dimensions.

    Args:
        model_id: What loads the model: its name on the Hub, or its folder.
        dims: The dimensions that it was trained for, the full width first.
        dim: The dimension of the snippets.
        recommended: An evaluation recommends ``dim``. Otherwise it is an example.
        served: The model is a transformer, which embedding servers load.
    """
    smaller = ", ".join(map(str, dims[1:])) or "none"
    reason = "which an evaluation recommends" if recommended else "as an example"
    text = f"""## Fewer dimensions

The first numbers of an embedding are an embedding by themselves. The model was trained for {dims[0]} dimensions and, as
prefixes of these, for {smaller}. This is how to use {dim}, {reason}:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model_id}", truncate_dim={dim})
embeddings = model.encode(["The sky is clear today"], normalize_embeddings=True)  # shape (1, {dim})
```

A prefix is shorter than 1, hence `normalize_embeddings`: cosine similarity does not need it, dot products and Euclidean
distances do.
"""
    if served:
        text += f"""
vLLM accepts `dimensions` in a request, since `config.json` has `matryoshka_dimensions`:

```bash
vllm serve {model_id} --runner pooling
curl http://localhost:8000/v1/embeddings -H "Content-Type: application/json" \\
  -d '{{"model": "{model_id}", "input": "The sky is clear today", "dimensions": {dim}}}'
```
"""
    return text
