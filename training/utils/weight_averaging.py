"""Averages the initial and the trained weights: the model keeps most of what it learnt, and forgets less of what it knew.

Wortsman et al., Robust fine-tuning of zero-shot models, 2022, https://arxiv.org/abs/2109.01903.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def copy_weights(model: SentenceTransformer) -> dict[str, Tensor]:
    """Copy the model's current parameters, by name, to CPU memory."""
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def average_weights(model: SentenceTransformer, start: dict[str, Tensor], share: float) -> None:
    """Replace each parameter of the model with ``share`` times its value in ``start`` plus ``1 - share`` times its current value.

    Args:
        start: The result of :func:`copy_weights` before training.
        share: Between 0 and 1.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(start[name].to(parameter), share)
    logger.info("averaged the weights: %g of the initial weights, %g of the trained weights", share, 1 - share)
