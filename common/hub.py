"""Requests to the Hugging Face Hub: retries temporary failures, falls back to the cache, and turns other failures into one line.

The client libraries retry some failures of downloads. This module retries the others (failed repository look-ups, server errors,
connections that break in the middle of a file) after 1, 2, 4 and 8 seconds. The environment variable ``HUB_RETRY_WAIT`` sets the
first of these waits. ``HF_HUB_ETAG_TIMEOUT`` and ``HF_HUB_DOWNLOAD_TIMEOUT`` of huggingface_hub set the time-outs.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from common.errors import RunError, one_line

logger = logging.getLogger(__name__)
T = TypeVar("T")

# excludes paths that lead out of a folder
HUB_NAME = re.compile(r"(?!.*\.\.)(?=.{1,96}$)\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
ATTEMPTS = 5
TEMPORARY = (408, 429, 500, 502, 503, 504)  # statuses that huggingface_hub treats as temporary


def look_up(kind: str, name: str) -> Any:
    """Return the Hub's description of a repository (``sha``, ``siblings``).

    Args:
        kind: ``model`` or ``dataset``.

    Raises:
        Exception: The repository does not exist, is private or gated, or the Hub does not answer; see
            :func:`is_unanswered`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    return try_again(lambda: HfApi().repo_info(name, repo_type=kind, timeout=HF_HUB_ETAG_TIMEOUT), f"{kind} {name}")


def load_from_hub(kind: str, name: str, load: Callable[[], T]) -> T:
    """Return ``load()``. Retries temporary failures, and falls back to the cache if the Hub does not answer.

    Raises:
        RunError: Loading failed; the message says why and what to do, in one line.
    """
    failure: Exception | None = None
    try:
        try:
            look_up(kind, name)
        except Exception as error:
            if not is_unanswered(error):
                raise
            failure = error
            with offline():
                loaded = load()
            logger.warning(
                "the Hub did not answer the request for %s %s (%s): using the copy in the cache",
                kind,
                name,
                one_line(error, 100),
            )
            return loaded
        return try_again(load, f"{kind} {name}")
    except RunError:
        raise
    except Exception as error:
        raise RunError(explain_hub_error(failure or error, name)) from None


def try_again(operation: Callable[[], T], what: str) -> T:
    """Return ``operation()``, retrying with increasing waits while the failure is temporary."""
    wait = float(os.environ.get("HUB_RETRY_WAIT", 1))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return operation()
        except Exception as error:
            if attempt == ATTEMPTS or not is_temporary(error):
                raise
            logger.warning("%s: %s; trying again in %g s", what, one_line(error, 100), wait)
            time.sleep(wait)
            wait *= 2
    raise AssertionError("not reached")


@contextmanager
def offline() -> Iterator[None]:
    """Within this context, the client libraries use only their caches, as with ``HF_HUB_OFFLINE=1``."""
    import datasets.config
    import huggingface_hub.constants

    switches = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    for module in switches:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def chain_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and the chain of its causes (or contexts), the error first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def explain_cache_error(error: BaseException) -> str | None:
    """Describe in one line an error about the libraries' cache (a full disk, a read-only folder). None for other errors."""
    import datasets.config
    import huggingface_hub.constants

    caches = {str(datasets.config.HF_DATASETS_CACHE), huggingface_hub.constants.HF_HUB_CACHE}
    for cause in chain_of(error):
        if not isinstance(cause, OSError):
            continue
        cache = next((cache for cache in caches if str(cause.filename or "").startswith(cache)), None)
        if cache is not None or cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            where = f"the cache in {cache}" if cache else "the cache of the Hugging Face libraries"
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                problem = f"is full ({cause.strerror}): free some disk space there"
            elif cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                problem = f"cannot be written to ({cause.strerror}): make it writable"
            else:
                problem = f"cannot be used ({cause.strerror}: {cause.filename}): correct this path"
            return f"{where} {problem}, or set HF_HOME to another folder"
    return None


def is_temporary(error: BaseException) -> bool:
    """Return whether a failure may be temporary: a server error, too many requests, a time-out, a broken download."""
    from huggingface_hub import errors as hub

    chain = chain_of(error)
    offline = any(isinstance(e, (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError)) for e in chain)
    if offline or _is_unreachable(error):
        return False  # offline mode, or the client has already retried
    return any(_status(e) in TEMPORARY or _is_transport(e) or "Consistency check failed" in str(e) for e in chain)


def is_unanswered(error: BaseException) -> bool:
    """Return whether the Hub did not answer a request about a repository, so that the cached copy may be used."""
    return is_temporary(error) or _is_unreachable(error)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transport(error: BaseException, name: str = "TransportError") -> bool:
    # huggingface_hub has changed its HTTP package (httpx, httpx2), but the exceptions kept their names
    return any(base.__name__ == name for base in type(error).__mro__)


def _is_unreachable(error: BaseException) -> bool:
    """Return whether the Hub cannot be reached: no network, or offline mode."""
    from huggingface_hub import errors as hub

    return any(_is_transport(e, "ConnectError") or isinstance(e, hub.OfflineModeIsEnabled) for e in chain_of(error))


def explain_hub_error(error: BaseException, repository: str) -> str:
    """Explain a failed request to the Hub in one line. Raises ``error`` again if the cause is something else."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors as hub

    chain = chain_of(error)
    if message := explain_cache_error(error):
        return message

    def first(*classes: type) -> BaseException | None:
        return next((e for e in chain if isinstance(e, classes)), None)

    missing = first(hub.RepositoryNotFoundError, DatasetNotFoundError)
    if first(hub.GatedRepoError) or "is a gated dataset" in str(missing):  # datasets raises the same class for both
        return f"access is gated: request it on the Hub page of {repository}, then log in with `hf auth login`"
    if missing:
        return "not found on the Hub, or private: check the name, or log in with `hf auth login`"
    if failed := next((e for e in chain if _status(e) in TEMPORARY), None):
        return (
            f"the Hub answered with an error (status {_status(failed)}), and {repository} is not in the cache: "
            "try again later (https://status.huggingface.co), or use a local path"
        )
    if any(map(_is_transport, chain)) and not _is_unreachable(error):
        return (
            f"the download of {repository} failed repeatedly ({one_line(chain[0], 100)}): "
            "check the network and try again, or use a local path"
        )
    if _is_unreachable(error) or first(hub.LocalEntryNotFoundError, ConnectionError):
        return "the Hub cannot be reached, and there is no copy in the cache: check the network, or use a local path"
    if first(hub.RevisionNotFoundError, hub.EntryNotFoundError):
        return f"the repository does not have the requested file, configuration or split ({one_line(chain[-1], 120)})"
    if first(hub.HfHubHTTPError):
        return f"the Hub refused the request ({one_line(chain[-1], 120)})"
    if "Consistency check failed" in str(chain[0]):
        return f"the download of {repository} was incomplete every time: check the network and try again"
    if "scripts are no longer supported" in str(chain[0]):
        return (
            "the data set is a loading script, which the datasets library no longer runs: download the data that the script reads, "
            "or a copy of the data set in Parquet, and use that file instead"
        )
    if type(chain[0]).__name__.startswith("DatasetGeneration"):  # its own text says nothing of the cause
        return f"its files cannot be read as a table ({one_line(chain[1] if len(chain) > 1 else error, 200)})"
    if isinstance(chain[0], (ValueError, OSError)) or type(chain[0]).__module__.startswith("datasets."):
        return one_line(chain[0], 200)
    raise chain[0]
