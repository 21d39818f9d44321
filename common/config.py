"""Configuration: a dataclass declares the keys, a JSON file holds their defaults, and each key has a flag of the same name.

Precedence: the defaults file, then ``--config other.json``, then the flags. The type of every value is checked,
and an error about an unknown key suggests the closest known one. This module imports nothing heavy, so that ``--help`` and usage
errors appear at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from common.errors import UsageError, one_line
from common.flags import has_flag, make_parser, settle_switches
from common.keys import check_value, keys_of, resolve_path, suggest

ROOT = Path(__file__).resolve().parents[1]
ConfigT = TypeVar("ConfigT", bound="Config")


@dataclasses.dataclass
class Config:
    """Base of the configuration classes. It records which keys the user set.

    Related scripts share a defaults file. The class that names the file declares their common keys, and each script has a
    subclass of it.
    """

    defaults_file: ClassVar[str]  # under configs/
    # a field, so that dataclasses.replace copies it; without a Key, so that it is not a configuration key
    _set_keys: frozenset[str] = dataclasses.field(default=frozenset(), kw_only=True, repr=False, compare=False)

    def is_set(self, key: str) -> bool:
        """Return whether the user set a key, in ``--config`` or with a flag. Raises :class:`KeyError` for an unknown key."""
        if key not in keys_of(type(self)):
            raise KeyError(key)
        return key in self._set_keys


def keys_of_family(cls: type[Config]) -> set[str]:
    """Return the keys of all configuration classes that share the defaults file of ``cls``."""
    root = next(base for base in cls.__mro__ if "defaults_file" in vars(base))

    def descendants(base: type) -> set[str]:
        return set(keys_of(base)).union(*(descendants(subclass) for subclass in base.__subclasses__()))

    return descendants(root)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises :class:`UsageError` if it is missing or not valid, or if a key is duplicated."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{path}: the key {duplicates[0]!r} is duplicated")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise UsageError(f"{path}: {name} is not valid JSON; use a finite number")

    try:
        values = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except FileNotFoundError:
        raise UsageError(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a configuration file") from None
    except UnicodeDecodeError:
        from common.formats import not_utf8

        raise UsageError(not_utf8(path)) from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UsageError(f"{path}: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must contain one JSON object")
    return values


def load_config(
    cls: type[ConfigT],
    description: str,
    argv: list[str] | None = None,
    positional: str | None = None,
) -> ConfigT:
    """Read the defaults, ``--config`` and the flags into an instance of ``cls``.

    Args:
        cls: A dataclass whose fields are ``Annotated[type, Key(...)]``.
        description: The text at the top of ``--help``.
        argv: The command-line arguments; by default those of the process.
        positional: The key whose value may be given without its flag.

    Raises:
        UsageError: A key is unknown, or its value has the wrong type or is not allowed.
    """
    keys, family = keys_of(cls), keys_of_family(cls)
    base_path = ROOT / "configs" / cls.defaults_file
    base = read_json(base_path)
    for name in base:
        if name not in family:
            raise UsageError(f"{base_path}: unknown key {name!r}{suggest(name, keys)}")
    if missing := [name for name in keys if name not in base]:
        raise UsageError(f"{base_path}: no default for {missing[0]!r}")
    values = {name: base[name] for name in keys}

    parser = make_parser(cls, values, description, positional)
    argv = sys.argv[1:] if argv is None else argv
    arguments, unknown = parser.parse_known_args(settle_switches(keys, argv) if positional else argv)
    for text in unknown:
        flag = text.split("=")[0]
        if flag.startswith("-"):
            name = flag.lstrip("-")
            if name in keys:
                raise UsageError(f"{name!r} has no flag: set it in a --config file")
            with_flag = {key for key, (type_hint, _) in keys.items() if has_flag(type_hint)}
            hint = suggest(name, [*with_flag, "config", "help"], "--")
            if not hint and (hint := suggest(name, keys.keys() - with_flag)):
                hint = hint.removesuffix("?") + ", which is set in a --config file?"
            raise UsageError(f"unknown flag {flag}{hint} (see {parser.prog} --help)")
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r} (see {parser.prog} --help)")

    chosen: dict[str, tuple[str, Any]] = {}
    flags = vars(arguments)
    file, bare = flags.pop("config", None), flags.pop("positional", None)
    if file is not None:
        file = Path(resolve_path("--config", str(file)))
        for name, value in read_json(file).items():
            if name not in keys:
                hint = "; it belongs to another script" if name in family else suggest(name, keys)
                raise UsageError(f"{file}: unknown key {name!r}{hint}")
            chosen[name] = (f"{file}: {name!r}", value)
    chosen |= {name: (f"--{name}", value) for name, value in flags.items()}
    if bare is not None:
        if flags.get(positional, bare) != bare:
            raise UsageError(f"{positional} has two values: {bare!r} and --{positional} {flags[positional]!r}")
        chosen[positional] = (positional.upper(), bare)

    sources = {name: (f"{base_path}: {name!r}", value) for name, value in values.items()} | chosen
    checked = {name: check_value(where, value, *keys[name]) for name, (where, value) in sources.items()}
    return cls(**checked, _set_keys=frozenset(chosen))


def default(defaults_file: str, name: str) -> Any:
    """Return the default of one key."""
    return read_json(ROOT / "configs" / defaults_file)[name]


def as_dict(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain JSON values."""
    values = dataclasses.asdict(config)
    return {name: values[name] for name in keys_of(type(config))}
