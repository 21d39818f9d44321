"""Computes a frozen teacher's embeddings, the targets of distillation, once before training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import RunError, one_line
from common.models import identify, load_model
from common.packing import pack
from common.records import quarantine

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ROWS = 4096  # texts embedded between two writes to disk; encode sorts them by length, so a larger value is faster
BATCH = 64


def add_targets(dataset: Dataset, teacher: str, width: int | None, **loading_options: bool) -> Dataset:
    """Embed the texts in the column ``sentence`` with the teacher and add the result as the column ``label``.

    A translation has the same target as its sentence, so that both move towards the teacher's embedding of the sentence
    (Reimers and Gurevych, 2020, https://arxiv.org/abs/2004.09813). The embeddings are stored in the datasets cache under a hash of
    the rows and the teacher's revision, so that later and resumed runs reuse them. They are read from disk, not held in memory.

    Args:
        dataset: Rows with a text ``sentence``.
        teacher: A model's name on the Hub, or its folder.
        width: Width of the student's embeddings; None if only similarities are distilled, because the teacher may then have
            a different width.
        **loading_options: ``trust_remote_code`` and ``allow_pickle`` of :func:`load_model`.

    Returns:
        The rows with ``label``, lists of float32 numbers.

    Raises:
        RunError: The teacher cannot be loaded, its embeddings have a different width, or they are not finite.
    """
    import numpy as np
    from datasets import Features, List, Value, config
    from datasets.fingerprint import Hasher

    identity = identify(teacher)
    key = Hasher.hash([dataset._fingerprint, identity.name, identity.revision, width])
    folder = Path(config.HF_DATASETS_CACHE) / "teachers"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.arrow"
    model = None if _is_complete(path, len(dataset)) else pack(load_model(teacher, identity, **loading_options).eval())
    if model is not None and width is not None and model.get_embedding_dimension() != width:
        raise RunError(
            f"the teacher {teacher} has width {model.get_embedding_dimension()}, and the model has width {width}: distill needs equal widths, unless its 'target' is similarities"
        )

    def embed(batch: dict[str, list[str]]) -> dict[str, np.ndarray]:
        embeddings = model.encode(batch["sentence"], batch_size=BATCH, show_progress_bar=False)
        if not np.isfinite(embeddings).all():
            raise RunError(f"the teacher {teacher} produced NaN or infinite embeddings")
        return {"label": embeddings.astype(np.float32)}

    logger.info("teacher %s: %d targets%s", identity.label, len(dataset), " from the cache" if model is None else "")
    return dataset.map(
        embed,
        batched=True,
        batch_size=ROWS,
        cache_file_name=str(path),
        new_fingerprint=key,
        features=Features(dataset.features | {"label": List(Value("float32"), length=width or -1)}),
        desc="teacher",
    )


def _is_complete(path: Path, rows: int) -> bool:
    """Return whether the file at ``path`` has a target for each row. A corrupt file is quarantined."""
    import pyarrow as pa
    from datasets import Dataset

    if not path.exists():
        return False
    try:
        rows_on_disk = len(Dataset.from_file(str(path)))
        reason = None if rows_on_disk == rows else f"{rows_on_disk} rows instead of {rows}"
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error, 100)
    if reason is not None:
        quarantine(path, reason)
    return reason is None
