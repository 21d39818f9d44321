"""Uploads a finished model to the Hugging Face Hub: private by default. A failed upload never loses the model."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

from common.errors import RunError, UsageError, one_line
from common.hub import chain_of, is_temporary, try_again
from common.model_cards import PLACEHOLDER
from common.records import write_atomically

logger = logging.getLogger(__name__)


def check_login() -> None:
    """Raise :class:`UsageError` if the user is not logged in. Without this check, the run would fail only after training."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UsageError("--push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a saved model as ``name``. An existing repository gets a new commit.

    The model in ``folder`` does not change, except that its card gets the model's name.

    Returns:
        The address of the commit.

    Raises:
        RunError: The upload failed; the message has the command that completes it. Also raised if ``private`` is set but the
            repository exists and is public.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = try_again(
            lambda: api.create_repo(name, private=private, exist_ok=True), f"upload to {name}"
        ).repo_id
        public = private and not try_again(lambda: api.repo_info(repository), f"upload to {name}").private
        if not public:
            _name_model(folder / "README.md", repository)
            commit = try_again(
                lambda: api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message="Upload a Matryoshka embedding model"
                ),
                f"upload to {name}",
            )
            return str(commit.commit_url)
    # the client raises its own exceptions, those of its HTTP library, OSError and ValueError
    except Exception as error:
        logger.debug("traceback:", exc_info=True)
        command = shlex.join(["hf", "upload", name, str(folder), ".", *(["--private"] if private else [])])
        raise RunError(
            f"the model is trained and saved in {folder}, but the upload to {name} failed ({_why(error)}): "
            f"complete it with `{command}`"
        ) from None
    raise RunError(
        f"the model is trained and saved in {folder}, but not uploaded: {repository} exists and is public. "
        "Make it private on the Hub, choose another --hub_model_id, or set --hub_private_repo false"
    )


def _name_model(card: Path, name: str) -> None:
    if card.exists() and PLACEHOLDER in (text := card.read_text(encoding="utf-8")):
        write_atomically(card, text.replace(PLACEHOLDER, name))


def _why(error: BaseException) -> str:
    statuses: list[Any] = [getattr(getattr(e, "response", None), "status_code", None) for e in chain_of(error)]
    status = next((status for status in statuses if status), None)
    if status in (401, 403):
        wrong = "is not valid" if status == 401 else "has no write permission for this repository"
        return f"status {status}: the token {wrong}; log in with another token (`hf auth login`)"
    if status is not None:
        return f"status {status}"
    return "the connection failed" if is_temporary(error) else one_line(error, 160)
