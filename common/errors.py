"""Turns users' mistakes into a one-line message and an exit code, never a traceback."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from common.redact import redact
from common.script import OURS

EXIT_FAILURE, EXIT_USAGE, EXIT_SIGNAL = 1, 2, 128
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FULL = 2**20  # bytes; a disk with less free space counts as full
# in the messages of errors about files that are not OSErrors: Rust libraries, and torch.save
DISK_ERRORS = ("(os error ", "PytorchStreamWriter", "unexpected pos ")


class RunError(Exception):
    """The run failed for a reason that the user can fix. Exit code 1; the message is one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a name or a value in the message may contain line breaks


class UsageError(RunError):
    """The command or the configuration is wrong. Exit code 2; the message is one line."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the run. Exit code 130 or 143; the message is one line."""

    def __init__(self, number: int, message: str | None = None):
        super().__init__(message or ("interrupted" if number == signal.SIGINT else "terminated"))
        self.number = number


def cut(text: str, limit: int) -> str:
    """Return ``text``, or its first ``limit`` - 1 characters and an ellipsis if it is longer than ``limit``."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the text of ``error`` on one line of at most ``limit`` characters, without a final full stop, or its type if it has none."""
    text = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    return cut(text, limit)


def shortened(value: object, limit: int = 100) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters, for a message."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return cut(text, limit)


def listed(names: Iterable[str], limit: int = 200) -> str:
    """Return names separated by commas, cut to ``limit`` characters, for a message.

    Names that are empty, or that look like others because of surrounding spaces or invisible marks, are written with ``repr``.
    """
    text = ", ".join(name if name and name.isprintable() and name == name.strip() else repr(name) for name in names)
    return cut(text, limit)


def _close_progress_bars() -> None:
    if "tqdm.std" in sys.modules:
        for bar in list(sys.modules["tqdm.std"].tqdm._instances):
            bar.close()


def check_outside(flag: str, folder: Path, models: Iterable[str | None]) -> None:
    """Raise :class:`UsageError` if a folder to write to is that of one of ``models``, or inside it.

    A model is identified by a hash of its files, so new files would make it another model.
    """
    for model in models:
        if model is not None and Path(model).is_dir() and folder.resolve().is_relative_to(Path(model).resolve()):
            raise UsageError(f"{flag} {folder} is inside the model's folder {model}: choose a folder outside it")


def check_writable(flag: str, folder: Path) -> None:
    """Raise :class:`UsageError` if ``folder`` neither exists nor can be created, or files cannot be written to it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{flag} {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise UsageError(f"{flag} {folder}: {existing} is not writable")


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Turn any failure to write ``path`` into a one-line error, which ends with ``advice`` if the cause is the disk.

    On a full disk, Python raises OSError, torch RuntimeError, safetensors SafetensorError and tokenizers a bare Exception.
    Not all of these messages mention the disk. Other exceptions are named by their type.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("traceback:", exc_info=True)
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        full = shutil.disk_usage(parent).free < FULL
        if full:
            raise RunError(f"{path} could not be written (no space left on the disk): {advice}") from error
        if isinstance(error, OSError) or any(words in str(error) for words in DISK_ERRORS):
            raise RunError(f"{path} could not be written ({one_line(error, 160)}): {advice}") from error
        raise RunError(f"{path} could not be written: {type(error).__name__}: {one_line(error, 160)}") from error


@contextmanager
def on_signal(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context, SIGINT and SIGTERM call ``handler``, unless the parent process set them to be ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            if (
                signal.getsignal(number) != signal.SIG_DFL
            ):  # otherwise one signal has arrived already, and the next one ends the process
                signal.signal(number, before[number])


def end_at_once_next_time() -> None:
    """Make the next signal end the process at once."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    end_at_once_next_time()
    raise Stopped(number)


def run(main: Callable[[], None]) -> None:
    """Call ``main`` and exit with 0, or with 2 for a usage error, 1 for a failure, 130 for Ctrl-C, 143 for SIGTERM.

    Errors in the code itself keep their traceback, which is needed to fix them.
    """
    try:
        with on_signal(_stop):
            main()
    except RunError as error:
        _close_progress_bars()  # otherwise progress bars are drawn again below the message
        print(f"error: {redact(str(error))}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
    except KeyboardInterrupt as stop:
        _close_progress_bars()
        print(redact(str(stop)) or "interrupted", file=sys.stderr)
        sys.exit(EXIT_SIGNAL + getattr(stop, "number", signal.SIGINT))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        print(
            f"error: the package {error.name} is not installed: run `pip install -r requirements.txt`", file=sys.stderr
        )
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {redact(one_line(error))}", file=sys.stderr)
        logging.getLogger(__name__).debug("traceback:", exc_info=True)
        sys.exit(EXIT_FAILURE)
