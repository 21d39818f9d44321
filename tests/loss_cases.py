"""Losses over embeddings, without a model, and their gradients on any device."""

from __future__ import annotations

import torch
from sentence_transformers.sentence_transformer import losses as st
from torch import nn

from training.utils.matryoshka_loss import MatryoshkaLoss

ROWS, WIDTH, DIMS = 6, 32, [32, 16, 8]


class Embedded(nn.Module):
    """Stands in for a model: its features already are embeddings."""

    device = torch.device("meta")

    def forward(self, features):
        return features

    def get_embedding_dimension(self) -> int:
        return WIDTH


def columns(device: str, count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens = {name: torch.ones(ROWS, 4, dtype=torch.long, device=device) for name in ("input_ids", "attention_mask")}
    embeddings = [torch.randn(ROWS, WIDTH, generator=generator).to(device).requires_grad_() for _ in range(count)]
    return [tokens | {"sentence_embedding": column} for column in embeddings]


def scores(device: str) -> torch.Tensor:
    return torch.linspace(0, 1, ROWS, device=device)


def classes(device: str) -> torch.Tensor:
    return torch.arange(ROWS, device=device) % 3


DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
CASES = {
    "pairs": (st.MultipleNegativesRankingLoss, {}, 2, None),
    "triplets": (st.MultipleNegativesRankingLoss, {}, 3, None),
    "all directions": (st.MultipleNegativesRankingLoss, {"directions": DIRECTIONS}, 3, None),
    "cosent": (st.CoSENTLoss, {}, 2, scores),
    "angle": (st.AnglELoss, {}, 2, scores),
    "cosine": (st.CosineSimilarityLoss, {}, 2, scores),
}


def gradients(device: str, build, options, count, labels, weight: float) -> list[torch.Tensor]:
    loss = MatryoshkaLoss(Embedded(), build(Embedded(), **options), DIMS, self_distillation_weight=weight)
    batch = columns(device, count)
    value = loss(batch, labels(device) if labels else None)
    assert value.shape == () and value.device.type == device
    value.backward()
    return [column["sentence_embedding"].grad for column in batch]
