"""The encoder that mteb evaluates: it returns the first ``dim`` dimensions of embeddings; each text is encoded only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from common.prompts import task_prompt
from evaluation.utils.scoring.embeddings import EmbeddingStore
from evaluation.utils.scoring.rows import ScoredModel

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from torch import Tensor
    from torch.utils.data import DataLoader

SIMILARITY_BLOCK = 4096  # rows compared at a time


class _Texts:
    """Iterates over the texts of a data loader, any number of times."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[str]:
        for batch in self.loader:
            yield from batch["text"]


class TruncatedEncoder(AbsEncoder):
    """An encoder for mteb that truncates embeddings without normalising them, as ``SentenceTransformer(truncate_dim=...)`` does.

    mteb files results by name, revision and experiment. The dimension is part of the experiment, so that no model or dimension
    ever gets another's score.
    """

    def __init__(self, store: EmbeddingStore, scored_model: ScoredModel, dim: int):
        self.store, self.dim, self.model = store, dim, store.model
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": scored_model.identity.name,
                "revision": scored_model.identity.revision,
                "embed_dim": dim,
                "experiment_kwargs": scored_model.experiment(dim),
            }
        )

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return a float32 array of shape ``[n, dim]`` for the texts that ``inputs`` yields."""
        return self.embed(_Texts(inputs), task_metadata, prompt_type)

    def embed(self, texts: Iterable[str], task_metadata: TaskMetadata, prompt_type: PromptType | None) -> np.ndarray:
        """Return a float32 array of shape ``[n, dim]``, encoded with the model's prompt for this task."""
        prompt, role = self.prompt_and_role(task_metadata, prompt_type)
        return self.store.encode(texts, self.dim, prompt=prompt, role=role)

    def prompt_and_role(
        self, task_metadata: TaskMetadata, prompt_type: PromptType | None
    ) -> tuple[str | None, str | None]:
        """Return the prompt and the role with which the texts of a task are encoded."""
        role = prompt_type.value if prompt_type else None
        return task_prompt(self.model, task_metadata.name, task_metadata.type, role), role

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return a tensor of shape ``[n1, n2]``, computed in blocks of columns, so that only a block of the corpus is copied."""
        import torch

        blocks = [
            self.model.similarity(embeddings1, np.array(embeddings2[start : start + SIMILARITY_BLOCK]))
            for start in range(0, len(embeddings2), SIMILARITY_BLOCK)
        ]
        return torch.cat(blocks, dim=1)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        return self.model.similarity_pairwise(embeddings1, embeddings2)
