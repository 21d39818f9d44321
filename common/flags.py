"""The command line of a configuration: a flag for each key whose value fits on a command line."""

from __future__ import annotations

import argparse
import json
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

from common.errors import UsageError
from common.keys import Key, describe, keys_of, members_of, without_none


def parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def flag_type(hint: Any, optional: bool, takes_object: bool = False) -> Any:
    def convert(text: str) -> Any:
        if optional and text.lower() in ("none", "null"):
            return None
        try:
            if takes_object and text.lstrip().startswith("{"):
                return json.loads(text)
            return int(text) if hint is int else float(text) if hint is float else text
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}") from None

    wanted = f"{describe(hint)} or a JSON object" if takes_object else describe(hint)
    return convert


def has_flag(hint: Any) -> bool:
    """Return whether a key of this type has a flag. Objects are set in a configuration file."""
    return get_origin(without_none(hint)[0]) is not dict


def make_parser(cls: type, defaults: dict[str, Any], description: str, positional: str | None) -> Parser:
    """Return a parser with a flag for each key of ``cls``.

    Keys whose value is always an object have no flag, and can be set only in a configuration file.
    """
    parser = Parser(
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # a flag that the user does not set is absent from the result
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    all_have_flags = all(has_flag(hint) for hint, _ in keys_of(cls).values())
    others = "" if all_have_flags else ", and those without a flag (see docs/options.md)"
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"a JSON file that sets any of these options{others}"
    )
    for name, (hint, key) in keys_of(cls).items():
        inner, optional = without_none(hint)
        default = defaults.get(name)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        shown = str(default).lower() if isinstance(default, bool) else shown
        text = key.help if default in (None, []) else f"{key.help} (default: {shown})"
        text = text.replace("%", "%%")
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
            number = inner in (int, float)  # the help texts call it N
            metavar = f"{{{','.join(key.choices)}}}" if key.choices else "N" if number else name.upper()
            convert = flag_type(inner, optional, takes_object=len(members_of(hint)) > 1)
            parser.add_argument(f"--{name}", type=convert, metavar=metavar, help=text)
    return parser


def settle_switches(keys: dict[str, tuple[Any, Key]], argv: list[str]) -> list[str]:
    """Make ``--switch`` alone mean true, even before a positional MODEL, which would otherwise be read as the switch's value."""
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
