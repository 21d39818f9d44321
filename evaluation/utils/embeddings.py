"""Every text is encoded once, at full width; each dimension is a view of the result.

The embeddings of a model lie in one file that is read through a memory map, so a large corpus does not fill the memory
and an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from common.errors import RunError
from common.records import naming
from evaluation.utils.evaluation_utils import ModelIdentity

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

CHUNK = 1024  # texts between two writes: what an interruption can lose, and what is held in memory
VIEW_FROM = 4096  # texts; fewer are copied out of the file, so that they can be written to
DIGEST = "S16"  # 16 bytes for a text
PROGRESS_FROM = 500  # texts


def cache_folder(output_dir: Path, identity: ModelIdentity, dtype: str) -> Path:
    return output_dir / "embeddings" / identity.name.replace("/", "__") / f"{identity.revision}-{dtype}"


class Rows:
    """Which row holds the embedding of which text: 16 bytes and a number for each, however long the text."""

    def __init__(self, digests: np.ndarray):
        self.order = np.argsort(digests, kind="stable")
        self.sorted = digests[self.order]

    def __len__(self) -> int:
        return len(self.sorted)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """The row of each digest, -1 where there is none."""
        if not len(self):
            return np.full(len(digests), -1)
        place = np.minimum(np.searchsorted(self.sorted, digests), len(self) - 1)
        return np.where(self.sorted[place] == digests, self.order[place], -1)


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
        self._rows: dict[str, Rows] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forget everything, on disk too."""
        shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        self._rows.clear()

    def encode(
        self, texts: Iterable[str], dim: int | None = None, prompt: str | None = None, role: str | None = None
    ) -> np.ndarray:
        """The raw prefix of each text's embedding.

        Args:
            texts: ``n`` texts; gone through twice where some are new, and never held all at once.
            dim: Numbers to keep of each embedding; all of them by default.
            prompt: What the model puts before each text; by default what it does on its own.
            role: ``"query"``, ``"document"`` or None, for models that encode these differently.

        Returns:
            Float32 array of shape ``[n, dim]``. Many texts that stand in the file one after another are not copied:
            then it is a read-only view of the file.

        Raises:
            RunError: The model gives numbers that are not finite.
        """
        if not (self.model.prompts and any(self.model.prompts.values())) and not self._routes():
            role = None  # the model treats queries and documents alike
        key = hashlib.blake2b(f"{role}\0{prompt}".encode(), digest_size=8).hexdigest()
        digests = np.fromiter(_digests(texts), dtype=DIGEST)
        with FileLock(self.folder / f"{key}.lock"):
            rows = self._load(key).find(digests)
            if (rows < 0).any():
                self._add(key, texts, digests, rows < 0, prompt, role)
                rows = self._rows[key].find(digests)
        if not len(rows):
            return np.zeros((0, dim or self.width), dtype=np.float32)
        stored = np.memmap(self.folder / f"{key}.f32", dtype=np.float32, mode="r").reshape(-1, self.width)
        if len(rows) > VIEW_FROM and (np.diff(rows) == 1).all():
            return stored[rows[0] : rows[-1] + 1, : dim or self.width]
        return np.asarray(stored[rows, : dim or self.width])

    def _routes(self) -> bool:
        return any(type(module).__name__ in ("Router", "Asym") for module in self.model.children())

    def _load(self, key: str) -> Rows:
        """What the files hold; another process may have added to them."""
        names, rows = self.folder / f"{key}.digests", self.folder / f"{key}.f32"
        whole = 0
        if names.exists() and rows.exists():
            whole = min(names.stat().st_size // np.dtype(DIGEST).itemsize, rows.stat().st_size // (4 * self.width))
        if key not in self._rows or len(self._rows[key]) != whole:
            self._rows[key] = Rows(np.fromfile(names, dtype=DIGEST, count=whole) if whole else np.zeros(0, DIGEST))
        return self._rows[key]

    def _add(
        self,
        key: str,
        texts: Iterable[str],
        digests: np.ndarray,
        missing: np.ndarray,
        prompt: str | None,
        role: str | None,
    ) -> None:
        encode = {"query": self.model.encode_query, "document": self.model.encode_document, None: self.model.encode}[
            role
        ]
        positions = np.flatnonzero(missing)
        _, first = np.unique(digests[positions], return_index=True)  # a text that comes twice is encoded once
        new = np.zeros(len(digests), dtype=bool)
        new[positions[first]] = True
        known = len(self._rows[key])
        logger.info("encoding %d texts", len(first))
        with (
            naming(self.folder / f"{key}.f32"),
            (self.folder / f"{key}.f32").open("ab") as rows,
            (self.folder / f"{key}.digests").open("ab") as names,
            tqdm(total=len(first), unit="text", desc="encoding", disable=len(first) < PROGRESS_FROM) as progress,
        ):
            rows.truncate(known * 4 * self.width)
            names.truncate(known * digests.itemsize)
            for chunk, chunk_digests in _chunks(texts, digests, new):
                rows.write(self._forward(encode, chunk, prompt).tobytes())
                rows.flush()
                names.write(chunk_digests.tobytes())
                names.flush()
                self.encoded += len(chunk)
                progress.update(len(chunk))
        self._load(key)

    def _forward(self, encode: Callable[..., Any], texts: list[str], prompt: str | None) -> np.ndarray:
        embeddings = encode(
            texts, prompt=prompt, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        block = embeddings.float().cpu().numpy()
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))]
            raise RunError(f"the model gives NaN or infinite embeddings, first for the text {text[:80]!r}")
        return block


def _digests(texts: Iterable[str]) -> Iterator[bytes]:
    for text in texts:
        yield hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _chunks(texts: Iterable[str], digests: np.ndarray, new: np.ndarray) -> Iterator[tuple[list[str], np.ndarray]]:
    """The new texts and their digests, at most ``CHUNK`` at a time."""
    chunk: list[str] = []
    positions: list[int] = []
    for position, text in enumerate(texts):
        if new[position]:
            chunk.append(text)
            positions.append(position)
            if len(chunk) == CHUNK:
                yield chunk, digests[positions]
                chunk, positions = [], []
    if chunk:
        yield chunk, digests[positions]
