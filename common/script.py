"""Sets up logging for the entry scripts and silences the libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from common.redact import redact

OURS = ("__main__", "common", "training", "evaluation", "benchmarks")


def set_up_logging() -> None:
    """Log to standard error; the libraries log only warnings and errors. Standard output is only for the result."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_is_shown)
    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[handler], force=True
    )
    # "STS22 is superseded by STS22.v2", once for every dimension
    logging.getLogger("mteb.abstasks.abstask").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".* is superseded by")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _is_shown(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if redact(text) != text:
        record.msg, record.args = redact(text), ()
    return record.levelno >= logging.WARNING or record.name.split(".")[0] in OURS
