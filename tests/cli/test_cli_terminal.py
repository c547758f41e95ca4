"""taskmasterctl on a terminal, and its shell on one and in a pipe."""

from __future__ import annotations

import pytest
from cli_servers import Jobs, b64, interrupt_when_asleep
from cli_terminal import Terminal

from taskmaster.cli.shell import Shell


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour(make_server, env, coloured):
    """Colour on a terminal that has it, unless somebody wants none."""
    server = make_server(Jobs(web="RUNNING"))
    with Terminal("-c", server.address, "status", **env) as terminal:
        assert terminal.end() == 0
    assert ("\x1b[32mRUNNING\x1b[0m" in terminal.seen) is coloured
    assert ("\x1b" in terminal.seen) is coloured


def test_pull_is_escaped_on_a_terminal(make_server):
    """A job file on a terminal cannot act upon it; lines and tabs stay."""
    reply = {"response": "file", "data": b64('{"cmd":\t"\x1b[2J"}\n')}
    server = make_server(lambda query: reply)
    with Terminal("-c", server.address, "pull", "web") as terminal:
        assert terminal.end() == 0
    assert '"\\x1b[2J"}\r\n' in terminal.seen
    assert "\x1b" not in terminal.seen


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", True), ("\n", False), ("\x04", False)])
def test_delete_asks(make_server, answer, deleted):
    """On a terminal delete asks first, and anything but yes deletes nothing."""
    server = make_server(Jobs(web="RUNNING", db="RUNNING"))
    with Terminal("-c", server.address, "delete", "*") as terminal:
        terminal.wait_for("Delete db, web? [y/N] ")
        terminal.type(answer)
        assert terminal.end() == (0 if deleted else 1)
    commands = [query["command"] for query in server.queries]
    assert commands == ["list", "delete", "delete"] if deleted else ["list"]
    assert ("nothing was deleted" in terminal.seen) is not deleted


def test_delete_yes(make_server):
    """--yes asks nothing."""
    server = make_server(Jobs(web="RUNNING"))
    with Terminal("-c", server.address, "delete", "--yes", "web") as terminal:
        assert terminal.end() == 0
    assert terminal.seen == "web: deleted\r\n"


def test_delete_interrupted_at_the_question(make_server):
    """Ctrl-C at the question exits 130 and nothing was sent."""
    server = make_server(Jobs(web="RUNNING"))
    with Terminal("-c", server.address, "delete", "web") as terminal:
        terminal.wait_for("? [y/N] ")
        interrupt_when_asleep(terminal.process)
        assert terminal.end() == 130
    assert server.queries == []
    assert "goes on" not in terminal.seen


def test_interactive_shell(make_server):
    """The shell runs lines, outlives errors and Ctrl-C, completes jobs, and ends with Ctrl-D."""
    server = make_server(Jobs(web="RUNNING"))
    with Terminal("-c", server.address, "--shell") as shell:
        shell.wait_for("taskmaster> ")
        shell.type("status nope\n")
        shell.wait_for('Job "nope" does not exist.')
        shell.wait_for("taskmaster> ")
        shell.type("kill we")
        shell.wait_for("kill we")
        interrupt_when_asleep(shell.process)
        shell.wait_for("taskmaster> ")
        shell.type("start 'we\n")
        shell.wait_for("cannot read the line: No closing quotation")
        shell.wait_for("taskmaster> ")
        shell.type("strat web\n")
        shell.wait_for("Did you mean 'start'?")
        shell.wait_for("taskmaster> ")
        shell.type("sto\t\tw\t\n")
        shell.wait_for("web: stopped")
        shell.wait_for("taskmaster> ")
        shell.type("help\n")
        shell.wait_for("In this shell also: help, exit, quit.")
        shell.wait_for("taskmaster> ")
        shell.type("\x04")
        assert shell.end() == 0
    assert "kill" not in [query["command"] for query in server.queries]


def test_shell_script(make_server, ctl):
    """Not on a terminal: no prompt, every line is run, the last failure is the exit status."""
    server = make_server(Jobs(web="RUNNING"))
    script = "# a remark\nstatus nope\n\nstart 'web'\nstrat\nkill web # now\n"
    result = ctl("-c", server.address, "-s", stdin=script)
    assert (result.status, result.out) == (2, "web: started\nweb: killed\n")
    assert "taskmaster>" not in result.out + result.err
    assert ctl("-c", server.address, "-s", stdin="list\nquit\nnope\n") == (0, "web\n", "")
    assert ctl("-c", server.address, "-s", stdin="") == (0, "", "")
    assert ctl("-c", server.address, "-s", stdin="kill nope\nlist\n").status == 4


def test_shell_keeps_the_global_options(make_server, ctl):
    """Options given to the shell hold for every line; a line can add its own."""
    server = make_server(Jobs(web="RUNNING"))
    lines = "start web\nstart web --no-wait\n-s\n"
    result = ctl("-c", server.address, "--json", "--timeout", "7", "-s", stdin=lines)
    assert [query.get("wait") for query in server.queries] == [7, None]
    assert result.out == '{"job": "web", "response": "success"}\n' * 2
    assert "This is the shell already." in result.err


def test_shell_refuses_a_bad_server_at_once(ctl):
    """A server that cannot be is said before any line is read."""
    assert ctl("-c", "host:x", "-s", stdin="list\n").status == 2


def test_candidates(tmp_path, monkeypatch):
    """Commands first, then jobs, files for push; never a name that a terminal would act upon."""
    asked = []

    def names():
        asked.append(1)
        return ["web-1", "web-2", "a b", "\x1b[2J", "ü"]

    shell = Shell(lambda words: 0, names, ["start", "stop", "push", "list", "doctor"])
    assert shell.candidates([], "s") == ["start", "stop"]
    assert shell.candidates(["help"], "pu") == ["push"]
    assert shell.candidates(["start"], "web-") == ["web-1", "web-2"]
    assert shell.candidates(["start", "web-1"], "") == ["web-1", "web-2"]
    assert shell.candidates(["list"], "") == shell.candidates(["doctor"], "") == []
    assert shell.candidates(["start"], "--n") == []
    assert len(asked) == 1
    (tmp_path / "web.tm.json").write_text("")
    monkeypatch.chdir(tmp_path)
    assert shell.candidates(["push"], "w") == ["web.tm.json"]
