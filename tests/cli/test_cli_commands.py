"""What each command sends and prints."""

import base64
import json

import pytest
from cli_servers import Jobs, b64, fail, name_of, status_document
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.cli.outcomes import expand, is_text

HOSTILE = "\x1b]0;owned\x07\x9b2J\r\n\u202e\u2028"
ESCAPED = "\\x1b]0;owned\\x07\\x9b2J\\r\\n\\u202e\\u2028"


def asked(server):
    """What was asked, without what goes with every query."""
    every = [dict(query) for query in server.queries]
    for query in every:
        assert query.pop("codes") is True
        query.pop("id")
    return every


@pytest.mark.parametrize(
    ("line", "sent", "said"),
    [
        (["start", "web"], {"command": "start", "wait": 60}, "web: started"),
        (["stop", "web", "--timeout", "2.5"], {"command": "stop", "wait": 2.5}, "web: stopped"),
        (["--timeout", "5", "restart", "web"], {"command": "restart", "wait": 5}, "web: restarted"),
        (
            ["start", "web", "--no-wait"],
            {"command": "start"},
            "started, its outcome not waited for",
        ),
        (["--no-wait", "stop", "web"], {"command": "stop"}, "web: stop begun"),
        (["restart", "--no-wait", "web"], {"command": "restart"}, "web: restart begun"),
        (["kill", "web"], {"command": "kill"}, "web: killed"),
        (["repair", "web"], {"command": "repair"}, "web: repaired"),
        (["delete", "web"], {"command": "delete"}, "web: deleted"),
        (["reload", "web"], {"command": "reload"}, "web: job file read again"),
    ],
)
def test_one_job(make_server, here, line, sent, said):
    """The query is exactly this, and the answer says what was done."""
    server = make_server(Jobs(web="RUNNING"))
    result = here(server, *line)
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith(said + "\n")
    assert asked(server) == [{"job": b64("web")} | sent]


@pytest.mark.parametrize("line", [["restart", "--force"], ["reload", "--all", "--force"]])
def test_whole_directory_by_force(make_server, here, line):
    """Only by force may every job there is be removed; what it is of no use to is refused before it is sent."""
    server = make_server(Jobs(web="RUNNING"))
    assert here(server, *line).status == 0
    assert asked(server) == [{"command": "restart", "force": True}]
    server = make_server(Jobs(web="RUNNING"))
    assert here(server, line[0], "web", "--force").status == 2
    assert asked(server) == []


@pytest.mark.parametrize("line", [["restart"], ["reload", "--all"]])
def test_whole_directory(make_server, here, line):
    """restart without a job and reload --all are the same query, and the output says which."""
    server = make_server(Jobs(web="RUNNING"))
    result = here(server, *line)
    assert result.out.startswith("configuration directory read again: ")
    assert asked(server) == [{"command": "restart"}]
    assert json.loads(here(server, "--json", *line).out) == {"job": None, "response": "success"}
    refusing = make_server(lambda query: fail("disk full"))
    assert here(refusing, *line) == (1, "", "taskmasterctl: configuration directory: disk full\n")


@pytest.mark.parametrize("word", ["", "x*", "\udcff"])
def test_restart_of_nothing_is_not_restart_of_everything(make_server, here, word):
    """An empty variable, a pattern without a match, bytes that are no name: never a job-less restart."""
    server = make_server(Jobs(web="RUNNING"))
    assert here(server, "restart", word).status == 4
    assert all(query["command"] == "list" for query in server.queries)


def test_globs(make_server, here):
    """Patterns are matched against the list, each job once, in the order they were named."""
    server = make_server(Jobs(**{"db": "RUNNING", "web-1": "RUNNING", "web-2": "RUNNING"}))
    result = here(server, "stop", "web-2", "web-*", "d?", "[x]*", "nope")
    assert [name_of(query) for query in server.queries[1:]] == ["web-2", "web-1", "db", "nope"]
    assert result.status == 4
    assert result.out == "web-2: stopped\nweb-1: stopped\ndb: stopped\n"
    assert result.err.splitlines() == [
        'taskmasterctl: [x]*: No job matches "[x]*" (jobs there are: 3).',
        'taskmasterctl: nope: Job "nope" does not exist.',
    ]


def test_first_failure_decides(make_server, here):
    """Every job is tried; the exit status is the first failure's."""
    codes = {"a": "failed", "b": "not-permitted"}

    def answer(query):
        code = codes.get(name_of(query))
        return fail("no", code) if code else {"response": "success"}

    assert here(make_server(answer), "kill", "ok", "b", "a", "c").status == 77
    result = here(make_server(answer), "--json", "kill", "a", "b", "c")
    assert result.status == 1
    assert json.loads(result.out) == [
        {"job": "a", "response": "fail", "error": "no", "code": "failed"},
        {"job": "b", "response": "fail", "error": "no", "code": "not-permitted"},
        {"job": "c", "response": "success"},
    ]
    assert result.err == ""


def test_status_columns(make_server, here):
    """In a pipe: aligned columns, a header, nothing cut, no colour."""
    jobs = Jobs(db="RUNNING", web="BACKOFF")
    jobs.documents["web"] = status_document(
        "web", "BACKOFF", reason="retry 4 of 10 in 12.3 s, " + "x" * 300, alive=0, of=2
    )
    jobs.documents["web"]["processes"][0] |= {"uptime": None, "restarts": 3}
    result = here(make_server(jobs), "status")
    assert result.status == 3
    assert result.out.splitlines() == [
        "JOB  STATE    PIDS  UPTIME  RESTARTS  REASON",
        "db   RUNNING  1/1   12s     2         -",
        "web  BACKOFF  0/2   -       3         retry 4 of 10 in 12.3 s, " + "x" * 300,
    ]


def test_status_verbose(make_server, here):
    """With -v a line for each process, with its pid and what became of it last."""
    jobs = Jobs(web="RUNNING", empty="UNKNOWN")
    jobs.documents["empty"] = {"state": "UNKNOWN", "reason": "watchdog gone"}
    jobs.documents["web"] = status_document("web")
    second = jobs.documents["web"]["processes"][0] | {"number": 1, "pid": None, "signal": 9}
    jobs.documents["web"]["processes"].append(second)
    assert here(make_server(jobs), "status", "-v").out.splitlines() == [
        "JOB    PROCESS  STATE    PID   UPTIME  RESTARTS  REASON",
        "empty  -        UNKNOWN  -     -       -         watchdog gone",
        "web    0        RUNNING  4121  12s     2         -",
        "web    1        RUNNING  -     12s     2         last ended by signal 9",
    ]


def test_status_json(make_server, here):
    """One job: its document as it came; several, a pattern or none: a list."""
    jobs = Jobs(web="RUNNING")
    jobs.documents["web"] = status_document("web", later="field \x7f é")
    server = make_server(jobs)
    one = here(server, "status", "web", "--json")
    assert json.loads(one.out) == jobs.documents["web"]
    assert one.out.isascii()
    assert "\x7f" not in one.out
    for line in (["status"], ["status", "w*"]):
        assert json.loads(here(server, "--json", *line).out) == [jobs.documents["web"]]
    result = here(server, "--json", "status", "web", "nope")
    assert result.status == 4
    assert json.loads(result.out)[1]["code"] == "no-such-job"


def test_no_jobs(make_server, here):
    """Without jobs there is nothing to show, and nothing that does not run."""
    server = make_server(Jobs())
    assert here(server, "status") == (0, "", "")
    assert here(server, "list") == (0, "", "")
    assert here(server, "status", "--json").out == "[]\n"


def test_job_deleted_meanwhile(make_server, here):
    """A job that goes between the list and its status is no failure, unless it was named."""
    jobs = Jobs(db="RUNNING", web="RUNNING")

    def answer(query):
        reply = jobs(query)
        jobs.states.pop("web", None)
        return reply

    server = make_server(answer)
    result = here(server, "status")
    assert (result.status, result.err) == (0, "")
    assert "db" in result.out
    assert here(server, "status", "web").status == 4


def test_many_jobs(make_server, here):
    """A thousand jobs are shown over one connection."""
    server = make_server(Jobs(**{f"job-{number:04}": "RUNNING" for number in range(1000)}))
    result = here(server, "status")
    assert (result.status, len(result.out.splitlines())) == (0, 1001)


def test_pull_is_exact(make_server, ctl):
    """pull writes the file's bytes, whatever they are; with --json as base64."""
    server = make_server(Jobs(web="RUNNING"))
    result = ctl("-c", server.address, "--json", "pull", "web")
    assert base64.b64decode(json.loads(result.out)["data"]) == b'{"cmd":"x;;"}\xff\0\n'


def test_pull_bytes(make_server, capfdbinary):
    """The bytes themselves, through a real descriptor."""
    from taskmaster.cli import app

    server = make_server(Jobs(web="RUNNING"))
    assert app.run(["-c", server.address, "pull", "web"]) == 0
    assert capfdbinary.readouterr().out == b'{"cmd":"x;;"}\xff\0\n'


def test_push(make_server, here, tmp_path):
    """The job is named by the file, and the bytes go as they are."""
    server = make_server(Jobs())
    path = tmp_path / "web.v2.tm.json"
    path.write_bytes(b"// \xff;;\r\n{}")
    assert here(server, "push", str(path)).out == "web.v2: stored and applied\n"
    assert asked(server) == [
        {"command": "push", "job": b64("web.v2"), "data": b64(b"// \xff;;\r\n{}")}
    ]


def test_list(make_server, here):
    """One name a line, for loops in scripts; the document with --json."""
    server = make_server(Jobs(web="RUNNING", db="FATAL"))
    assert here(server, "list").out == "db\nweb\n"
    assert json.loads(here(server, "list", "--json").out) == {
        "jobs": [{"name": "db"}, {"name": "web"}]
    }


def test_list_refused(make_server, here):
    """A list that is refused is said once, for whatever needed it."""
    server = make_server(lambda query: fail("Permission denied: not you."))
    for line in (["list"], ["status"], ["start", "*"]):
        assert here(server, *line) == (77, "", "taskmasterctl: list: Permission denied: not you.\n")


def test_nothing_reaches_the_terminal_unescaped(make_server, here):
    """Control characters in names, states, reasons and errors are shown, not acted upon."""
    document = status_document(HOSTILE, HOSTILE, reason=HOSTILE)
    document["processes"][0] |= {"state": HOSTILE, "reason": HOSTILE, "pid": HOSTILE}
    document["watchdog"]["state"] = HOSTILE

    def answer(query):
        if query["command"] == "list":
            return {"response": "list", "data": b64(json.dumps({"jobs": [{"name": HOSTILE}]}))}
        if query["command"] == "status":
            return {"response": "status", "data": b64(json.dumps(document))}
        return fail(HOSTILE)

    server = make_server(answer)
    for line in (["status"], ["status", "-v"], ["list"], ["start", "*"]):
        result = here(server, *line)
        shown = (result.out + result.err).replace("\n", "")
        assert shown.isprintable()
        assert ESCAPED in shown


def test_older_daemon(make_server, here):
    """A daemon that echoes no id and names the list by its newer key only is understood."""
    document = b64(json.dumps({"jobs": [{"name": "web"}, "db", 7, {}, {"name": 1}]}))
    reply = json.dumps({"response": "list", "data": document}).encode() + b";;"
    assert here(make_server(lambda query: reply), "list").out == "web\ndb\n"


@given(st.lists(st.text(max_size=5)), st.lists(st.text(alphabet="ab*?[]!-", max_size=4)))
def test_expand(names, words):
    """No job is asked about twice, and every word leaves a target or matched one named before."""
    targets = expand(words, lambda: [name for name in names if is_text(name)])
    asked_about = [target for target in targets if isinstance(target, str)]
    assert len(asked_about) == len(set(asked_about))
    assert bool(targets) == bool(words)
    assert all(asked_about)
