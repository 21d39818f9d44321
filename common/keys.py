"""The keys of a configuration: what a dataclass declares about each key, and how a value is checked."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import re
import types
import typing
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from common.errors import UsageError

T = TypeVar("T")
MAX_SUGGESTIONS = 3


@dataclasses.dataclass(frozen=True)
class Key:
    """The help text, the allowed values and the bounds of a key.

    ``path`` marks a value that is or may be a path; :func:`resolve_path` is the only function that resolves it.
    """

    help: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    path: bool = False


@functools.cache
def keys_of(cls: type) -> dict[str, tuple[Any, Key]]:
    """Return the type and the :class:`Key` of each field that has one."""
    hints = typing.get_type_hints(cls, include_extras=True)
    annotated = {f.name: hints[f.name] for f in dataclasses.fields(cls) if get_origin(hints[f.name]) is Annotated}
    return {name: get_args(hint)[:2] for name, hint in annotated.items()}


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return the first type of a union other than None, and whether None is allowed.

    ``int | None`` becomes ``(int, True)``.
    """
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not type(None)]
        return inner[0], type(None) in get_args(hint)
    return hint, False


def members_of(hint: Any) -> list[Any]:
    """Return the types of a union without None. ``str | dict[str, str] | None`` becomes ``[str, dict[str, str]]``."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    return [member for member in get_args(hint) if member is not type(None)] if is_union else [hint]


def describe(hint: Any) -> str:
    members = members_of(hint)
    if len(members) > 1:
        return " or ".join([*map(describe, members), *(["null"] if type(None) in get_args(hint) else [])])
    hint, optional = without_none(hint)
    if get_origin(hint) is list:
        # "an integer" becomes "integers"
        text = f"a list of {describe(get_args(hint)[0]).split(' ', 1)[-1]}s"
    else:
        text = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}.get(hint, "an object")
    return f"{text} or null" if optional else text


def suggest(name: str, known: typing.Iterable[str], prefix: str = "") -> str:
    """Return "; did you mean ...?" with the known names that resemble ``name`` or share their first or last words with it."""
    name, known = name.replace("-", "_"), sorted(known)

    def close(cutoff: float) -> list[str]:
        return difflib.get_close_matches(name, known, n=1, cutoff=cutoff)

    def with_shared_words(plural: str) -> list[str]:
        names = [other for other in known if share_words(name.removesuffix(plural), other.removesuffix(plural))]
        return names if len(names) <= MAX_SUGGESTIONS else []

    def share_words(first: str, second: str) -> bool:
        short, long = sorted((first, second), key=len)
        return bool(short) and (long.endswith(f"_{short}") or long.startswith(f"{short}_"))

    names = close(0.85) or with_shared_words("") or with_shared_words("s") or close(0.6)
    return f"; did you mean {' or '.join(prefix + other for other in names)}?" if names else ""


def check_value(where: str, value: Any, hint: Any, key: Key | None = None) -> Any:
    """Return ``value`` converted to the type ``hint``.

    Raises:
        UsageError: The value has the wrong type, is not one of the choices, is out of bounds, or is not valid text or a valid
            path.
    """
    inner, optional = without_none(hint)
    wrong = UsageError(f"{where} must be {describe(hint)}, not {json.dumps(value, ensure_ascii=False, default=str)}")
    if value is None:
        if optional:
            return None
        raise wrong
    if len(members := members_of(hint)) > 1:
        inner = next((member for member in members if isinstance(value, get_origin(member) or member)), None)
        if inner is None:
            raise wrong
    if dataclasses.is_dataclass(inner):
        return build(where, inner, value)
    if get_origin(inner) is list:
        if not isinstance(value, list):
            raise wrong
        return [check_value(f"{where}, item {i}", v, get_args(inner)[0], key) for i, v in enumerate(value, 1)]
    if get_origin(inner) is dict:
        if not isinstance(value, dict):
            raise wrong
        return {name: check_value(f"{where}.{name}", v, get_args(inner)[1]) for name, v in value.items()}
    if inner is Any:
        return value
    if inner is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, inner) or (inner is not bool and isinstance(value, bool)):
        raise wrong
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise UsageError(f"{where} contains a character that is not allowed in text: {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong
    if key is not None:
        if key.choices is not None and value not in key.choices:
            raise UsageError(
                f"{where} must be one of {', '.join(key.choices)}, not {value!r}{suggest(str(value), key.choices)}"
            )
        if key.minimum is not None and value < key.minimum:
            raise UsageError(f"{where} must be at least {key.minimum:g}, not {value:g}")
        if key.maximum is not None and value > key.maximum:
            raise UsageError(f"{where} must be at most {key.maximum}, not {value}")
        if key.above is not None and value <= key.above:
            raise UsageError(f"{where} must be above {key.above:g}, not {value:g}")
        if key.path:
            return resolve_path(where, value)
    return value


def resolve_path(where: str, path: str) -> str:
    """Replace a leading ``~`` or ``~user`` of ``path`` with the home folder. Hub names are returned unchanged.

    A shell does this only at the start of a word: not in ``--output_dir=~/runs``, and not in a configuration file.
    Libraries do it for some arguments and not for others, so without this a run could write to two folders.

    Raises:
        UsageError: The path is empty, or the user does not exist.
    """
    if not path.strip():
        raise UsageError(f"{where} must not be empty")
    resolved = os.path.expanduser(path)
    if resolved.startswith("~"):
        user = resolved.partition("/")[0]
        raise UsageError(f"{where}: there is no home folder for {user!r}; write ./{path} for a folder of that name")
    return resolved


def build(where: str, cls: type[T], values: Any) -> T:
    """Create a dataclass instance from a JSON object. Keys with a default in the class are optional."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} must be an object, not {json.dumps(values, default=str)}")
    keys = keys_of(cls)
    for name in values:
        if name not in keys:
            raise UsageError(f"{where} has an unknown key {name!r}{suggest(name, keys)}")
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in values:
            raise UsageError(f"{where}: the key {name!r} is missing")
    return cls(**{name: check_value(f"{where}: {name!r}", value, *keys[name]) for name, value in values.items()})
