"""What mteb evaluates: the first ``dim`` numbers of embeddings that were encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from evaluation.utils.embeddings import EmbeddingStore
from evaluation.utils.evaluation_utils import ModelIdentity

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from torch.utils.data import DataLoader


class TruncatedEncoder(AbsEncoder):
    """An encoder for mteb that gives the raw prefix of each embedding, as ``SentenceTransformer(truncate_dim=dim)`` does.

    mteb files results by name, revision and experiment; the dimension is part of the experiment, so that no model and no
    dimension is ever given the score of another.
    """

    def __init__(self, store: EmbeddingStore, identity: ModelIdentity, dim: int, dtype: str):
        self.store, self.dim, self.model = store, dim, store.model
        experiment = {"embed_dim": dim} | ({} if dtype == "float32" else {"dtype": dtype})
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": identity.name,
                "revision": identity.revision,
                "embed_dim": dim,
                "experiment_kwargs": experiment,
            }
        )
        self.model_prompts, _ = self.validate_task_to_prompt_name(
            {name: text for name, text in (self.model.prompts or {}).items() if text} or None,
            raise_for_invalid_keys=False,
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
        """Float32 array of shape ``[n, dim]`` for the texts that ``inputs`` yields."""
        texts = [text for batch in inputs for text in batch["text"]]
        name = self.get_prompt_name(task_metadata, prompt_type)
        prompt = self.model_prompts[name] if name and self.model_prompts else None
        return self.store.encode(texts, self.dim, prompt=prompt, role=prompt_type.value if prompt_type else None)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        return self.model.similarity_pairwise(embeddings1, embeddings2)
