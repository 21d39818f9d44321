"""The section of a model card about using fewer dimensions. Evaluation reads it back to add a recommended dimension."""

from __future__ import annotations

import re
from collections.abc import Sequence

TAG = "matryoshka"
PLACEHOLDER = "sentence_transformers_model_id"  # used as the name of a model that is not on the Hub yet
SECTION = re.compile(r"<!-- matryoshka: (?P<dims>\d+(?:, \d+)*) -->\n(?P<text>.*?)\n<!-- end -->", re.DOTALL)


def with_section(card: str, dims: Sequence[int], text: str) -> str:
    """Put a section into a card (Markdown with metadata): in place of an earlier one, or before the first level-2 heading.

    Args:
        dims: The dimensions that the model was trained for, the full width first.
        text: The result of :func:`usage`.
    """
    block = f"<!-- matryoshka: {', '.join(map(str, dims))} -->\n{text.strip()}\n<!-- end -->"
    if SECTION.search(card):
        return SECTION.sub(lambda _: block, card, count=1)
    heading = re.search(r"^## ", card, re.MULTILINE)
    if heading is None:
        return f"{card.rstrip()}\n\n{block}\n"
    return f"{card[: heading.start()]}{block}\n\n{card[heading.start() :]}"


def with_scores(card: str, dims: Sequence[int], scores: dict[str, list[float]]) -> str:
    """Add a table of scores by dimension after the section on fewer dimensions. A card without the section is returned unchanged.

    Args:
        dims: The dimensions, the full width first.
        scores: The score of each set at each dimension, from 0 to 1.
    """
    section = SECTION.search(card)
    if section is None or not scores:
        return card
    lines = [["dimensions", "bytes per float32 vector", *scores], ["---:"] * (2 + len(scores))]
    for index, dim in enumerate(dims):
        lines.append([str(dim), f"{4 * dim:,}", *(f"{100 * of_set[index]:.2f}" for of_set in scores.values())])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    text = (
        f"Scores × 100 at the end of training (Spearman correlation; for translations, retrieval accuracy):\n\n{table}"
    )
    return f"{card[: section.end()]}\n\n{text}{card[section.end() :]}"


def with_recommendation(card: str, dim: int) -> str:
    """Make the section recommend ``dim`` and show the code for it. A card without a section is returned unchanged."""
    section = SECTION.search(card)
    model_id = section and re.search(r'SentenceTransformer\("(.*?)"', section["text"])
    if not model_id:
        return card
    dims = [int(text) for text in section["dims"].split(", ")]
    return with_section(card, dims, usage(model_id[1], dims, served="vllm serve" in section["text"], recommended=dim))


def usage(model_id: str, dims: Sequence[int], served: bool, recommended: int | None = None) -> str:
    """Describe in Markdown how to use a model at fewer dimensions.

    Args:
        model_id: The model's name on the Hub, or its folder.
        dims: The dimensions that it was trained for, the full width first, and at least one below it.
        served: Whether the model is a transformer, which embedding servers can load.
        recommended: The dimension that an evaluation recommends; the code uses it if it is below the full width.
    """
    dim = recommended if recommended is not None and recommended < dims[0] else dims[1]
    advice = f"The code below uses {dim} dimensions."
    if recommended is not None:
        advice = f"The evaluation of this model recommends {recommended}. {advice}"
    text = f"""## Fewer dimensions

The first numbers of an embedding form a smaller embedding. The model was trained for {dims[0]} dimensions and for prefixes
of {", ".join(map(str, dims[1:]))}. {advice}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model_id}", truncate_dim={dim})
embeddings = model.encode(["The sky is clear today"], normalize_embeddings=True)  # shape (1, {dim})
```

A prefix is not a unit vector. The code therefore sets `normalize_embeddings`, which dot products and Euclidean distances need
and cosine similarity does not.
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
