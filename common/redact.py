"""Removes secrets from logs, records and reports."""

from __future__ import annotations

import os
import re
from typing import Any

SHOWN = "***"
SECRET_NAME = r"(?:\w*[_-])?(?:token|password|passwd|secret|api_?key|access_?key)"
IN_URL = re.compile(r"(\w://)[^/\s@'\"]+@")  # https://user:token@host
OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
NAMED = re.compile(rf"\b({SECRET_NAME})=[^\s&'\"]+", re.IGNORECASE)  # ?token=..., WANDB_API_KEY=...
SHORTEST = 8  # characters; a shorter value of an environment variable is treated as a switch, not a secret


def redact(text: str) -> str:
    """Remove credentials in URLs, Hub tokens, ``token=...`` and the values of secret environment variables from ``text``."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and re.fullmatch(SECRET_NAME, name, re.IGNORECASE):
            text = text.replace(value, SHOWN)
    return NAMED.sub(rf"\1={SHOWN}", OF_THE_HUB.sub(SHOWN, IN_URL.sub(rf"\g<1>{SHOWN}@", text)))


def redact_values(value: Any, name: str = "") -> Any:
    """Redact JSON values in the same way. Any string under a key such as ``hub_token`` is treated as a secret."""
    if isinstance(value, dict):
        return {redact(str(key)): redact_values(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(inner, name) for inner in value]
    if isinstance(value, str):
        return SHOWN if value and re.fullmatch(SECRET_NAME, name, re.IGNORECASE) else redact(value)
    return value
