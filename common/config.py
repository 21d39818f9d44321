"""Configuration: a dataclass says which keys there are, a JSON file holds their defaults, flags have the same names.

Precedence: the defaults file, then ``--config other.json``, then the flags. Every key is type-checked wherever it comes
from, and an unknown one is an error that suggests the right one. Nothing heavy is imported here, so that ``--help`` and a
wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from common.errors import UsageError, one_line

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound="Config")


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key has besides its type: a help text, the values that are allowed, and the lower bound of a number.

    With ``path`` the value is, or may be, a path: :func:`resolve_path` resolves it, here and nowhere else.
    """

    help: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    above: float | None = None
    path: bool = False


@dataclasses.dataclass
class Config:
    """The base of the configuration classes: it knows which keys the user set.

    The scripts of one kind share a defaults file. The class that names it holds the keys that they have in common, and each
    script has a subclass of that class.
    """

    defaults_file: ClassVar[str]  # under configs/
    # a field, so that it survives dataclasses.replace; without a Key, so that it is no key of the configuration
    _set_keys: frozenset[str] = dataclasses.field(default=frozenset(), kw_only=True, repr=False, compare=False)

    def is_set(self, key: str) -> bool:
        """Whether the user set a key, in ``--config`` or by a flag. Raises :class:`KeyError` where there is no such key."""
        if key not in keys_of(type(self)):
            raise KeyError(key)
        return key in self._set_keys


def keys_of(cls: type) -> dict[str, tuple[Any, Key]]:
    """The type and the :class:`Key` of each field of a configuration class that has a :class:`Key`."""
    hints = typing.get_type_hints(cls, include_extras=True)
    annotated = {f.name: hints[f.name] for f in dataclasses.fields(cls) if get_origin(hints[f.name]) is Annotated}
    return {name: get_args(hint)[:2] for name, hint in annotated.items()}


def keys_of_family(cls: type[Config]) -> set[str]:
    """The keys of all configuration classes that share the defaults file of ``cls``."""
    root = next(base for base in cls.__mro__ if "defaults_file" in vars(base))

    def descendants(base: type) -> set[str]:
        return set(keys_of(base)).union(*(descendants(subclass) for subclass in base.__subclasses__()))

    return descendants(root)


def without_none(hint: Any) -> tuple[Any, bool]:
    """``int | None`` gives ``(int, True)``."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not type(None)]
        return inner[0], True
    return hint, False


def describe(hint: Any) -> str:
    hint, optional = without_none(hint)
    if get_origin(hint) is list:
        text = f"a list of {describe(get_args(hint)[0]).split(' ', 1)[-1]}s"
    else:
        text = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}.get(hint, "an object")
    return f"{text} or null" if optional else text


def suggest(name: str, known: typing.Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def check_value(where: str, value: Any, hint: Any, key: Key | None = None) -> Any:
    """``value`` as the type ``hint`` asks for it.

    Raises:
        UsageError: The value is of another type, not one of the choices, or too small.
    """
    inner, optional = without_none(hint)
    wrong = UsageError(f"{where} must be {describe(hint)}, not {json.dumps(value, ensure_ascii=False, default=str)}")
    if value is None:
        if optional:
            return None
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
        raise UsageError(f"{where} holds a character that no text has: {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong
    if key is not None:
        if key.choices is not None and value not in key.choices:
            raise UsageError(
                f"{where} must be one of {', '.join(key.choices)}, not {value!r}{suggest(str(value), key.choices)}"
            )
        if key.minimum is not None and value < key.minimum:
            raise UsageError(f"{where} must be at least {key.minimum:g}, not {value:g}")
        if key.above is not None and value <= key.above:
            raise UsageError(f"{where} must be above {key.above:g}, not {value:g}")
        if key.path:
            return resolve_path(where, value)
    return value


def resolve_path(where: str, path: str) -> str:
    """``path`` with a leading ``~`` or ``~user`` replaced by the home folder; names on the Hub stay as they are.

    A shell does this only for a bare word: not in ``--output_dir=~/runs``, and not in a configuration file. Libraries do it for
    some of their arguments and not for others, which would split a run into two folders.

    Raises:
        UsageError: The path is empty, or there is no such user.
    """
    if not path.strip():
        raise UsageError(f"{where} must not be empty")
    resolved = os.path.expanduser(path)
    if resolved.startswith("~"):
        user = resolved.partition("/")[0]
        raise UsageError(f"{where}: there is no home folder for {user!r}; write ./{path} for a folder of that name")
    return resolved


def build(where: str, cls: type[T], values: Any) -> T:
    """An instance of a dataclass from a JSON object; keys with a default in the class are optional."""
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
            raise UsageError(f"{where} lacks the key {name!r}")
    return cls(**{name: check_value(f"{where}: {name!r}", value, *keys[name]) for name, value in values.items()})


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises :class:`UsageError` if there is none, or a key is duplicated."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{path}: the key {duplicates[0]!r} is duplicated")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise UsageError(f"{path}: {name} is not a number that JSON has")

    try:
        values = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except FileNotFoundError:
        raise UsageError(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a configuration file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UsageError(f"{path}: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold one JSON object")
    return values


def parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def flag_type(hint: Any, optional: bool) -> Any:
    def convert(text: str) -> Any:
        if optional and text.lower() in ("none", "null"):
            return None
        try:
            return int(text) if hint is int else float(text) if hint is float else text
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {describe(hint)}, not {text!r}") from None

    return convert


def make_parser(cls: type, defaults: dict[str, Any], description: str, positional: str | None) -> Parser:
    """A parser with one flag for each key of ``cls`` that a flag can hold; objects go into a configuration file."""
    parser = Parser(
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # a flag that is not given leaves no trace
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a JSON file with any of the keys below, and those that only a file can hold",
    )
    for name, (hint, key) in keys_of(cls).items():
        inner, optional = without_none(hint)
        default = defaults.get(name)
        shown = "none" if default is None else " ".join(map(str, default)) if isinstance(default, list) else default
        text = f"{key.help} (default: {shown})".replace("%", "%%")
        if name == positional:
            parser.add_argument("positional", nargs="?", metavar=name.upper(), help=f"the same as --{name}")
        if inner is bool:
            parser.add_argument(f"--{name}", type=parse_bool, nargs="?", const=True, metavar="true|false", help=text)
        elif get_origin(inner) is list:
            item = get_args(inner)[0]
            parser.add_argument(
                f"--{name}", type=flag_type(item, optional), nargs="+", metavar=name.upper().rstrip("S"), help=text
            )
        elif inner in (int, float, str):
            choices = f"{{{','.join(key.choices)}}}" if key.choices else name.upper()
            parser.add_argument(f"--{name}", type=flag_type(inner, optional), metavar=choices, help=text)
    return parser


def load_config(
    cls: type[ConfigT],
    description: str,
    argv: list[str] | None = None,
    positional: str | None = None,
) -> ConfigT:
    """Read the defaults, ``--config`` and the flags into an instance of ``cls``, which knows the keys that the user set.

    Args:
        cls: A dataclass whose fields are ``Annotated[type, Key(...)]``.
        description: What ``--help`` says first.
        argv: The arguments; those of the process by default.
        positional: The key that may also be given bare.

    Raises:
        UsageError: A key is unknown, of the wrong type, or has a value that is not allowed.
    """
    keys, family = keys_of(cls), keys_of_family(cls)
    base_path = ROOT / "configs" / cls.defaults_file
    base = read_json(base_path)
    for name in base:
        if name not in family:
            raise UsageError(f"{base_path}: unknown key {name!r}{suggest(name, keys)}")
    if missing := [name for name in keys if name not in base]:
        raise UsageError(f"{base_path}: lacks the default of {missing[0]!r}")
    values = {name: base[name] for name in keys}

    parser = make_parser(cls, values, description, positional)
    argv = sys.argv[1:] if argv is None else argv
    arguments, unknown = parser.parse_known_args(_settle_switches(keys, argv) if positional else argv)
    for text in unknown:
        flag = text.split("=")[0]
        if flag.startswith("-"):
            raise UsageError(
                f"unknown flag {flag}{suggest(flag.lstrip('-'), [*keys, 'config', 'help'], '--')} (see {parser.prog} --help)"
            )
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
            raise UsageError(f"{positional} is given twice: {bare!r} and --{positional} {flags[positional]!r}")
        chosen[positional] = (positional.upper(), bare)

    sources = {name: (f"{base_path}: {name!r}", value) for name, value in values.items()} | chosen
    checked = {name: check_value(where, value, *keys[name]) for name, (where, value) in sources.items()}
    return cls(**checked, _set_keys=frozenset(chosen))


def _settle_switches(keys: dict[str, tuple[Any, Key]], argv: list[str]) -> list[str]:
    """``--switch`` alone means true, and does not take the bare MODEL behind it for its value."""
    switches = {f"--{name}" for name, (hint, _) in keys.items() if without_none(hint)[0] is bool}
    settled: list[str] = []
    for index, text in enumerate(argv):
        if index and argv[index - 1] in switches and _is_bool(text):
            settled[-1] += f"={text}"
        else:
            settled.append(text)
    return [f"{text}=true" if text in switches else text for text in settled]


def _is_bool(text: str) -> bool:
    try:
        parse_bool(text)
    except argparse.ArgumentTypeError:
        return False
    return True


def default(defaults_file: str, name: str) -> Any:
    """The default of one key."""
    return read_json(ROOT / "configs" / defaults_file)[name]


def as_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    values = dataclasses.asdict(config)
    return {name: values[name] for name in keys_of(type(config))}
