"""Models from a folder or the Hub: the identity that results are filed under, loading, devices."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import RunError, UsageError, one_line
from common.hub import HUB_NAME, explain_hub_error, is_unanswered, look_up, offline, try_again
from common.model_files import refuse_pickles

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelIdentity:
    """Whose score a score is: the name and the revision that results are filed under.

    Attributes:
        name: The Hub's ``organisation/model``, or ``local/<folder>`` for a model on disk.
        revision: The Hub commit, or a hash of all the local model's files but its README.
        source: What loads it: the Hub name or the path.
        cached: The Hub did not answer for it: it comes from the cache.
    """

    name: str
    revision: str
    source: str
    cached: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}@{self.revision[:8]}"


def local_name(folder: Path) -> str:
    """``local/<name>``, where the models that a run leaves (``final``, ``checkpoint-100``) are named after the run too."""
    folder = folder.resolve()
    name = folder.name
    if name == "final":
        name = folder.parent.name
    elif name == "untrained" or name.startswith("checkpoint-"):
        name = f"{folder.parent.name}-{name}"
    return "local/" + (re.sub(r"[^\w.-]+", "_", name) or "model")


def hash_folder(folder: Path) -> str:
    """SHA-1 (40 hexadecimal digits) of the names and contents of all files in a folder but its ``README.md``.

    Hidden files do not count: they are an editor's or a client's, never the model's.
    """
    digest = hashlib.sha1()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if relative.as_posix() == "README.md" or any(part.startswith(".") for part in relative.parts):
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha1").hexdigest()
        digest.update(f"{relative.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def identify(source: str) -> ModelIdentity:
    """The identity of a model on disk or on the Hub.

    Raises:
        RunError: There is no such model, or it is neither on disk nor in the cache and the Hub cannot be reached.
    """
    if not source:
        raise RunError("model: the name is empty")
    folder = Path(source)
    if folder.is_dir():
        if not any(folder.iterdir()):
            raise RunError(f"model {source}: the folder is empty")
        return ModelIdentity(local_name(folder), hash_folder(folder), source)
    if folder.exists():
        raise RunError(f"model {source} is a file: give the model's folder or its name on the Hub")
    if not HUB_NAME.fullmatch(source):
        raise RunError(f"model {source}: no such folder, and not a name that the Hub has (organisation/model)")
    return _identify_on_hub(source)


def unique_identities(identities: list[ModelIdentity]) -> list[ModelIdentity]:
    """Each model once, in order: one that is named twice, or lies in two folders of one name, is scored once."""
    unique: dict[tuple[str, str], ModelIdentity] = {}
    for identity in identities:
        unique.setdefault((identity.name, identity.revision), identity)
    return list(unique.values())


def _identify_on_hub(source: str) -> ModelIdentity:
    # "all-MiniLM-L6-v2" means sentence-transformers/all-MiniLM-L6-v2, as it does to SentenceTransformer
    names = [source] if "/" in source else [source, f"sentence-transformers/{source}"]
    failure: Exception | None = None
    for name in names:
        try:
            info = look_up("model", name)
        except Exception as error:
            failure = failure or error
            if is_unanswered(error):
                break  # nor would it be for the other name
            continue
        if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):  # it becomes a folder's name
            raise RunError(f"model {source}: the Hub gives no commit for it but {str(info.sha)[:60]!r}")
        return ModelIdentity(name, info.sha, name)
    for name in names if is_unanswered(failure) else ():
        if commit := _newest_in_cache(name):
            logger.warning(
                "the Hub does not answer for model %s (%s): using the copy in the cache, commit %s",
                name, one_line(failure, 100), commit,
            )  # fmt: skip
            return ModelIdentity(name, commit, name, cached=True)
    raise RunError(f"model {source}: {explain_hub_error(failure, source)}")


def _newest_in_cache(name: str) -> str | None:
    """The commit of the newest download of a model in the Hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    complete = [p for p in snapshots.glob("*") if (p / "modules.json").exists() or (p / "config.json").exists()]
    return max(complete, key=lambda p: p.stat().st_mtime).name if complete else None


def load_model(
    source: str,
    identity: ModelIdentity | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> SentenceTransformer:
    """Load a model by path or Hub name, at the commit of ``identity`` where it comes from the Hub.

    Args:
        trust_remote_code: Run Python code that the model brings along.
        allow_pickle: Read weights that are pickled (``pytorch_model.bin``), where there are no safetensors.

    Raises:
        RunError: It cannot be loaded, or only with one of these two; the message says why in one line.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading weights takes a second
    identity = identity or identify(source)
    local = Path(source).is_dir()
    model_kwargs = {"dtype": getattr(torch, dtype)} | ({} if allow_pickle else {"use_safetensors": True})

    def load() -> SentenceTransformer:
        if not allow_pickle:
            refuse_pickles(identity.source, None if local else identity.revision)
        return SentenceTransformer(
            identity.source,
            revision=None if local else identity.revision,
            device=device,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
        )

    try:
        with offline() if identity.cached else nullcontext():
            model = try_again(load, f"model {source}")
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"model {source}: cannot be loaded: {_why_not_loaded(error, source)}") from None
    _refuse_reranker(source, model)
    if model.get_embedding_dimension() is None:
        raise RunError(f"model {source}: it does not say how wide its embeddings are")
    if model.truncate_dim is not None:
        logger.warning(
            "%s truncates its embeddings to %d by itself; evaluating from its full width", source, model.truncate_dim
        )
        model.truncate_dim = None
    return model


def check_devices(devices: Sequence[str]) -> None:
    """Raises UsageError where a device has no such name or is not there."""
    import torch

    for name in devices:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _refuse_reranker(source: str, model: SentenceTransformer) -> None:
    """sentence-transformers makes an embedding model of any transformer; of one that scores pairs it makes a meaningless one."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    architectures = [str(name) for name in getattr(config, "architectures", None) or []]
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures)
    if classifies and getattr(config, "num_labels", None) == 1:
        raise RunError(f"model {source}: {architectures[0]} with one score is a reranker, not an embedding model")


def _why_not_loaded(error: BaseException, source: str) -> str:
    if "trust_remote_code" in str(error):
        return "it brings Python code of its own: read that code, and if you trust it, give --trust_remote_code"
    try:
        return explain_hub_error(error, source)
    except Exception:  # whatever a stranger's files can make the libraries raise ends in one line
        return f"{type(error).__name__}: {one_line(error, 200)}"
