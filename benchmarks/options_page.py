"""docs/options.md: every option of every script, from the classes that define them and the files that contain their defaults.

benchmarks/update_readme.py writes the page.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import ROOT, read_json
from common.keys import Key, describe, keys_of, without_none
from evaluation.utils.options import MTEBConfig, STSConfig
from training.utils.export_options import ExportConfig
from training.utils.mining_options import MiningConfig
from training.utils.options import LOSSES, DatasetEntry, HybridConfig, MatryoshkaNLIConfig

PAGE = ROOT / "docs/options.md"
SCRIPTS = (  # title, and the classes of the scripts, whose common options are listed once
    ("Training", {"training/matryoshka_nli.py": MatryoshkaNLIConfig, "training/hybrid_training.py": HybridConfig}),
    ("Evaluation", {"evaluation/evaluate_mteb.py": MTEBConfig, "evaluation/evaluate_sts.py": STSConfig}),
    ("Export", {"training/export_model.py": ExportConfig}),
    ("Mining hard negatives", {"training/mine_negatives.py": MiningConfig}),
)
INTRODUCTION = """# Options

<!-- Written by benchmarks/update_readme.py from the configuration classes. Do not edit. -->

Each option is a key of a configuration file and, unless it is marked with \\*, also a flag of the same name. The defaults file is
read first, then the file that `--config` names, then the flags.
"""


def options_page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION]
    for title, scripts in SCRIPTS:
        classes = list(scripts.values())
        file = f"configs/{classes[0].defaults_file}"
        defaults = read_json(ROOT / file)
        parts.append(f"## {title}\n\nDefaults: [`{file}`](../{file}).\n")
        common = [name for name in keys_of(classes[0]) if all(name in keys_of(cls) for cls in classes)]
        both = " and ".join(f"`{script}`" for script in scripts)
        parts.append(f"{both}:\n\n" + table(keys_of(classes[0]), common, defaults))
        for script, cls in scripts.items():
            own = [name for name in keys_of(cls) if name not in common]
            if own:
                parts.append(f"`{script}` only:\n\n" + table(keys_of(cls), own, defaults))
        if HybridConfig in classes:
            parts += [data_set_section(), losses_section()]
    return "\n".join(parts)


def data_set_section() -> str:
    """Return the keys of an entry of "datasets", with the losses that support them."""
    used_by = {key: [name for name, loss in LOSSES.items() if key in loss.keys] for key in keys_of(DatasetEntry)}
    defaults = {
        f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(DatasetEntry)
    }
    lines = [
        [f"`{name}`", type_of(hint), default_of(defaults.get(name)), ", ".join(used_by[name]) or "all", text_of(key)]
        for name, (hint, key) in keys_of(DatasetEntry).items()
    ]
    return "### A data set of a mixture\n\nThe keys of each entry of `datasets`:\n\n" + markdown(
        ["key", "type", "default", "losses", "meaning"], lines
    )


def losses_section() -> str:
    """Return the columns of each loss, with the other names that are recognised."""
    lines = [
        [f"`{name}`", columns(loss.required), columns(loss.optional) or "–", "yes" if loss.contrastive else "no"]
        for name, loss in LOSSES.items()
    ]
    return (
        "### The columns of each loss\n\nOther recognised names are in brackets. For any other name, use `columns`.\n\n"
        + markdown(["loss", "columns", "optional columns", "in-batch negatives"], lines)
    )


def columns(of: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(
        f"`{name}`" + (f" ({', '.join(f'`{other}`' for other in others)})" if others else "")
        for name, others in of.items()
    )


def table(keys: dict[str, tuple[Any, Key]], names: list[str], defaults: dict[str, Any]) -> str:
    lines = [
        [
            f"`{name}`" + (" \\*" if is_object(keys[name][0]) else ""),
            type_of(keys[name][0], keys[name][1].choices),
            default_of(defaults.get(name)),
            text_of(keys[name][1]),
        ]
        for name in names
    ]
    return markdown(["option", "type", "default", "meaning"], lines)


def is_object(hint: Any) -> bool:
    """Return whether a value of this type cannot be given as a flag."""
    return get_origin(without_none(hint)[0]) is dict


def type_of(hint: Any, choices: tuple[str, ...] | None = None) -> str:
    if choices:
        return " or ".join(f"`{choice}`" for choice in choices)
    inner, _ = without_none(hint)
    if get_origin(inner) is dict and dataclasses.is_dataclass(get_args(inner)[1]):
        return "an object: data sets by name"
    return describe(hint).replace("|", "\\|")


def default_of(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "–"
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= 60 else "see the file"


def text_of(key: Key) -> str:
    return key.help.replace("|", "\\|")


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
