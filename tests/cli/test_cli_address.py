"""From the text of -c, the environment and the sockets that are there to one server."""

import os
import socket

import pytest

from taskmaster.cli.address import BadAddress, choose, parse, socket_candidates


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost", "localhost:7777"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]", "[::1]:7777"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
        ("./control.sock", "./control.sock"),
        ("/run/a:b/[x].sock", "/run/a:b/[x].sock"),
    ],
)
def test_accepted(text, shown):
    """Every accepted form, and how it is named in messages."""
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    ["", ":7777", "h:", "h:0", "h:65536", "h:-1", "h:٣", "h:1e3", "::1", "[::1", "[::1]7", "[]:7",
     "a b", "a\x1b", "/a\0b"],
)  # fmt: skip
def test_refused(text):
    """What names no server says so, quoted, with the accepted forms."""
    with pytest.raises(BadAddress, match=r"accepted: |names no host"):
        parse(text)


def test_default_order(tmp_path):
    """-c before the variable, the variable before a socket, a socket before the port."""
    runtime, home = tmp_path / "run", tmp_path / "home"
    sockets = [
        runtime / "taskmaster/control.sock",
        home / ".local/state/taskmaster/run/control.sock",
    ]
    environ = {"XDG_RUNTIME_DIR": str(runtime), "HOME": str(home)}
    assert str(choose(None, environ, 1000)) == "127.0.0.1:7777"
    assert str(sockets[0]) in choose(None, environ, 1000).origin
    for path in reversed(sockets):
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            directory = os.open(path.parent, os.O_PATH)
            listener.bind(f"/proc/self/fd/{directory}/control.sock")
            os.close(directory)
        assert str(choose(None, environ, 1000)) == str(path)
    environ["TASKMASTER_SERVER"] = "other:1"
    assert str(choose(None, environ, 1000)) == "other:1"
    assert str(choose("named", environ, 1000)) == "named:7777"


def test_file_that_is_no_socket_is_not_chosen(tmp_path):
    """Only a socket counts as a daemon's socket."""
    (tmp_path / "taskmaster").mkdir()
    (tmp_path / "taskmaster/control.sock").write_text("")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    assert choose(None, environ, 1000).host == "127.0.0.1"


def test_root_and_relative_directories():
    """Root has its one place; relative XDG directories are ignored, as their specification has it."""
    assert socket_candidates({"XDG_RUNTIME_DIR": "/x"}, 0) == ["/run/taskmaster/control.sock"]
    environ = {"XDG_RUNTIME_DIR": "x", "XDG_STATE_HOME": "y", "HOME": "/h"}
    assert socket_candidates(environ, 7) == ["/h/.local/state/taskmaster/run/control.sock"]
    environ["XDG_STATE_HOME"] = "/s"
    assert socket_candidates(environ, 7) == ["/s/taskmaster/run/control.sock"]


def test_bad_variable_is_named():
    """A bad TASKMASTER_SERVER is not blamed on -c."""
    with pytest.raises(BadAddress, match=r"^TASKMASTER_SERVER: "):
        choose(None, {"TASKMASTER_SERVER": "h:x"}, 0)
