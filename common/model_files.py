"""The files of a model, in a folder or on the Hub: their names, the content of the JSON files, and which weights are pickled."""

from __future__ import annotations

import json
import posixpath
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import RunError, one_line

# pickled files that the libraries read, and the safetensors files that they prefer
PICKLED = {
    "pytorch_model.bin": "model.safetensors",
    "pytorch_model.bin.index.json": "model.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
CONFIGURED = (".Pooling", ".WeightedLayerPooling", ".Dense")  # modules that cannot be created without their config.json
NESTED = ("Router", "Asym")  # modules that contain other modules, in folders of their own


class ModelFiles:
    """The files of a model.

    Args:
        source: The model's folder, or its name on the Hub.
        revision: Its commit; None for a folder.

    Attributes:
        names: The paths of all files, relative to the model's folder; offline, only those in the cache.
    """

    def __init__(self, source: str, revision: str | None):
        self.source, self.revision = source, revision

    @cached_property
    def names(self) -> set[str]:
        if self.revision is None:
            return _names_in(Path(self.source))
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            cache = Path(constants.HF_HUB_CACHE, f"models--{self.source.replace('/', '--')}")
            return _names_in(cache / "snapshots" / self.revision)
        return set(HfApi().list_repo_files(self.source, revision=self.revision))

    def json(self, name: str) -> Any:
        """Return the content of one of the model's JSON files, or None if there is no such file.

        Raises:
            RunError: The file is not valid JSON.
        """
        if name not in self.names:
            return None
        from sentence_transformers.util import load_file_path

        path = load_file_path(self.source, name, revision=self.revision)
        if path is None:
            return None
        try:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # also of text that is not UTF-8
            raise RunError(f"model {self.source}: {name} is not valid JSON: {one_line(error)}") from None

    def object(self, name: str) -> dict[str, Any]:
        """Return the JSON object in one of the model's files, or an empty one if there is no such file."""
        values = self.json(name)
        return values if isinstance(values, dict) else {}

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """Return the entries of ``modules.json``; an empty list if the model was not saved by sentence-transformers."""
        return self.json("modules.json") or []


def refuse_pickles(files: ModelFiles) -> None:
    """Raise :class:`RunError` if some of a model's weights exist only as a pickle."""
    for folder in _module_folders(files):
        for pickled, safe in PICKLED.items():
            path = f"{folder}/{pickled}".lstrip("/")
            known = {f"{folder}/{safe}".lstrip("/"), f"{folder}/{safe}.index.json".lstrip("/")}
            if path in files.names and not known & files.names:
                raise RunError(
                    f"model {files.source}: {path} is pickled, and a pickle can contain code: convert it "
                    f"to {safe} (https://huggingface.co/spaces/safetensors/convert), or, if you trust the model's author, "
                    "add --allow_pickle"
                )


def check_modules(files: ModelFiles) -> None:
    """Raise :class:`RunError` if ``modules.json`` is not a list of modules, or a module lacks its configuration."""
    if not isinstance(files.modules, list) or not all(
        isinstance(module, dict) and {"type", "path"} <= module.keys() for module in files.modules
    ):
        raise RunError(f"model {files.source}: modules.json is not a list of modules, each with a type and a path")
    _module_folders(files)
    for module in files.modules:
        name = posixpath.normpath(f"{module.get('path') or '.'}/config.json")
        if str(module["type"]).endswith(CONFIGURED) and name not in files.names:
            kind = str(module["type"]).rpartition(".")[2]
            raise RunError(
                f"model {files.source} has no {name}, which its {kind} module needs: copy it from the original model"
            )


def _names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _module_folders(files: ModelFiles) -> set[str]:
    """Return the folders of the modules, relative to the model's folder."""
    if any(str(module["type"]).endswith(NESTED) for module in files.modules):
        return {path.rpartition("/")[0] for path in files.names}
    folders = {""}
    for module in files.modules:
        folder = posixpath.normpath(str(module["path"]) or ".")
        if folder.startswith(("..", "/")):
            raise RunError(
                f"model {files.source}: modules.json names the folder {module['path']!r}, which is outside the model's folder"
            )
        folders.add("" if folder == "." else folder)
    return folders
