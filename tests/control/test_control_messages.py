"""The daemon's own messages: few lines about one client, a file that has an end and is opened anew."""

from __future__ import annotations

import os

import pytest

from taskmaster.control.messages import Messages
from taskmaster.control.say import _LINES, Say

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**limits):
        one = Messages(
            tmp_path / "m.log", **{"max_bytes": 1000, "backups": 2, "standard": False, **limits}
        )
        made.append(one)
        return one

    yield make
    for one in made:
        os.close(one.fileno())


def sizes(tmp_path):
    return {one.name: one.stat().st_size for one in tmp_path.iterdir()}


def test_rotation(tmp_path, make):
    """The file and those before it stay within their size and number, whatever is written."""
    messages = make()
    for number in range(1000):
        messages.write(b"%09d\n" % number)
    assert sizes(tmp_path) == {"m.log": 1000, "m.log.1": 1000, "m.log.2": 1000}
    assert (tmp_path / "m.log").read_bytes().endswith(b"000000999\n")


@pytest.mark.parametrize(("limits", "files"), [({"max_bytes": 0}, 1), ({"backups": 0}, 1)])
def test_without_rotation(tmp_path, make, limits, files):
    """No size: it grows; no backups: it begins anew."""
    messages = make(**limits)
    for number in range(500):
        messages.write(b"%09d\n" % number)
    found = sizes(tmp_path)
    assert len(found) == files
    assert found["m.log"] == (5000 if not limits.get("max_bytes", 1) else 1000)


def test_a_file_that_was_there(tmp_path, make):
    """What the daemon before has written counts."""
    (tmp_path / "m.log").write_bytes(bytes(995))
    make().write(b"123456789\n")
    assert sizes(tmp_path) == {"m.log": 10, "m.log.1": 995}


def test_renamed_and_opened_anew(tmp_path, make):
    """After a rename it goes on in the old file until it is told, then in a new one."""
    messages = make()
    messages.write(b"one\n")
    (tmp_path / "m.log").rename(tmp_path / "aside")
    messages.write(b"two\n")
    assert messages.reopen() is None
    messages.write(b"three\n")
    assert (tmp_path / "aside").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "m.log").read_bytes() == b"three\n"


def test_it_cannot_be_opened_anew(tmp_path, make):
    """A folder in its place: it goes on where it was, and says so."""
    messages = make()
    (tmp_path / "m.log").rename(tmp_path / "aside")
    (tmp_path / "m.log").mkdir()
    Say(2, messages).reopen()
    assert b"cannot be opened anew: Is a directory" in (tmp_path / "aside").read_bytes()


def test_a_file_that_cannot_be_rotated_has_an_end(tmp_path, make):
    """Where renaming fails it grows to twice its size; then lines are left out, and counted later."""
    messages = make()
    for name in ("m.log.1", "m.log.2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    for number in range(500):
        messages.write(b"%09d\n" % number)
    assert (tmp_path / "m.log").stat().st_size == 2000
    for name in ("m.log.1", "m.log.2"):
        (tmp_path / name / "x").unlink()
        (tmp_path / name).rmdir()
    messages.write(b"again\n")
    text = (tmp_path / "m.log").read_bytes()
    assert text == b"taskmasterd: 300 messages did not fit and were left out\nagain\n"


def test_what_leads_nowhere(tmp_path):
    """A link or a FIFO in its place is not written to, and opening it waits for nobody."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("fifo", "link"):
        with pytest.raises(OSError, match=r"No such device|symbolic links"):
            Messages(tmp_path / name, max_bytes=0, backups=0, standard=False)
    assert not (tmp_path / "elsewhere").exists()


def test_lines_about_one_client(tmp_path, make):
    """The first lines about one are said, then two a minute with how many were left out; others are said."""
    messages, clock = make(max_bytes=0), Clock()
    say = Say(2, messages, clock)
    for number in range(1000):
        say.connection(f"client a {number}", "user a")
    say.connection("client b", "user b")
    clock.now += 30
    say.connection("client a again", "user a")
    lines = (tmp_path / "m.log").read_text().splitlines()
    assert len(lines) == _LINES + 2
    assert lines[-2:] == [
        "taskmasterd: client b",
        "taskmasterd: client a again (and 980 lines about user a that are left out)",
    ]


def test_many_clients(tmp_path, make):
    """However many different ones come, the lines are bounded, and what is remembered of them."""
    messages, clock = make(max_bytes=0), Clock()
    say = Say(2, messages, clock)
    for number in range(50_000):
        say.connection("client", f"host {number}")
        say.error("dropped", "clients")
    assert len(say._left) <= 258
    assert len((tmp_path / "m.log").read_text().splitlines()) < 300 + 20
