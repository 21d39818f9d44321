"""Adds the licences of the training data, as stated by the data sets' cards, to the card of the trained model."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from common.data_files import is_local_path
from common.errors import one_line

logger = logging.getLogger(__name__)

NOT_STATED = "not stated"
UNREADABLE = "unknown: the card could not be read"
OWN_FILE = "your own file"
# in the Hub's identifiers of non-commercial licences (cc-by-nc-4.0, cc-by-nc-sa-3.0, fair-noncommercial-research-license)
NON_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|non-?commercial", re.IGNORECASE)


def licence_of(path: str, revision: str | None = None) -> str:
    """Return the licence in the metadata of a data set's card, as the Hub's identifier; several are joined by commas."""
    if is_local_path(path):
        return OWN_FILE
    try:
        from huggingface_hub import DatasetCard, hf_hub_download

        card = DatasetCard.load(hf_hub_download(path, "README.md", repo_type="dataset", revision=revision))
    except Exception as error:  # an unreadable card must not end the run
        logger.warning("the licence of %s cannot be read: %s", path, one_line(error, 100))
        return UNREADABLE
    metadata = card.data.to_dict()
    stated = metadata.get("license_name") if metadata.get("license") == "other" else metadata.get("license")
    names = stated if isinstance(stated, list) else [stated or metadata.get("license")]
    return ", ".join(str(name) for name in names if name) or NOT_STATED


def licences_of(paths: Iterable[str]) -> dict[str, str]:
    """Return the licence of each data set of a run, by path."""
    return {path: licence_of(path) for path in dict.fromkeys(paths)}


def describe_licences(licences: dict[str, str]) -> str:
    """Return the section for the model's card."""
    lines = ["## Licences of the training data", "", "According to the data sets' cards:", ""]
    lines += [f"- {path}: {licence}" for path, licence in licences.items()]
    forbidden = [path for path, licence in licences.items() if NON_COMMERCIAL.search(licence)]
    if forbidden:
        lines += ["", f"**Not for commercial use**: the licence of {', '.join(forbidden)} forbids it."]
    unknown = [path for path, licence in licences.items() if licence in (NOT_STATED, UNREADABLE)]
    if unknown:
        lines += ["", f"Check the terms of {', '.join(unknown)} before you use the model."]
    return "\n".join(lines) + "\n"
