"""A user's mistake ends with one line and an exit code, never with a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from common.redact import redact

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class RunError(Exception):
    """The run failed for a reason that the user can act on: exit code 1. The message is one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a name or a value in it may hold line breaks


class UsageError(RunError):
    """The command or the configuration is wrong: exit code 2. The message is one line."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of ``error`` on one line of at most ``limit`` characters, with the error's type if it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _close_progress_bars() -> None:
    if "tqdm.std" in sys.modules:
        for bar in list(sys.modules["tqdm.std"].tqdm._instances):
            bar.close()


def run(main: Callable[[], None]) -> None:
    """Call ``main`` and end the process: 0, or 2 for a usage error, 1 for a failure, 130 for Ctrl-C.

    Errors that are not the user's keep their traceback, since whoever mends them needs it.
    """
    try:
        main()
    except RunError as error:
        _close_progress_bars()  # or they draw themselves once more, below the message
        print(f"error: {redact(str(error))}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is not installed: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {redact(one_line(error))}", file=sys.stderr)
        logging.getLogger(__name__).debug("where it came from:", exc_info=True)
        sys.exit(EXIT_FAILURE)
