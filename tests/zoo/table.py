"""The README's table of kinds, printed by `python -m zoo.table` in the folder of the tests."""

import re
from pathlib import Path

from zoo.kinds import KINDS

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- kinds -->", "<!-- /kinds -->"


def table() -> str:
    """One row per kind; each mark is a test of tests/test_any_module.py."""
    rows = ["| model | collect | no trace | select and load |", "| --- | :-: | :-: | :-: |"]
    return "\n".join([*rows, *(f"| {name} | ✓ | ✓ | ✓ |" for name in KINDS)])


def readme_table() -> str:
    """What stands between the marks in the README."""
    found = re.search(f"{BEGIN}\n(.*)\n{END}", README.read_text(encoding="utf-8"), re.DOTALL)
    return found[1] if found else ""


if __name__ == "__main__":
    print(f"{BEGIN}\n{table()}\n{END}")
