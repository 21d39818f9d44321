"""Distillation of similarities: every prefix learns the teacher's similarities at full width.

Distilling embeddings makes a prefix imitate the teacher's prefix, including what the teacher's prefix has lost by truncation. A
similarity is a single number at any width. Therefore the teacher's similarities at full width can be the target of every prefix,
and the teacher may have any width (Park et al., Relational Knowledge Distillation, 2019, https://arxiv.org/abs/1904.05068).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# scales 1 - r and its gradient to the size of the other losses, which share the learning rate
FACTOR = 3.0


class SimilarityDistillLoss(nn.Module):
    """Three times 1 - r, where r is Pearson's correlation of the student's and the teacher's similarities in a batch.

    Each text of the batch, whether a sentence or a translation, is compared with every other. A translation gets the teacher's
    embedding of its sentence. Therefore the target similarity of a sentence and its translation is 1, and the target similarity of
    two sentences also applies to their translations. A correlation depends on the order and spacing of the similarities, not on
    their range: a model whose similarities are between 0.7 and 1 can keep them there.

    Args:
        model: The model to train.
    """

    full_width_labels = True  # the Matryoshka loss must not truncate the targets

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            sentence_features: The tokenised texts of each column, ``batch`` rows each.
            labels: The teacher's embeddings of the first column, shape ``[batch, teacher_width]``.
        """
        columns = [self.model(features)["sentence_embedding"].float() for features in sentence_features]
        student, teacher = torch.cat(columns), labels.float().repeat(len(columns), 1)
        return FACTOR * (1 - similarity_correlation(student, teacher))


def similarity_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return Pearson's correlation between two models' cosine similarities of all pairs of different texts, a scalar.

    If the teacher's similarities are all the same, such as the only one of two texts, the correlation is 0, with gradients of 0.

    Args:
        student, teacher: Embeddings of the same texts, shape ``[texts, width]`` each; the widths may differ.
    """
    rows, columns = torch.triu_indices(len(student), len(student), offset=1, device=student.device)
    similarities = []
    for embeddings in (student, teacher):
        embeddings = F.normalize(embeddings, dim=-1)
        values = (embeddings @ embeddings.T)[rows, columns]
        similarities.append(values - values.mean())
    return F.cosine_similarity(*similarities, dim=0)
