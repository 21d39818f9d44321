"""Loads models from a folder or the Hub, and defines the identity under which results are filed."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.adapters import ADAPTER_CONFIG, base_of, with_adapter
from common.errors import RunError, UsageError, one_line
from common.hub import HUB_NAME, explain_hub_error, is_unanswered, look_up, offline, try_again
from common.model_checks import MissingWeights, check_embedding, check_token_ids, recorded_missing_weights
from common.model_files import ModelFiles, check_modules, refuse_pickles
from common.model_kinds import no_text, refuse_other_kinds
from common.precision import warn_if_slow
from common.prompts import set_prompts
from common.text_inputs import prepare_text_inputs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

LOADABLE = ("modules.json", "config.json", ADAPTER_CONFIG)  # a model has one of these


@dataclass(frozen=True)
class ModelIdentity:
    """Identifies the model that a score belongs to: the name and revision under which results are filed.

    Attributes:
        name: The Hub's ``organisation/model``, or ``local/<folder>`` for a model on disk.
        commit: The Hub commit, or a hash of the local model's files except its README and hidden files.
        source: The Hub name or path to load it from.
        cached: Whether the model comes from the cache, because the Hub did not answer.
        max_seq_length: Texts are truncated to this many tokens; by default the model's own limit.
        prompts: The prompts that replace the model's own, as JSON; None if the model keeps its own.
        base: The base model, if this model is an adapter.
    """

    name: str
    commit: str
    source: str
    cached: bool = False
    max_seq_length: int | None = None
    prompts: str | None = None
    base: ModelIdentity | None = None

    @property
    def revision(self) -> str:
        """Return the part of the results' path after the name: the commit, an adapter's base, the token limit, the prompts."""
        base = "" if self.base is None else f"-on-{self.base.revision}"
        limit = "" if self.max_seq_length is None else f"-{self.max_seq_length}tokens"
        prompts = "" if self.prompts is None else f"-prompts{hashlib.sha1(self.prompts.encode()).hexdigest()[:8]}"
        return self.commit + base + limit + prompts

    @property
    def label(self) -> str:
        return f"{self.name}@{short_revision(self.revision)}"


def short_revision(revision: str) -> str:
    """Shorten the hashes in a revision to 8 digits."""
    return re.sub(r"[0-9a-f]{40}", lambda match: match[0][:8], revision)


def local_name(folder: Path) -> str:
    """Return ``local/<name>``. A run's ``final`` gets the run's name, and ``checkpoint-100`` has it as a prefix."""
    folder = folder.resolve()
    name = folder.name
    if name == "final":
        name = folder.parent.name
    elif name in ("untrained", "final-adapter") or name.startswith("checkpoint-"):
        name = f"{folder.parent.name}-{name}"
    return "local/" + (re.sub(r"[^\w.-]+", "_", name) or "model")


def hash_folder(folder: Path) -> str:
    """Return the SHA-1 (40 hexadecimal digits) of the names and contents of a folder's files, except ``README.md``.

    Hidden files do not count: they belong to editors and clients, not to the model.
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


def identify(
    source: str, max_seq_length: int | None = None, prompts: str | dict[str, str] | None = None
) -> ModelIdentity:
    """Return the identity of a model on disk or on the Hub.

    Args:
        max_seq_length: Texts are truncated to this many tokens; by default the model's own limit.
        prompts: See :func:`common.prompts.set_prompts`; by default the model keeps its own.

    Raises:
        RunError: The model does not exist, or it is not in the cache and the Hub cannot be reached.
    """
    if not source:
        raise RunError("model: the name is empty")
    settings = {
        "max_seq_length": max_seq_length,
        "prompts": None if prompts is None else json.dumps(prompts, sort_keys=True, ensure_ascii=False),
    }
    folder = Path(source)
    if folder.is_dir():
        if not any(folder.iterdir()):
            raise RunError(f"model {source}: the folder is empty")
        if not any((folder / name).exists() for name in LOADABLE):
            final = folder / "final"
            hint = f"; it is a training run, whose model is in {final}" if final.is_dir() else ""
            raise RunError(f"model {source}: the folder has none of {', '.join(LOADABLE)}, so it is not a model{hint}")
        identity = ModelIdentity(local_name(folder), hash_folder(folder), source, **settings)
        return _with_base(identity, ModelFiles(source, None))
    if folder.exists():
        raise RunError(f"model {source} is a file: use the model's folder or its Hub name")
    if not HUB_NAME.fullmatch(source):
        raise RunError(f"model {source}: no such folder, and not the name of a Hub model (organisation/model)")
    return replace(_identify_on_hub(source), **settings)


def _with_base(identity: ModelIdentity, files: ModelFiles) -> ModelIdentity:
    """Add the identity of the base model if a model is an adapter."""
    base = base_of(files)
    if base is None:
        return identity
    name, revision = base
    if Path(name).is_dir() and Path(name).resolve() == Path(identity.source).resolve():
        raise RunError(f"model {identity.source}: its {ADAPTER_CONFIG} names the adapter itself as the base model")
    try:
        base_identity = identify(name)
    except RunError as error:
        raise RunError(f"model {identity.source} is an adapter, and its base model cannot be loaded: {error}") from None
    except RecursionError:
        raise RunError(f"model {identity.source}: adapters name each other as their base model") from None
    if revision not in (None, "main") and not Path(name).is_dir():  # a folder has no revisions
        if re.fullmatch("[0-9a-f]{40}", revision):
            base_identity = replace(base_identity, commit=revision)
        else:
            logger.warning(
                "%s names the base model %s at %r, which is not a commit: using the main branch of the base model",
                identity.source, name, revision,
            )  # fmt: skip
    return replace(identity, base=base_identity)


def unique_identities(identities: list[ModelIdentity]) -> list[ModelIdentity]:
    """Remove duplicates, keeping the order: a model that is listed twice, or has two identical copies, is scored once."""
    unique: dict[tuple[str, str], ModelIdentity] = {}
    for identity in identities:
        unique.setdefault((identity.name, identity.revision), identity)
    return list(unique.values())


def _identify_on_hub(source: str) -> ModelIdentity:
    # "all-MiniLM-L6-v2" means sentence-transformers/all-MiniLM-L6-v2, as in SentenceTransformer
    names = [source] if "/" in source else [source, f"sentence-transformers/{source}"]
    failure: Exception | None = None
    for name in names:
        try:
            info = look_up("model", name)
        except Exception as error:
            failure = failure or error
            if is_unanswered(error):
                break  # the other name would fail in the same way
            continue
        if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):  # the commit becomes a folder's name
            raise RunError(f"model {source}: the Hub returned {str(info.sha)[:60]!r} instead of a commit")
        identity = ModelIdentity(name, info.sha, name)
        if ADAPTER_CONFIG not in {file.rfilename for file in info.siblings or ()}:
            return identity
        return _with_base(identity, ModelFiles(name, info.sha))
    for name in names if is_unanswered(failure) else ():
        if commit := _newest_in_cache(name):
            logger.warning(
                "the Hub did not answer the request for model %s (%s): using the copy in the cache, commit %s",
                name, one_line(failure, 100), commit,
            )  # fmt: skip
            with offline():
                return _with_base(ModelIdentity(name, commit, name, cached=True), ModelFiles(name, commit))
    raise RunError(f"model {source}: {explain_hub_error(failure, source)}")


def _newest_in_cache(name: str) -> str | None:
    """Return the commit of the newest download of a model in the Hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    complete = [p for p in snapshots.glob("*") if any((p / name).exists() for name in LOADABLE)]
    return max(complete, key=lambda p: p.stat().st_mtime).name if complete else None


def load_model(
    source: str,
    identity: ModelIdentity | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> SentenceTransformer:
    """Load a dense embedding model by path or Hub name, with its identity's commit, token limit and prompts.

    An adapter is merged into its base model. A missing padding token is added, and the token limit never exceeds the number
    of positions.

    Args:
        trust_remote_code: Run Python code that comes with the model.
        allow_pickle: Load pickled weights (``pytorch_model.bin``) if there are no safetensors.

    Raises:
        RunError: The model is not a dense embedding model for text, cannot be loaded, or needs ``trust_remote_code`` or
            ``allow_pickle``. The message says which, in one line.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading weights takes only a second
    identity = identity or identify(source)
    commit = None if Path(source).is_dir() else identity.commit
    model_kwargs = {"dtype": getattr(torch, dtype)} | ({} if allow_pickle else {"use_safetensors": True})

    def load() -> tuple[SentenceTransformer, MissingWeights]:
        files = ModelFiles(identity.source, commit)
        check_modules(files)
        refuse_other_kinds(files)
        if not allow_pickle:
            refuse_pickles(files)
        if identity.base is not None:
            base = load_model(identity.base.source, identity.base, dtype, device, trust_remote_code, allow_pickle)
            return with_adapter(base, files), MissingWeights()
        with recorded_missing_weights() as missing:
            model = SentenceTransformer(
                identity.source,
                revision=commit,
                device=device,
                trust_remote_code=trust_remote_code,
                model_kwargs=model_kwargs,
            )
        return model, missing

    try:
        with offline() if identity.cached else nullcontext():
            model, missing = try_again(load, f"model {source}")
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"model {source} cannot be loaded: {_why_not_loaded(error, source)}") from None
    if not {"text", "message"} & set(model.modalities):
        raise no_text(source, model.modalities)
    if model.get_embedding_dimension() is None:
        raise RunError(f"model {source} does not state the width of its embeddings")
    if model.truncate_dim is not None:
        logger.warning(
            "%s is configured to truncate its embeddings to %d dimensions; its full width is used instead",
            source,
            model.truncate_dim,
        )
        model.truncate_dim = None
    if dtype != "float32" and model.device.type == "cpu":
        warn_if_slow(f"--dtype {dtype}", model_kwargs["dtype"])
    prepare_text_inputs(model, source, identity.max_seq_length)
    check_token_ids(model, source)
    check_embedding(model, source, missing)
    if identity.prompts is not None:
        set_prompts(model, json.loads(identity.prompts))
    return model


def check_devices(devices: Sequence[str]) -> None:
    """Raise :class:`UsageError` if a device does not exist."""
    import torch

    for name in devices:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _why_not_loaded(error: BaseException, source: str) -> str:
    if "trust_remote_code" in str(error):
        return "it comes with its own Python code; read that code, and add --trust_remote_code if you trust it"
    try:
        return explain_hub_error(error, source)
    except Exception:  # unknown files can make the libraries raise any exception; all of them become one line
        return f"{type(error).__name__}: {one_line(error, 200)}"
