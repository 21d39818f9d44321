"""Distillation of similarities: every prefix learns the similarities that the teacher has at its full width.

Distilling embeddings turns a prefix towards the teacher's prefix, and with it towards what that has lost. Similarities have no
dimension: the teacher's at full width can be the target of every prefix, and the teacher may have any width (Park et al.,
Relational Knowledge Distillation, 2019, https://arxiv.org/abs/1904.05068).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SimilarityDistillLoss(nn.Module):
    """The Kullback-Leibler divergence from the teacher's similarities of a batch to the student's.

    All texts of the batch, sentences and translations, are compared with all others. A text's cosine similarities with the
    others, times ``scale``, are a distribution (softmax). A translation has the teacher's embedding of its sentence, so the
    teacher's similarity of the two is 1, and that of two sentences holds for their translations too, across languages.

    Args:
        model: The model to train.
        scale: Inverse temperature of both distributions.
    """

    full_width_labels = True  # not cut to a prefix by the Matryoshka loss

    def __init__(self, model: nn.Module, scale: float = 20.0):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of a batch: a scalar.

        Args:
            sentence_features: The tokenised texts of each column, ``batch`` rows each.
            labels: The teacher's embeddings of the first column, shape ``[batch, teacher_width]``.
        """
        columns = [self.model(features)["sentence_embedding"].float() for features in sentence_features]
        return similarity_divergence(torch.cat(columns), labels.float().repeat(len(columns), 1), self.scale)


def similarity_divergence(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """The divergence between the similarities of some texts, mean over the texts.

    Args:
        student, teacher: Embeddings of the same texts, shape ``[texts, width]`` each; the widths may differ.
        scale: Inverse temperature.
    """

    def log_probabilities(embeddings: Tensor) -> Tensor:  # [texts, texts]; a text is not compared with itself
        embeddings = F.normalize(embeddings, dim=-1)
        similarities = scale * embeddings @ embeddings.T
        diagonal = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
        # not minus infinity, whose difference from itself is no number
        return similarities.masked_fill(diagonal, -1e4).log_softmax(dim=-1)

    return F.kl_div(log_probabilities(student), log_probabilities(teacher), reduction="batchmean", log_target=True)
