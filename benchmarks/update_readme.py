"""Put the tables of results/reference/ into the README, between the comments that name their files.

python benchmarks/update_readme.py            # --check: only say whether it is up to date (exit code 1 if not)
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- (results/reference/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)


def updated(text: str) -> str:
    """The README with each block's file in it, as it is now."""
    return BLOCK.sub(
        lambda block: f"<!-- {block[1]} -->\n{(ROOT / block[1]).read_text(encoding='utf-8').strip()}\n<!-- end -->",
        text,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = updated(text)
    if parser.parse_args().check:
        sys.exit(new != text)
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
