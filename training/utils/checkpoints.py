"""Checkpoints with a manifest, which is written last.

A checkpoint is *complete* if it has a manifest that matches the names and sizes of its files. It is *intact* if the manifest also
matches their contents.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path

from common.errors import RunError
from common.records import write_atomically
from training.utils.processes import get_world_size

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "trainer_state.json"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in an output directory, oldest first, complete or not."""
    paths = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in an output directory, oldest first."""
    return [path for path in checkpoints(folder) if why_unusable(path, contents=False) is None]


def describe_last_checkpoint(folder: Path) -> str:
    """Describe the last complete checkpoint, for an error message."""
    complete = complete_checkpoints(folder)
    return f"the last complete checkpoint is {complete[-1]}" if complete else "there is no complete checkpoint yet"


def seal(checkpoint: Path) -> None:
    """Write the manifest after all other files are on disk: ``{file: {"bytes": ..., "sha256": ...}}``."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        _sync(path)
        files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_atomically(checkpoint / MANIFEST, json.dumps(files, indent=2) + "\n")
    _sync(checkpoint)
    _sync(checkpoint.parent)


def why_unusable(checkpoint: Path, contents: bool = True) -> str | None:
    """Return why a checkpoint is not intact, or None if it is.

    Args:
        contents: Check the contents of the files; otherwise only whether the checkpoint is complete.
    """
    if not (checkpoint / MANIFEST).is_file():
        return f"it is not complete (no {MANIFEST})"
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        if STATE not in expected:
            return f"its {MANIFEST} lacks {STATE}"
        for name, (size, digest) in expected.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if contents and _sha256(path) != digest:
                return f"{name} is corrupt"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    return None


def is_latest(wanted: str) -> bool:
    """Return whether ``--resume_from_checkpoint`` is ``latest`` (or ``true``) and not a path."""
    return wanted.lower() in ("latest", "true")


def find_checkpoint(folder: Path, wanted: str) -> Path:
    """Return the checkpoint to resume from: for ``latest`` the newest intact one in ``folder``, otherwise the path ``wanted``.

    Raises:
        RunError: There is no such checkpoint, or it is not intact.
    """
    paths = checkpoints(folder)
    if not is_latest(wanted):
        if not (Path(wanted) / STATE).is_file():
            listed = f"; {folder} has {', '.join(path.name for path in paths)}" if paths else ""
            raise RunError(f"--resume_from_checkpoint {wanted} is not a checkpoint{listed}")
        if reason := why_unusable(Path(wanted)):
            raise RunError(f"--resume_from_checkpoint {wanted}: {reason}; 'latest' uses the newest intact checkpoint")
        return Path(wanted)
    for path in reversed(paths):
        reason = why_unusable(path)
        if reason is None:
            return path
        logger.warning("skipping %s: %s", path, reason)
    if paths:
        raise RunError(
            f"{folder} has no intact checkpoint to resume from: start again, with --overwrite_output_dir instead of --resume_from_checkpoint"
        )
    raise RunError(f"{folder} has no checkpoint to resume from: run the command without --resume_from_checkpoint")


def remove_incomplete(folder: Path) -> None:
    """Remove incomplete checkpoints, so that they do not count towards ``save_total_limit``."""
    for path in checkpoints(folder):
        if reason := why_unusable(path, contents=False):
            logger.info("removing %s: %s", path, reason)
            shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def resume_command() -> str:
    """Return the current command with the flag that resumes from the latest checkpoint."""
    flag, words = "--resume_from_checkpoint", sys.argv[1:]
    words = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if flag not in (before, word) and not word.startswith(f"{flag}=")
    ]
    launcher = ["python"]
    if get_world_size() > 1:
        launcher = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", str(get_world_size()))]
    return shlex.join([*launcher, sys.argv[0], *words, flag, "latest"])
