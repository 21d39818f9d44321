"""Every text is encoded once, at full width; each dimension is a view of the result.

The embeddings of a model are stored in memory-mapped files, one for each combination of role and prompt. Therefore a large
corpus does not fill the memory. Each block is written as soon as it is computed, so an interrupted evaluation resumes where
it stopped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm
from xxhash import xxh3_64_intdigest

from common.errors import RunError
from common.models import load_model
from common.packing import pack
from common.records import filename_in_errors, quarantine
from evaluation.utils.phases import Phases
from evaluation.utils.scoring.rows import ScoredModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from evaluation.utils.options import EvalConfig

logger = logging.getLogger(__name__)

CHUNK = 1024  # texts between two writes: at most this many are in memory, or lost in an interruption
VIEW_FROM = 4096  # texts; up to this many embeddings are copied out of the file, so that the caller can modify them
DIGEST = "S16"  # 16 bytes per text
# a digest of the text and one of its embedding, which detects corrupt embeddings
ENTRY = np.dtype([("text", DIGEST), ("embedding", "<u8")])
PROGRESS_FROM = 500  # texts


def cache_folder(output_dir: Path, scored_model: ScoredModel) -> Path:
    """Return the folder of a model's embeddings."""
    return scored_model.folder(output_dir / "embeddings")


class Rows:
    """Maps texts to rows of the file. Each text takes 16 bytes and a row number, whatever its length."""

    def __init__(self, digests: np.ndarray):
        self.order = np.argsort(digests, kind="stable")
        self.sorted = digests[self.order]

    def __len__(self) -> int:
        return len(self.sorted)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Return the row of each digest; -1 for a digest that is not in the file."""
        if not len(self):
            return np.full(len(digests), -1)
        place = np.minimum(np.searchsorted(self.sorted, digests), len(self) - 1)
        return np.where(self.sorted[place] == digests, self.order[place], -1)


class EmbeddingStore:
    """Full-width embeddings of texts, encoded at most once for each prompt. As a context manager, it stops its processes on exit.

    Args:
        model: The model that encodes.
        folder: The folder of the embeddings. No other model, revision or precision may use it
            (see :func:`cache_folder`).
        batch_size: Texts in a forward pass.
        devices: Devices to encode on, each with its own process if there are several; by default the model's device.

    Attributes:
        width: Number of dimensions of an embedding.
        encoded: Number of texts encoded so far.
        phases: Adds up the seconds of the phase ``encoding``. The caller may replace it with its own.

    Each combination of role (query, document or neither) and prompt has a file of rows, each with ``width`` float32 numbers,
    and a file with the digests of the texts and of the rows, in the same order. Rows without a digest, which an interruption
    can leave, are overwritten. If a row does not match its digest, both files are set aside.
    """

    def __init__(self, model: SentenceTransformer, folder: Path, batch_size: int = 32, devices: Sequence[str] = ()):
        self.model, self.folder, self.batch_size, self.devices = model, folder, batch_size, devices
        self._pool: dict[str, Any] | None = None
        self.width: int = model.get_embedding_dimension()
        self.encoded = 0
        self.phases = Phases()
        self._rows: dict[str, tuple[tuple[int, ...], Rows]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the encoding processes, if there are any."""
        if self._pool is not None:
            self.model.stop_multi_process_pool(self._pool)
            self._pool = None

    def clear(self) -> None:
        """Remove all embeddings, including those on disk."""
        for digest_path in self.folder.glob("*.digests"):
            with FileLock(digest_path.with_suffix(".lock")):
                digest_path.unlink(missing_ok=True)
                digest_path.with_suffix(".f32").unlink(missing_ok=True)
        self._rows.clear()

    def encode(
        self, texts: Iterable[str], dim: int | None = None, prompt: str | None = None, role: str | None = None
    ) -> np.ndarray:
        """Return the first ``dim`` numbers of each text's embedding, not normalised.

        Args:
            texts: ``n`` texts; iterated twice if some are new, and never held in memory all at once.
            dim: Number of leading dimensions to keep; all of them by default.
            prompt: The prompt to put before each text; by default the model's own.
            role: ``"query"``, ``"document"`` or None, for models that encode these differently.

        Returns:
            Float32 array of shape ``[n, dim]``. If there are many texts, with consecutive rows in the file, it is a read-only
            view of the file instead of a copy.

        Raises:
            RunError: The model produces NaN or infinite embeddings.
        """
        if not (self.model.prompts and any(self.model.prompts.values())) and not self._routes():
            role = None  # the model encodes queries and documents in the same way
        key = hashlib.blake2b(f"{role}\0{prompt}".encode(), digest_size=8).hexdigest()
        digests = np.fromiter(_digests(texts), dtype=DIGEST)
        with FileLock(self.folder / f"{key}.lock"):
            rows = self._load(key).find(digests)
            if (rows < 0).any():
                with self.phases.measure("encoding"):
                    self._add(key, texts, digests, rows < 0, prompt, role)
                rows = self._load(key).find(digests)
            if not len(rows):
                return np.zeros((0, dim or self.width), dtype=np.float32)
            shape = len(self._rows[key][1]), self.width
            stored = np.memmap(self.folder / f"{key}.f32", dtype=np.float32, mode="r", shape=shape)
        if len(rows) > VIEW_FROM and (np.diff(rows) == 1).all():
            return stored[rows[0] : rows[-1] + 1, : dim or self.width]
        return np.asarray(stored[rows, : dim or self.width])

    def _routes(self) -> bool:
        return any(type(module).__name__ in ("Router", "Asym") for module in self.model.children())

    def _load(self, key: str) -> Rows:
        """Return the rows that the files have now; another process may have added some."""
        digest_path, row_path = self.folder / f"{key}.digests", self.folder / f"{key}.f32"
        state: tuple[int, ...] = (0,)
        if digest_path.exists() and row_path.exists():
            stats = digest_path.stat(), row_path.stat()
            complete = min(stats[0].st_size // ENTRY.itemsize, stats[1].st_size // (4 * self.width))
            state = (complete, *(s.st_ino for s in stats), *(s.st_mtime_ns for s in stats))
        if key not in self._rows or self._rows[key][0] != state:
            entries = np.fromfile(digest_path, dtype=ENTRY, count=state[0]) if state[0] else np.zeros(0, ENTRY)
            checked = len(self._rows[key][1]) if key in self._rows and self._rows[key][0][1:3] == state[1:3] else 0
            if not self._is_intact(row_path, entries, checked):
                for path in (row_path, digest_path):
                    quarantine(path, "an embedding does not match its digest")
                return self._load(key)
            self._rows[key] = state, Rows(entries["text"])
        return self._rows[key][1]

    def _is_intact(self, path: Path, entries: np.ndarray, checked: int) -> bool:
        """Return whether each row of the file, from row ``checked`` on, matches its digest."""
        if len(entries) <= checked:
            return True
        stored = np.memmap(path, dtype=np.float32, mode="r", shape=(len(entries), self.width))
        return all(xxh3_64_intdigest(stored[i]) == entries["embedding"][i] for i in range(checked, len(entries)))

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
        _, first = np.unique(digests[positions], return_index=True)  # a duplicated text is encoded once
        new = np.zeros(len(digests), dtype=bool)
        new[positions[first]] = True
        known = len(self._load(key))
        logger.info("encoding %d texts", len(first))
        with (
            filename_in_errors(self.folder / f"{key}.f32"),
            (self.folder / f"{key}.f32").open("ab") as row_file,
            (self.folder / f"{key}.digests").open("ab") as digest_file,
            tqdm(total=len(first), unit="text", desc="encoding", disable=len(first) < PROGRESS_FROM) as progress,
        ):
            row_file.truncate(known * 4 * self.width)
            digest_file.truncate(known * ENTRY.itemsize)
            for chunk, chunk_digests in _chunks(texts, digests, new):
                block = np.ascontiguousarray(self._forward(encode, chunk, prompt))
                row_file.write(block.tobytes())
                row_file.flush()
                entries = np.empty(len(block), ENTRY)
                entries["text"], entries["embedding"] = chunk_digests, [xxh3_64_intdigest(row) for row in block]
                digest_file.write(entries.tobytes())
                digest_file.flush()
                self.encoded += len(chunk)
                progress.update(len(chunk))

    def _forward(self, encode: Callable[..., Any], texts: list[str], prompt: str | None) -> np.ndarray:
        if len(self.devices) > 1 and self._pool is None:
            self._pool = self.model.start_multi_process_pool(list(self.devices))
        embeddings = encode(
            texts,
            prompt=prompt,
            batch_size=self.batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
            pool=self._pool,
        )
        block = embeddings.float().cpu().numpy()
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))]
            raise RunError(f"the model produced NaN or infinite embeddings, first for the text {text[:80]!r}")
        return block


def open_store(scored_model: ScoredModel, config: EvalConfig) -> EmbeddingStore:
    """Load a model with the options in ``config``, and open the store of its embeddings.

    Raises:
        RunError: The model cannot be loaded.
    """
    identity = scored_model.identity
    model = load_model(
        identity.source,
        identity,
        scored_model.dtype,
        config.device[0] if len(config.device) == 1 else None,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    folder = cache_folder(Path(config.output_dir), scored_model)
    return EmbeddingStore(pack(model), folder, config.batch_size, config.device)


def _digests(texts: Iterable[str]) -> Iterator[bytes]:
    for text in texts:
        yield hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _chunks(texts: Iterable[str], digests: np.ndarray, new: np.ndarray) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the new texts and their digests, at most ``CHUNK`` at a time."""
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
