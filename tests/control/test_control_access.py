"""Who may do what, decided from rules alone: the table of commands, jobs by globs, groups, certificates."""

from __future__ import annotations

import grp
import os
import pwd
import re

import pytest

from taskmaster.config.access import Role, Rule
from taskmaster.config.secretnames import DEFAULT_PATTERN
from taskmaster.control.access import LEAST, WRITING, Access, least
from taskmaster.control.ceiling import CHECKED, FREE, LESS, MAX_PARTS, violation, weigh
from taskmaster.control.gate import Gate
from taskmaster.control.peers import Peer
from taskmaster.control.pulling import Pulling
from taskmaster.core.spec import Capabilities, JobSpec
from taskmaster.errors import NotPermitted
from taskmaster.wire.queries import NEEDS, READING, Command, Needs, Query

OWN, ALICE, STRANGER = 990, 40001, 40002
#: What each role adds to the one before; whatever is in none of them is for root alone.
PROMISED = {
    Role.VIEWER: {"status", "list", "pull", "audit", "history"},
    Role.OPERATOR: {"start", "stop", "kill", "repair", "restart"},
    Role.ADMIN: {"push", "delete", "reload", "rollback", "shutdown", "upgrade"},
}


def peer(uid=None, certificate=None, address="127.0.0.1:5"):
    return Peer("tcp", address, uid, certificate=certificate)


def rights(who, *rules, **options):
    return Access(rules, OWN, **options).rights(who)


@pytest.mark.parametrize(
    "part",
    [b"1,", b'"a":', b"[", b"{", b"//x\n"],
    ids=["numbers", "keys", "lists", "objects", "comments"],
)
def test_a_file_that_takes_long_to_read(part):
    """Who is held to a user cannot push what takes half a second to read; blanks and long words are no matter."""
    limited = rights(peer(ALICE), Rule(role=Role.ADMIN, users=frozenset({ALICE})))
    with pytest.raises(NotPermitted, match="commas, colons, slashes and brackets"):
        weigh("web", part * (MAX_PARTS + 1), limited, Command.PUSH)
    weigh("web", part * (MAX_PARTS + 1), rights(peer(OWN)), Command.PUSH)
    weigh("web", part * 1000 + b" " * 900_000 + b"x" * 100_000, limited, Command.PUSH)


def test_every_command_has_its_role():
    """The table says of every command what it needs, as promised; restarting everything is for admins."""
    assert set(LEAST) == set(Command)
    assert {c.value: LEAST[c] for c in Command} == {
        word: role for role, words in PROMISED.items() for word in words
    }
    assert least(Command.RESTART, "web") is Role.OPERATOR
    assert least(Command.RESTART, None) is Role.ADMIN
    # What changes something is nothing for viewers, and what stores files is for admins.
    assert {c for c in Command if LEAST[c] is Role.VIEWER} <= READING
    assert all(LEAST[c] is Role.ADMIN for c in WRITING)


@pytest.mark.parametrize("role", [None, *Role])
@pytest.mark.parametrize("command", list(Command))
def test_role_and_command(role, command):
    """With each role exactly the commands of it and those below it may be done, by everybody's rules alike."""
    job = "web" if NEEDS[command] is not Needs.NOTHING else None
    rules = [] if role is None else [Rule(role=role, users=frozenset({ALICE}))]
    allowed = role is not None and role >= least(command, job)
    refusal = rights(peer(ALICE), *rules).refusal(command, job)
    assert (refusal is None) is allowed
    if refusal is not None:
        assert refusal.startswith(f"Permission denied: {command.value} ")
        assert least(command, job).word in refusal
    assert rights(peer(STRANGER), *rules).refusal(command, job) is not None
    for everything in (0, OWN):
        assert rights(peer(everything), *rules).refusal(command, job) is None


def test_jobs_of_a_rule():
    """A rule is for the jobs that its globs match; several rules add up; all jobs are only those of ``*``."""
    alice = rights(
        peer(ALICE),
        Rule(role=Role.VIEWER, users=frozenset({ALICE}), jobs=("web-*", "db")),
        Rule(role=Role.ADMIN, users=frozenset({ALICE}), jobs=("web-[12]",)),
        Rule(role=Role.ADMIN, users=frozenset({STRANGER})),
    )
    for job, role in {
        "web-1": Role.ADMIN, "web-3": Role.VIEWER, "web-": Role.VIEWER, "db": Role.VIEWER,
        "db2": None, "WEB-1": None, "web": None, "web-1/../x": None, "": None, "web-" + "1" * 10**6: None,
    }.items():  # fmt: skip
        assert alice.role(job) is role, job
        assert alice.sees(job) is (role is not None)
    assert alice.role(None) is None
    for command in (Command.SHUTDOWN, Command.UPGRADE, Command.AUDIT, Command.RESTART):
        assert alice.refusal(command, None)
    assert alice.refusal(Command.LIST, None) is None
    assert rights(peer(STRANGER), Rule(role=Role.ADMIN, users=frozenset({STRANGER}))).refusal(
        Command.SHUTDOWN, None
    ) is None  # fmt: skip


def test_a_refusal_tells_nothing_of_the_job():
    """Who may not see a job gets the same words whatever its name is, but for the name."""
    bob = rights(peer(ALICE), Rule(role=Role.VIEWER, users=frozenset({ALICE}), jobs=("a*",)))
    words = {str(bob.refusal(Command.STATUS, job)).replace(job, "JOB") for job in ("b", "c", "d.d")}
    assert len(words) == 1
    hostile = "\x1b[2J" + "x" * 10**6
    assert "\x1b" not in str(bob.refusal(Command.STATUS, hostile))
    assert len(str(bob.refusal(Command.STATUS, hostile))) < 300


def test_groups_and_certificates():
    """A rule for a group is for its members, one for a certificate for who has it; and for nobody else."""
    entry = pwd.getpwuid(os.getuid())
    gid = entry.pw_gid
    other = max(one.gr_gid for one in grp.getgrall() if one.gr_gid != gid) + 1
    for group, role in ((gid, Role.OPERATOR), (other, None)):
        rule = Rule(role=Role.OPERATOR, groups=frozenset({group}))
        # The daemon's user is another here, so root counts by his groups only where he is not root.
        member = Access([rule], OWN).rights(peer(entry.pw_uid))
        assert member.role("web") is (Role.ADMIN if entry.pw_uid == 0 else role)
        assert (rule in member.rules) is (role is not None)
        assert Access([rule], OWN).rights(peer(STRANGER)).role("web") is None
    ops = Rule(role=Role.OPERATOR, certificates=frozenset({"ops-1"}))
    assert rights(peer(certificate="ops-1"), ops).role("web") is Role.OPERATOR
    assert rights(peer(certificate="ops-2"), ops).role("web") is None
    assert not rights(peer(certificate="root"), ops).everything
    assert rights(peer(certificate="ops-2"), ops, insecure_remote=True).role("web") is None


def test_strangers_of_other_hosts():
    """Who has neither uid nor certificate may look where that is configured, at most, and else do nothing."""
    everybody = Rule(role=Role.ADMIN, users=frozenset({ALICE}), certificates=frozenset({"x"}))
    far = peer(address="10.1.2.3:99")
    assert rights(far, everybody).role("web") is None
    assert rights(far, everybody, insecure_remote=True).role("web") is Role.VIEWER
    assert rights(far, insecure_remote=True).role(None) is Role.VIEWER
    assert rights(far).identity == rights(peer(address="10.1.2.3:100")).identity


def test_gate():
    """pushEnabled stops root as well, a missing reason comes last, and each has its code."""
    root, nobody = rights(peer(0)), rights(peer(STRANGER))
    gate = Gate(push_enabled=False, reasons={Command.KILL, Command.PUSH})
    for command in Command:
        reply = gate.refusal(root, Query(command, "web"))
        code = None if reply is None else reply.code
        wanted = {Command.KILL: "reason-required"} | dict.fromkeys(WRITING, "not-permitted")
        assert code == wanted.get(command), command
        assert gate.refusal(nobody, Query(command, "web")).code == "not-permitted"
    assert gate.refusal(root, Query(Command.KILL, "web", reason="it hangs")) is None
    assert "pushEnabled" in gate.refusal(root, Query(Command.PUSH, "web", reason="x")).error
    assert Gate().refusal(root, Query(Command.PUSH, "web")) is None


CLEAR = b'{"cmd": "x", "env": {"A": "1"}} // comment'
SECRET = b'{"cmd": "x", "env": [{"name": "DB_PASSWORD", "value": "hunter2"}]}'


def test_pulling():
    """A file with a secret in the clear, or that cannot be read, is for admins of that job."""
    pulling = Pulling(DEFAULT_PATTERN)
    for role in Role:
        one = rights(peer(ALICE), Rule(role=role, users=frozenset({ALICE}), jobs=("web",)))
        pulling.check("web", CLEAR, one)
        for data in (SECRET, b"{", b"[]"):
            if role is Role.ADMIN:
                pulling.check("web", data, one)
                continue
            with pytest.raises(NotPermitted, match="pull of web shows a secret") as caught:
                pulling.check("web", data, one)
            assert "hunter2" not in str(caught.value)


# what may be pushed -------------------------------------------------------------------------------


def spec(**fields):
    return JobSpec(**{"job": "web", "argv": ("x",), **fields})


def admin(*run_as, uid=ALICE, jobs=("*",), given=True):
    rule = Rule(
        role=Role.ADMIN, users=frozenset({uid}), jobs=jobs, run_as=run_as if given else None
    )
    return rights(peer(uid), rule)


NOBODY = pwd.getpwnam("nobody")
NOBODYS_GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name
ROOTS_GROUP = grp.getgrgid(0).gr_name


@pytest.mark.parametrize(
    ("who", "runas", "allowed"),
    [
        (admin("nobody"), "nobody", True),
        (admin("nobody"), f"nobody:{NOBODYS_GROUP}", True),
        (admin("nobody"), f"nobody:{ROOTS_GROUP}", False),
        (admin(f"nobody:{ROOTS_GROUP}"), f"nobody:{ROOTS_GROUP}", True),
        (admin(f"nobody:{ROOTS_GROUP}"), "nobody", False),
        (admin("nobody"), "root", False),
        (admin("nobody"), "daemon", False),
        (admin("nobody"), "", False),
        (admin("nobody"), "no.such.user", False),
        (admin("nobody"), "nobody:no.such.group", False),
        (admin("root"), "", True),
        (admin("root"), "root", True),
        (admin("root"), f"root:{NOBODYS_GROUP}", False),
        (admin(str(NOBODY.pw_uid)), "nobody", True),
        (admin(), "nobody", False),
        (admin(given=False), "nobody", False),
        (admin(given=False, uid=NOBODY.pw_uid), "nobody", True),
        (admin(given=False, uid=NOBODY.pw_uid), f"nobody:{ROOTS_GROUP}", False),
        (admin(given=False, uid=NOBODY.pw_uid), "", False),
        (admin("nobody", jobs=("db",)), "nobody", False),
    ],
)
def test_run_as(who, runas, allowed):
    """Who pushes by a rule may have jobs run as those of runAs, else as himself; no runas is the daemon's user."""
    why = violation(spec(runas=runas), who, 0)
    assert (why is None) is allowed, why
    if why is not None:
        assert "runas" in why.lower()


def test_run_as_of_another_rule():
    """Only a rule that makes him admin of this job counts for whom it may run as."""
    both = rights(
        peer(ALICE),
        Rule(role=Role.ADMIN, users=frozenset({ALICE}), jobs=("web",), run_as=("nobody",)),
        Rule(role=Role.ADMIN, users=frozenset({ALICE}), jobs=("db",), run_as=("root",)),
    )
    assert violation(spec(runas="nobody"), both, 0) is None
    assert violation(spec(runas="root"), both, 0)
    assert violation(spec(job="db", runas="root"), both, 0) is None
    assert violation(spec(job="db", runas="nobody"), both, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"stdout": "/etc/cron.d/x"},
        {"stderr": "/root/.ssh/authorized_keys"},
        {"stderr": "//etc/x"},
        {"inherit_env": True},
        {"env_file": "/root/secrets"},
        {"groups": ("root",)},
        {"groups": ()},
        {"capabilities": Capabilities(ambient=(21,))},
        {"limits": (("nofile", -1, -1),)},
        {"nice": -1},
        {"ionice": (1, 0)},
        {"oom_score_adj": -1},
        {"no_new_privs": False},
    ],
)
def test_beyond_the_user(fields):
    """What would reach beyond the job's user is for root alone, who is not asked about anything."""
    assert violation(spec(runas="nobody", **fields), admin("nobody"), 0)
    assert violation(spec(runas="nobody", **fields), rights(peer(0)), 0) is None


MIB = 1 << 20


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, True),
        ({"log_max_bytes": 1 << 40}, False),
        ({"log_max_bytes": 0}, False),
        ({"log_max_bytes": 0, "stdout": None, "stderr": None}, True),
        ({"log_backups": 1000}, False),
        ({"log_max_bytes": 2 * MIB, "log_backups": 499}, True),
        ({"log_max_bytes": 2 * MIB, "log_backups": 499, "proc_nr": 2}, False),
        ({"log_max_bytes": 2 * MIB, "log_backups": 499, "proc_nr": 2, "stderr": None}, True),
        (
            {"log_max_bytes": 2 * MIB, "log_backups": 999, "stderr_to_stdout": True},
            True,
        ),
        ({"proc_nr": 2}, False),
    ],
)
def test_output_has_a_ceiling(fields, allowed):
    """Files, generations, processes and streams count together; output without rotation is more than any limit."""
    rule = Rule(role=Role.ADMIN, users=frozenset({ALICE}), run_as=("nobody",))
    who = Access([rule], OWN, output_max=2000 * MIB).rights(peer(ALICE))
    why = violation(spec(runas="nobody", **fields), who, 0)
    assert (why is None) is allowed, why
    assert why is None or "jobOutputMaxBytes" in why
    root = Access([rule], OWN, output_max=2000 * MIB).rights(peer(0))
    free = Access([rule], OWN, output_max=0).rights(peer(ALICE))
    for unlimited in (root, free):
        assert violation(spec(runas="nobody", **fields), unlimited, 0) is None


def test_every_field_is_decided():
    """A field that is neither free nor looked at must have its default: a new key is closed until decided."""
    decided = FREE | CHECKED | set(LESS)
    assert decided <= set(JobSpec.__struct_fields__)
    closed = {"inherit_env", "env_file", "groups", "capabilities", "limits"}
    assert set(JobSpec.__struct_fields__) - decided == closed, "think of the new one, then decide"
    plain = spec(
        runas="nobody", stdout="out/%n.log", stderr=None, env=(("A", "b"),), umask=0o77, nice=5,
        ionice=(3, 0), oom_score_adj=500, no_new_privs=True, memory_max=1 << 30, cpu_affinity=(0,),
    )  # fmt: skip
    assert violation(plain, admin("nobody"), 0) is None
    assert "envFile is set" in str(
        violation(spec(runas="nobody", env_file="/x"), admin("nobody"), 0)
    )


def test_words_of_refusals():
    """A refusal names command, job, role and who; one of the ceiling says what would be allowed."""
    alice = Access([Rule(role=Role.VIEWER, users=frozenset({ALICE}))], OWN).rights(
        Peer("unix", "/s", ALICE, "alice", 7)
    )
    assert alice.refusal(Command.STOP, "web") == (
        "Permission denied: stop of web needs the role operator; user alice has viewer."
    )
    assert alice.refusal(Command.SHUTDOWN, None) == (
        "Permission denied: shutdown needs the role admin for all jobs; user alice has viewer."
    )
    why = violation(spec(), admin("nobody"), 0)
    assert re.fullmatch(
        r"the job would run as root \(no runas: .*\); allowed: nobody \(runAs.*", why
    )
