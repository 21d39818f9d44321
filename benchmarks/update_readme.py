"""Put the tables of results/reference/ into the README and docs/, between the comments that name their files, and write docs/options.md.

python benchmarks/update_readme.py            # --check: change nothing; exit code 1 if a table is not up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.options_page import PAGE, options_page

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / name for name in ("README.md", "README.ar.md", "docs/results.md", "docs/scaling.md", "docs/reliability.md")
]
BLOCK = re.compile(r"<!-- (results/reference/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)


def table_of(path: str) -> str:
    """Return the content of a file without its headings: the documents have their own."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("# ")).strip()


def updated(text: str) -> str:
    """Return the document with each block replaced by the current content of its file."""
    return BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n{table_of(block[1])}\n<!-- end -->", text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with code 1 if a table is not up to date"
    )
    check = parser.parse_args(argv).check
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if updated(text) != text:
            stale.append(path.name)
            if not check:
                path.write_text(updated(text), encoding="utf-8")
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != options_page():
        stale.append(PAGE.name)
        if not check:
            PAGE.write_text(options_page(), encoding="utf-8")
    if check and stale:
        sys.exit(f"not up to date: {', '.join(stale)}; run python benchmarks/update_readme.py")


if __name__ == "__main__":
    main()
