"""The architecture's document: files, laws and dependencies are those there are; versions agree."""

from __future__ import annotations

import re

from docs_pages import ROOT, entries, flat, page, section
from test_laws import LAWS

import taskmaster

ARCHITECTURE = page("docs/architecture.rst")


def test_every_file_has_its_sentence() -> None:
    """Every source file is named, once, with a sentence; and none that is not there."""
    described = entries(section(ARCHITECTURE, "Files"))
    there = {file.relative_to(ROOT).as_posix() for file in (ROOT / "taskmaster").rglob("*.py")}
    assert set(described) == there
    for path, paragraphs in described.items():
        assert len(paragraphs) == 1, path
        assert paragraphs[0].endswith("."), path


def test_laws() -> None:
    """The laws are those that are tested."""
    listed = re.findall(r"^- (.*(?:\n  .*)*)", section(ARCHITECTURE, "Laws"), re.MULTILINE)
    assert [flat(one) for one in listed] == [law.sentence for law in LAWS.values()]


def test_dependencies() -> None:
    """Every dependency is there with its reason, and no other."""
    (required,) = re.findall(r"install_requires=\[(.*?)\]", page("setup.py"))
    names = set(re.findall(r'"(\w+)[>=]', required))
    assert set(entries(section(ARCHITECTURE, "What it stands on"))) == names | {"multiprocessing"}


def test_version() -> None:
    """The changelog begins with the version that this is, and so does the packaging."""
    version = re.search(r"^(\d+\.\d+\.\d+)", page("CHANGELOG.rst"), re.MULTILINE)
    assert version
    assert version.group(1) == taskmaster.__version__
    assert f'version="{taskmaster.__version__}"' in page("setup.py")
