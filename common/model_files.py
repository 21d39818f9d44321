"""Which files of a model are pickled: unpacking a pickle can run whatever its author wrote into it."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path

from common.errors import RunError

# what transformers, peft and sentence-transformers read, and what they prefer to it
PICKLED = {
    "pytorch_model.bin": "model.safetensors",
    "pytorch_model.bin.index.json": "model.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
NESTED = ("Router", "Asym")  # modules that hold others, in folders of their own


def refuse_pickles(source: str, revision: str | None) -> None:
    """Raise :class:`RunError` where weights of a model are there as a pickle alone.

    Args:
        source: The model's folder, or its name on the Hub.
        revision: Its commit; None for a folder.
    """
    files = _files(source, revision)
    for folder in _module_folders(source, revision, files):
        for pickled, safe in PICKLED.items():
            path = f"{folder}/{pickled}".lstrip("/")
            known = {f"{folder}/{safe}".lstrip("/"), f"{folder}/{safe}.index.json".lstrip("/")}
            if path in files and not known & files:
                raise RunError(
                    f"model {source}: {path} is pickled, and unpacking a pickle can run any code: use a revision with "
                    f"{safe}, convert it (https://huggingface.co/spaces/safetensors/convert), or, if you trust its "
                    "author, give --allow_pickle"
                )


def _files(source: str, revision: str | None) -> set[str]:
    """The names of a model's files; of one that only the cache has, those in the cache."""
    if revision is None:
        return {path.relative_to(source).as_posix() for path in Path(source).rglob("*") if path.is_file()}
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        snapshot = Path(constants.HF_HUB_CACHE, f"models--{source.replace('/', '--')}", "snapshots", revision)
        return {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    return set(HfApi().list_repo_files(source, revision=revision))


def _module_folders(source: str, revision: str | None, files: set[str]) -> set[str]:
    """The folders that modules are loaded from, relative to the model's."""
    from sentence_transformers.util import load_file_path

    path = load_file_path(source, "modules.json", revision=revision) if "modules.json" in files else None
    if path is None:
        return {""}
    modules = json.loads(Path(path).read_text(encoding="utf-8"))
    if any(str(module["type"]).endswith(NESTED) for module in modules):
        return {path.rpartition("/")[0] for path in files}
    folders = {""}
    for module in modules:
        folder = posixpath.normpath(str(module["path"]) or ".")
        if folder.startswith(("..", "/")):
            raise RunError(
                f"model {source}: modules.json names the folder {module['path']!r}, which is outside of the model"
            )
        folders.add("" if folder == "." else folder)
    return folders
