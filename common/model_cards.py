"""The section of a model's card on using fewer dimensions. It can be read back, so that an evaluation can recommend one."""

from __future__ import annotations

import re
from collections.abc import Sequence

TAG = "matryoshka"
PLACEHOLDER = "sentence_transformers_model_id"  # what a card calls a model that has no name on the Hub yet
SECTION = re.compile(r"<!-- matryoshka: (?P<dims>\d+(?:, \d+)*) -->\n(?P<text>.*?)\n<!-- end -->", re.DOTALL)


def with_section(card: str, dims: Sequence[int], text: str) -> str:
    """A card (Markdown, with its metadata) with a section in place of an earlier one, or before its first level-2 heading.

    Args:
        dims: The dimensions that the model was trained for, the full width first.
        text: What :func:`usage` gives.
    """
    block = f"<!-- matryoshka: {', '.join(map(str, dims))} -->\n{text.strip()}\n<!-- end -->"
    if SECTION.search(card):
        return SECTION.sub(lambda _: block, card, count=1)
    heading = re.search(r"^## ", card, re.MULTILINE)
    if heading is None:
        return f"{card.rstrip()}\n\n{block}\n"
    return f"{card[: heading.start()]}{block}\n\n{card[heading.start() :]}"


def with_scores(card: str, dims: Sequence[int], scores: dict[str, list[float]]) -> str:
    """A card with a table of scores by dimension after its section on fewer dimensions; one without the section stays as it is.

    Args:
        dims: The dimensions, the full width first.
        scores: For each set its score at each dimension, from 0 to 1.
    """
    section = SECTION.search(card)
    if section is None or not scores:
        return card
    lines = [["dimensions", "bytes per float32 vector", *scores], ["---:"] * (2 + len(scores))]
    for index, dim in enumerate(dims):
        lines.append([str(dim), f"{4 * dim:,}", *(f"{100 * of_set[index]:.2f}" for of_set in scores.values())])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    text = f"Scores × 100 at the end of training (Spearman correlation; for translations, the share found):\n\n{table}"
    return f"{card[: section.end()]}\n\n{text}{card[section.end() :]}"


def with_recommendation(card: str, dim: int) -> str:
    """A card whose section recommends ``dim`` and has the code for it; one without a section stays as it is."""
    section = SECTION.search(card)
    model_id = section and re.search(r'SentenceTransformer\("(.*?)"', section["text"])
    if not model_id:
        return card
    dims = [int(text) for text in section["dims"].split(", ")]
    return with_section(card, dims, usage(model_id[1], dims, served="vllm serve" in section["text"], recommended=dim))


def usage(model_id: str, dims: Sequence[int], served: bool, recommended: int | None = None) -> str:
    """How to use a model at fewer dimensions, as Markdown.

    Args:
        model_id: What loads the model: its name on the Hub, or its folder.
        dims: The dimensions that it was trained for, the full width first, and at least one below it.
        served: The model is a transformer, which embedding servers load.
        recommended: The dimension that an evaluation recommends; the code is for this one where it is below the full width.
    """
    dim = recommended if recommended is not None and recommended < dims[0] else dims[1]
    advice = f"This is the code for {dim}."
    if recommended is not None:
        advice = f"The evaluation of this model recommends {recommended}. {advice}"
    text = f"""## Fewer dimensions

The first numbers of an embedding are an embedding by themselves. The model was trained for {dims[0]} dimensions and, as
prefixes of these, for {", ".join(map(str, dims[1:]))}. {advice}

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
