"""What stands in the documents: console blocks with their commands, definition lists, numbers in sentences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    """The text of a document, by its path in the checkout."""
    return (ROOT / name).read_text(encoding="utf-8")


def flat(text: str) -> str:
    """``text`` with every run of blanks and line breaks as one blank."""
    return " ".join(text.split())


def section(text: str, title: str) -> str:
    """What stands under a title, up to the next title of its kind or a higher one."""
    found = re.search(rf"^{re.escape(title)}\n([=~-])\1+\n", text, re.MULTILINE)
    assert found, f"no section {title!r}"
    above = {"=": "=", "-": "=-", "~": "=~-"}[found.group(1)]
    rest = text[found.end() :]
    following = re.search(rf"^[^\s].*\n([{above}])\1{{3,}}$", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def entries(text: str) -> dict[str, list[str]]:
    """Terms of a definition list (````term````) and the paragraphs under each, flat."""
    found: dict[str, list[str]] = {}
    for match in re.finditer(r"^``([^`\n]+)``.*\n((?:(?:   .*)?\n)+)", text, re.MULTILINE):
        term, body = match.groups()
        assert term not in found, f"{term} twice"
        found[term] = [flat(one) for one in body.split("\n\n") if one.strip()]
    return found


class Step(NamedTuple):
    """One command of a console block, and the output that the document shows."""

    command: str
    output: list[str]


def console(text: str) -> list[Step]:
    """The commands of all console blocks, in order."""
    steps: list[Step] = []
    for block in re.findall(
        r"^\.\. code-block:: console\n\n((?:(?:   .*)?\n)+)", text, re.MULTILINE
    ):
        for line in block.splitlines():
            if line.startswith("   $ "):
                steps.append(Step(line[5:], []))
            elif line.strip():
                steps[-1].output.append(line[3:])
    return steps
