"""Every text is encoded once, at full width; each dimension is a view of the result.

The embeddings of a model lie in one file that is read through a memory map, so a large corpus does not fill the memory
and an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from common.errors import RunError
from evaluation.utils.evaluation_utils import ModelIdentity

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

CHUNK = 4096  # texts between two writes: what an interruption can lose
DIGEST = 16  # bytes
PROGRESS_FROM = 1000  # texts


def cache_folder(output_dir: Path, identity: ModelIdentity, dtype: str) -> Path:
    return output_dir / "embeddings" / identity.name.replace("/", "__") / f"{identity.revision}-{dtype}"


class EmbeddingStore:
    """Full-width embeddings of texts, encoded at most once for each prompt.

    Args:
        model: The model that encodes.
        folder: Where the embeddings lie; it must belong to this model, revision and precision alone
            (see :func:`cache_folder`).
        batch_size: Texts in a forward pass.

    A file for each way of encoding (query, document or neither, and the prompt) holds the rows, of ``width`` float32
    numbers each; beside it lie the digests of the texts, in the same order. Rows without a digest, which an interruption
    can leave behind, are overwritten.
    """

    def __init__(self, model: SentenceTransformer, folder: Path, batch_size: int = 32):
        self.model, self.folder, self.batch_size = model, folder, batch_size
        self.width: int = model.get_embedding_dimension()
        self.encoded = 0
        self._rows: dict[str, dict[bytes, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forget everything, on disk too."""
        shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        self._rows.clear()

    def encode(
        self, texts: Sequence[str], dim: int | None = None, prompt: str | None = None, role: str | None = None
    ) -> np.ndarray:
        """The raw prefix of each text's embedding.

        Args:
            texts: ``n`` texts.
            dim: Numbers to keep of each embedding; all of them by default.
            prompt: What the model puts before each text; by default what it does on its own.
            role: ``"query"``, ``"document"`` or None, for models that encode these differently.

        Returns:
            Float32 array of shape ``[n, dim]``.

        Raises:
            RunError: The model gives numbers that are not finite.
        """
        if not (self.model.prompts and any(self.model.prompts.values())) and not self._routes():
            role = None  # the model treats queries and documents alike
        key = hashlib.blake2b(f"{role}\0{prompt}".encode(), digest_size=8).hexdigest()
        digests = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest() for text in texts
        ]
        with FileLock(self.folder / f"{key}.lock"):
            known = self._load(key)
            missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
            if missing:
                self._add(key, missing, prompt, role)
        stored = np.memmap(self.folder / f"{key}.f32", dtype=np.float32, mode="r").reshape(-1, self.width)
        return stored[[known[digest] for digest in digests], : dim or self.width]

    def _routes(self) -> bool:
        return any(type(module).__name__ in ("Router", "Asym") for module in self.model.children())

    def _load(self, key: str) -> dict[bytes, int]:
        path = self.folder / f"{key}.digests"
        known = self._rows.setdefault(key, {})
        if path.exists():
            raw = path.read_bytes()
            whole = min(len(raw) // DIGEST, (self.folder / f"{key}.f32").stat().st_size // (4 * self.width))
            for row in range(len(known), whole):
                known[raw[row * DIGEST : (row + 1) * DIGEST]] = row
        return known

    def _add(self, key: str, missing: dict[bytes, str], prompt: str | None, role: str | None) -> None:
        known = self._rows[key]
        encode = {"query": self.model.encode_query, "document": self.model.encode_document, None: self.model.encode}[
            role
        ]
        digests = list(missing)
        logger.info("encoding %d texts", len(digests))
        with (self.folder / f"{key}.f32").open("ab") as rows, (self.folder / f"{key}.digests").open("ab") as names:
            rows.truncate(len(known) * 4 * self.width)
            names.truncate(len(known) * DIGEST)
            for start in range(0, len(digests), CHUNK):
                chunk = digests[start : start + CHUNK]
                embeddings = encode(
                    [missing[digest] for digest in chunk],
                    prompt=prompt,
                    batch_size=self.batch_size,
                    convert_to_tensor=True,
                    show_progress_bar=len(digests) > PROGRESS_FROM,
                )
                block = embeddings.float().cpu().numpy()
                if not np.isfinite(block).all():
                    text = missing[chunk[int(np.argmin(np.isfinite(block).all(axis=1)))]]
                    raise RunError(f"the model gives NaN or infinite embeddings, first for the text {text[:80]!r}")
                rows.write(block.tobytes())
                rows.flush()
                names.write(b"".join(chunk))
                names.flush()
                for digest in chunk:
                    known[digest] = len(known)
                self.encoded += len(chunk)
