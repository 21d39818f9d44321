"""How a run came about, written as ``run.json`` next to its results; and files that are written and read with care."""

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
    """While this lasts, an OSError says which file it is about, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary file next to ``path`` and move it into place: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with filename_in_errors(path), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_atomically(path: Path, advice: str) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``path`` at the end: that appears complete or not at all.

    Raises:
        RunError: It could not be written; the message ends with ``advice``.
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


def quarantine(path: Path, why: str) -> None:
    """Rename a corrupt file to ``<name>.damaged``, with a warning: it is neither trusted nor lost, and its content is computed again."""
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    logger.warning("%s is damaged (%s): kept as %s and written again", path, why, aside.name)


def read_json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours; an empty one where there is no such file, or where it is corrupt and put in quarantine."""
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
    """The command as typed but for secrets, with the script's path relative to the repository where it lies inside."""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(ROOT):
        script = script.relative_to(ROOT)
    return shlex.join(redact(text) for text in ["python", str(script), *sys.argv[1:]])


def git_state() -> dict[str, Any]:
    """The commit that the code is at, and whether tracked files differ from it; empty outside a checkout."""

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
    """The versions of Python and of the libraries that a score can depend on."""
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
    """The processor's extensions that the speed of matrix products depends on; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")[2].split()
    return [name for name in CPU_FEATURES if name in flags]


def hardware() -> dict[str, Any]:
    """The processor and its extensions, the cores that this process may use, the memory in GiB, and the accelerators."""
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
    """The values of a ``run.json``, or None where there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("config"), dict) else None


class RunRecord:
    """Collects what is known of a run and writes it: at the start as ``running``, at the end as ``finished``.

    Args:
        path: The ``run.json`` to write.
        config: The resolved configuration, as JSON values.
        **facts: Anything else that is known at the start.
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
