"""The table of who can do what names the tests that try it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROLES = ("stranger", "on the path", "insider", "local user", "root")


def test_each_role_has_tests_that_exist():
    """One row for each, whose tests are files of this directory."""
    page = (ROOT / "docs/security.md").read_text()
    table = page[page.index("## Who can do what") : page.index("## Between daemons")]
    rows = [line for line in table.splitlines() if "**" in line and line.startswith("|")]
    assert len(rows) == len(ROLES)
    for role, row in zip(ROLES, rows, strict=True):
        assert f"**{role}**" in row
        named = re.findall(r"`(test_\w+\.py)`", row)
        assert named
        assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
