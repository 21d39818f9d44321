"""The README shows the numbers of results/reference/, and commands that exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks.options_page import PAGE, options_page
from benchmarks.update_readme import BLOCK, DOCUMENTS, table_of, updated
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_arabic_readme_has_the_commands_and_numbers_of_the_english_one():
    arabic = (ROOT / "README.ar.md").read_text(encoding="utf-8")
    commands = [line.strip() for line in arabic.splitlines() if line.startswith("    ")]
    assert len(commands) > 5
    known = {line.split(" #")[0].strip() for line in README.splitlines() if line.startswith("    ")}
    assert set(commands) <= known
    outside = BLOCK.sub("", arabic)
    numbers = set(re.findall(r"(?<![\w./])\d[\d.]*\d", outside))
    assert numbers and numbers <= set(re.findall(r"\d[\d.]*\d", README)), "numbers that README.md does not have"
    assert BLOCK.findall(arabic) == ["results/reference/multilingual/headline.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_reference_results(path):
    text = path.read_text(encoding="utf-8")
    assert BLOCK.findall(text)
    assert updated(text) == text, "run python benchmarks/update_readme.py"


def test_the_page_of_options_is_what_the_classes_and_the_files_of_defaults_say():
    page = options_page()
    assert PAGE.read_text(encoding="utf-8") == page, "run python benchmarks/update_readme.py"
    for file in ("training", "eval", "export", "mining"):
        defaults = json.loads((ROOT / f"configs/{file}_config.json").read_text(encoding="utf-8"))
        for key, value in defaults.items():
            [line, *_] = re.findall(rf"^\| `{key}`.*\|$", page, re.MULTILINE)
            if isinstance(value, (bool, int, float)):
                assert f"| `{json.dumps(value)}` |" in page[page.index("## ") :] and line
    assert re.search(r"^\| `scale` .*\| mnrl, gist, cosent, angle \|", page, re.MULTILINE)


def test_a_changed_table_would_be_noticed():
    name = BLOCK.search(README)[1]
    row = next(line for line in table_of(name).splitlines() if line.startswith("| ") and any(c.isdigit() for c in line))
    assert row in README and updated(README.replace(row, row.replace("| ", "| 1", 1))) == README


def links() -> list[tuple[str, str]]:
    """Every document, and a file that it links to."""
    pattern = re.compile(r"\]\((?!http)([^)#]+)\)")
    return [
        (str(path.relative_to(ROOT)), link)
        for path in (*DOCUMENTS, ROOT / "docs/models.md")
        for link in pattern.findall(BLOCK.sub("", path.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize(("document", "link"), links())
def test_links_lead_somewhere(document, link):
    assert ((ROOT / document).parent / link).exists()


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for line in README.splitlines() if line.startswith("    python ")]
    return [line for line in lines if line]


@pytest.mark.parametrize("command", commands())
def test_the_commands_have_flags_that_exist(command):
    """Each flag that the README uses is one that the script's --help explains, and each file that it names is there."""
    script, *words = shlex.split(command)[1:]
    shown = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", shown.stdout), word
        if word.startswith("configs/"):
            assert (ROOT / word).exists()
