"""Run records (``run.json``): how results were produced. Also writes files atomically and handles corrupt ones."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common.config import ROOT
from common.errors import one_line, writing
from common.redact import redact, redact_values

logger = logging.getLogger(__name__)

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "datasets",
    "peft",
    "mteb",
    "accelerate",
    "numpy",
    "scipy",
    "tokenizers",
)


@contextmanager
def filename_in_errors(path: Path) -> Iterator[None]:
    """Within this context, add the file's name to an OSError that lacks it, such as the one for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` atomically, through a temporary file next to ``path``: readers never see a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with filename_in_errors(path), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure could leave an empty file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_atomically(path: Path, advice: str) -> Iterator[Path]:
    """Yield the path of a temporary folder, which the caller creates.

    At the end the folder replaces ``path``, so that ``path`` is always either complete or absent.

    Raises:
        RunError: The folder could not be written; the message ends with ``advice``.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(path, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def quarantine(path: Path, why: str, consequence: str = "its content will be computed again") -> None:
    """Rename a corrupt file to ``<name>.corrupt`` with a warning that ends with ``consequence``."""
    aside, number = path.with_name(f"{path.name}.corrupt"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{number}")
    path.rename(aside)
    logger.warning("%s is corrupt (%s): renamed to %s; %s", path, why, aside.name, consequence)


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object that this project wrote. Returns an empty one if the file is missing or corrupt.

    A corrupt file is quarantined.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        quarantine(path, one_line(error, 100))
        return {}
    return values


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def command_line() -> str:
    """Return the command as typed, without secrets. A script inside the repository appears with its relative path."""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(ROOT):
        script = script.relative_to(ROOT)
    return shlex.join(redact(text) for text in ["python", str(script), *sys.argv[1:]])


def git_state() -> dict[str, Any]:
    """Return the code's commit and whether tracked files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return (
        {}
        if commit is None
        else {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that scores may depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Return the processor features that affect the speed of matrix products; empty if the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")[2].split()
    return [name for name in CPU_FEATURES if name in flags]


def hardware() -> dict[str, Any]:
    """Return the processor and its features, the cores that this process may use, the memory in GiB, and the accelerators."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cores": cores,
        "system": platform.system(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        facts["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        facts["accelerators"] = ["Apple MPS"]
    return facts


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the values of a ``run.json``, or None if there is no file, or it is not a valid record."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("config"), dict) else None


class RunRecord:
    """Collects the facts about a run and writes them, with the status ``running`` at the start and ``finished`` at the end.

    Args:
        path: The ``run.json`` to write.
        config: The resolved configuration, as JSON values.
        **facts: Further facts that are known at the start.
    """

    def __init__(self, path: Path, config: dict[str, Any], **facts: Any):
        self.path = path
        self._start = time.monotonic()
        self.values: dict[str, Any] = {
            "status": "running",
            "command": command_line(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": git_state(),
            "config": config,
            "versions": versions(),
            "hardware": hardware(),
            **facts,
        }

    def write(self, **facts: Any) -> None:
        self.values.update(facts)
        self.values["wall_time_s"] = round(time.monotonic() - self._start, 2)
        write_atomically(
            self.path, json.dumps(redact_values(self.values), indent=2, ensure_ascii=False, default=str) + "\n"
        )

    def finish(self, **facts: Any) -> None:
        self.write(status="finished", **facts)
