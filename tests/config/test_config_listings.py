"""What is remembered of histories: it is right, or it is read again."""

from __future__ import annotations

import os

import pytest

from taskmaster.config import listings
from taskmaster.config.listings import Listings
from taskmaster.config.store import JobStore


@pytest.fixture
def folder(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Reads:
    """Counts what is read of a folder."""

    def __init__(self):
        self.count = 0

    def __call__(self, fd, stem=""):
        self.count += 1
        return sorted(os.listdir(fd)) if not stem else f"of {stem}"


def test_a_folder_that_has_just_changed_is_read_each_time(tmp_path, folder):
    """A second change within the clock's tick would have the same stamp."""
    kept, read = Listings(), Reads()
    for number in range(3):
        (tmp_path / str(number)).touch()
        assert kept.stems(folder, read) == [str(one) for one in range(number + 1)]
    assert read.count == 3


def test_a_folder_that_does_not_change_is_read_once(tmp_path, folder, monkeypatch):
    """Until something in it is another."""
    monkeypatch.setattr(listings, "_YOUNG_NS", 0)
    kept, read = Listings(), Reads()
    for _ in range(5):
        assert kept.stems(folder, read) == []
    assert read.count == 1
    (tmp_path / "new").touch()
    assert kept.stems(folder, read) == ["new"]
    assert read.count == 2


def test_what_cannot_be_read_is_not_remembered(folder):
    """A file that cannot be read for want of descriptors is tried again; what is remembered is bounded."""
    kept, read = Listings(), Reads()
    assert kept.value(folder, "a", lambda fd, stem: None) is None
    assert kept.value(folder, "a", read) == "of a"
    assert kept.value(folder, "a", read) == "of a"
    assert read.count == 1
    for number in range(listings._FILES + 10):
        kept.value(folder, f"x{number}", read)
    assert len(kept._values) <= listings._FILES


@pytest.mark.parametrize("young_ns", [0, listings._YOUNG_NS])
def test_every_change_shows(tmp_path, monkeypatch, young_ns):
    """Whatever puts, removes and edits there are, history, sha256 and content are those of now."""
    monkeypatch.setattr(listings, "_YOUNG_NS", young_ns)
    store = JobStore(tmp_path / "jobs", os.geteuid())
    plain = JobStore(tmp_path / "jobs", os.geteuid())
    for number in range(30):
        if number % 7 == 6:
            store.remove("web", who="x")
        else:
            store.put("web", b'{"cmd":"%d"}' % number, who="x")
        for _ in range(2):
            plain._kept, plain._hashes = Listings(), {}
            assert store.history("web", None, 5) == plain.history("web", None, 5)
            assert store.history("web", 4) == plain.history("web", 4)
            assert store.sha256("web") == plain.sha256("web")
            assert store.version_before("web") == plain.version_before("web")
            assert store.version("web", 1) == b'{"cmd":"0"}'
