"""audit, history, diff and rollback, asked of servers that are broken or hostile: words, never a traceback."""

from __future__ import annotations

import json

import pytest
from cli_servers import b64

FOREVER = {
    "response": "audit",
    "data": "",
    "cursor": "1-2-00000000",
    "file": b64("/nowhere"),
    "more": True,
}
LINE = '{"seq":1,"timestamp":"\\u001b[2J","event":"x\\u001b[2J"}\n'


def history(**document):
    return {"response": "history", "job": b64("web"), "data": b64(json.dumps(document))}


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        (FOREVER, 0, ""),
        (FOREVER | {"file": b64(b"/\0x\xff")}, 0, ""),
        (FOREVER | {"file": b64("/etc/passwd"), "cursor": "1-0-x"}, 0, ""),
        (FOREVER | {"data": b64(LINE), "more": False, "cursor": 7}, 0, ""),
        (FOREVER | {"data": b64(b"\xff" * 300_000), "more": "yes"}, 0, ""),
        (FOREVER | {"file": 7}, 69, "no base64 in its 'file'"),
        (
            {"response": "invalid", "error": b64("Unknown command 'audit'.")},
            1,
            "audit: Unknown command",
        ),
        (
            {"response": "fail", "error": b64("Permission denied: no")},
            77,
            "audit: Permission denied: no",
        ),
        ({"response": "list", "list": ""}, 69, "answered 'list'"),
    ],
)
@pytest.mark.parametrize("arguments", [("--events",), ("show", "a-1"), ("--json", "--all")])
def test_audit_of_a_hostile_server(make_server, here, reply, status, words, arguments):
    """Whatever it tells, it is shown escaped or refused in words, and comes to an end."""
    server = make_server(lambda query: reply)
    result = here(server, "audit", *arguments)
    assert result.status == (1 if arguments[0] == "show" and status == 0 else status)
    assert words in result.err
    assert len(server.queries) <= 2
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize("command", ["history", "diff", "rollback"])
@pytest.mark.parametrize(
    "document",
    [
        {},
        {"versions": 5, "current": 7, "more": True},
        {
            "versions": [
                None,
                5,
                {},
                {"version": "x\x1b[2J", "at": {}, "by": ["\x1b"], "sha256": None},
            ],
            "current": "0",
        },
        {"versions": [{"version": 2, "sha256": "1"}], "current": "1", "more": True},
        {"versions": [{"version": -2, "sha256": "1"}, {"version": True}], "current": None},
    ],
)
def test_a_history_that_is_none(make_server, here, command, document):
    """Missing, odd and endless documents: what can be shown is shown, the rest is an error in words."""
    server = make_server(
        lambda query: (
            history(**document)
            if query["command"] == "history"
            else {"response": "fail", "error": b64("no")}
        )
    )
    result = here(server, command, "web")
    assert result.status in ((0,) if command == "history" else (1, 69))
    assert len(server.queries) <= 4
    assert "\x1b" not in result.out + result.err


def test_what_is_sent(make_server, here, tmp_path):
    """A reason goes with each query and cannot end the frame; versions and hashes go as they were typed."""
    server = make_server(
        lambda query: (
            {"response": "success"}
            if query["command"] != "pull"
            else {"response": "file", "data": ""}
        )
    )
    file = tmp_path / "web.tm.json"
    file.write_bytes(b"{}")
    assert here(server, "push", "--if-hash", "", "--reason", "a;;;;b", str(file)).status == 0
    assert here(server, "kill", "--reason", "x", "web").status == 0
    assert here(server, "pull", "--version", "12345678", "web").status == 0
    assert here(server, "rollback", "web", "7", "--reason", "y").status == 0
    sent = [
        {key: one.get(key) for key in ("command", "reason", "ifHash", "version")}
        for one in server.queries
    ]
    assert sent == [
        {"command": "push", "reason": "a;;;;b", "ifHash": "", "version": None},
        {"command": "kill", "reason": "x", "ifHash": None, "version": None},
        {"command": "pull", "reason": None, "ifHash": None, "version": "12345678"},
        {"command": "rollback", "reason": "y", "ifHash": None, "version": 7},
    ]
