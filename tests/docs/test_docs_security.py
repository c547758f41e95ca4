"""The security document: every line names the tests that show it, and they are there."""

from __future__ import annotations

import ast
import re

from docs_pages import ROOT, page

SECURITY = page("docs/security.rst")


def test_every_named_test_exists() -> None:
    """Each test that the document names is one; none is named that is not there."""
    there = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"``(test_\w+)``", SECURITY))
    assert len(named) > 20
    assert named - there == set()


def test_every_line_is_shown() -> None:
    """No row of a table says that something holds without naming a test."""
    tables = re.findall(
        r"^=+  =+\nwhat holds .*\n=+  =+\n((?:.*\n)+?)=+  =+\n", SECURITY, re.MULTILINE
    )
    assert tables
    for table in tables:
        row: list[str] = []
        for line in [*table.splitlines(), "End."]:
            # A row begins where a sentence does that the row before has ended.
            if row and row[-1][:73].rstrip().endswith(".") and line[:1].isupper():
                assert any("``test_" in one for one in row), row
                row = []
            row.append(line)
