"""Which commands are recorded, counted or refused: over a log that only remembers, on a clock of the test."""

from __future__ import annotations

import itertools

import pytest

from taskmaster.audit import Event
from taskmaster.config.access import Role, Rule
from taskmaster.control import allotment, tally
from taskmaster.control.access import Rights
from taskmaster.control.allotment import Allotments
from taskmaster.control.exchange import Exchange
from taskmaster.control.peers import Peer
from taskmaster.control.recording import Recording
from taskmaster.control.tally import Tally
from taskmaster.eventloop import EventLoop
from taskmaster.wire import replies
from taskmaster.wire.queries import Command, Query

A_DAY = 256 << 20
OPERATOR = (Rule(role=Role.OPERATOR, users=frozenset({7})),)
ROOT = Rights("user root", "uid 0", 0, (), everything=True)
#: What the default log holds, and the seconds of a day: nobody may fill it faster.
HOLDS_A_SECOND = 11 * 104857600 / 86400


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log:
    """Stands for the audit log: what is recorded, and how much it is."""

    path = "/log/audit.jsonl"

    def __init__(self) -> None:
        self.records: list[tuple[Event, dict]] = []
        self.size = 0
        self.on_reserve = False
        self.on_caused = lambda cause, size: None

    def put(self, event, fields):
        self.records.append((event, fields))
        size = 400 + len(str(fields.get("reason", "")))
        self.size += size
        return size

    def record(self, event, **fields):
        self.put(event, fields)

    def of(self, event):
        return [fields for found, fields in self.records if found is event]

    def counted(self):
        return sum(fields["count"] for fields in self.of(Event.COMMAND_COUNTED))


class World:
    """A recording, and commands given to it: the daemon between them is left out."""

    def __init__(self, a_day: int = A_DAY) -> None:
        self.clock, self.log = Clock(), Log()
        self.loop = EventLoop(self.clock)
        self.recording = Recording(
            self.log,
            Allotments(self.clock, a_day),
            Tally(self.loop, self.log, wall_clock=lambda: 0.0),
        )
        self.numbers = itertools.count()

    def user(self, uid: int = 7, rules=OPERATOR) -> Rights:
        return Rights(f"user {uid}", f"uid {uid}", uid, rules, everything=False)

    def ask(self, rights, command, reply=None, refusal=None, reason="", query=True):
        """One command from its request to its completion; its reply."""
        asked = Query(command, "web", reason=reason) if query else None
        word = command.value if query else command
        exchange = Exchange(
            *(
                f"x-{next(self.numbers)}",
                Peer("unix", "/s", rights.uid),
                rights,
                word,
                asked,
                b"",
                0.0,
            )
        )
        exchange.reply, exchange.refused = refusal, refusal is not None
        self.recording.requested(exchange, {"id": exchange.id, "reason": reason})
        if exchange.reply is None:
            exchange.reply = reply or replies.success()
        self.recording.completed(exchange, {"id": exchange.id}, "operator")
        return exchange.reply

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        turned = self.loop.call_in(0, lambda: None)
        self.loop.turn()
        turned.cancel()


@pytest.fixture
def world():
    world = World()
    yield world
    world.loop.close()


FLOODS = {
    "reads": {"command": Command.STATUS},
    "names that nobody has": {
        "command": Command.PULL,
        "reply": replies.fail("no", "no-such-job"),
    },
    "refusals": {"command": Command.KILL, "refusal": replies.fail("no", "not-permitted")},
    "no commands": {"command": "dance", "query": False, "refusal": replies.invalid("?")},
    "changes": {"command": Command.RESTART, "reason": "because" * 140},
    "changes of nothing": {"command": Command.START, "reply": replies.redundant()},
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_nobody_fills_a_days_log_in_a_day(world, flood):
    """Whatever one user repeats, the log grows slower than the default one lasts a day, and each is counted."""
    user = world.user()
    asked = 0
    for _ in range(60):
        for _ in range(500):
            world.ask(user, **flood)
            asked += 1
        world.pass_time(1.0)
    world.recording.flush()
    burst = allotment.BURST_S * A_DAY / 86400
    assert world.log.size < burst + 60 * HOLDS_A_SECOND / 2
    done = len(world.log.of(Event.COMMAND_COMPLETED))
    assert done + world.log.counted() == asked
    assert len(world.log.of(Event.COMMAND_REQUESTED)) == done


def test_a_change_is_recorded_or_refused(world):
    """Every change that was begun has its own record; the others are told when to come back, and may then."""
    user = world.user()
    outcomes = [world.ask(user, Command.RESTART).code for _ in range(500)]
    begun = outcomes.index("slow-down")
    assert begun > 50
    assert set(outcomes[begun:]) == {"slow-down"}
    assert len(world.log.of(Event.COMMAND_REQUESTED)) == begun
    said = world.ask(user, Command.STOP)
    assert "auditBytesPerDay" in (said.error or "")
    assert "may be asked again in 1 s" in (said.error or "")
    world.pass_time(2.0)
    assert world.ask(user, Command.STOP).response == "success"


def test_who_was_quiet_may_do_much_at_once(world):
    """An operator restarts two hundred jobs, with all that it causes; no fresh daemon lets anybody."""

    def restarted(user):
        for number in range(200):
            if world.ask(user, Command.RESTART).code == "slow-down":
                return number
            world.log.on_caused(f"x-{number}", 2000)
        return 200

    assert restarted(world.user(8)) < 100
    world.pass_time(allotment.LARGEST_BURST_S)
    assert restarted(world.user(7)) == 200
    assert restarted(world.user(8)) == 200, "a debt is paid back"


def test_reads_leave_room_for_changes(world):
    """A monitor of the same user that asks without end keeps no change out."""
    user = world.user()
    for _ in range(5000):
        world.ask(user, Command.STATUS)
    assert [world.ask(user, Command.STOP).response for _ in range(20)] == ["success"] * 20


def test_the_first_of_a_kind_is_recorded(world):
    """In a flood of one kind another kind is on record at once, and by itself."""
    user = world.user()
    for _ in range(5000):
        world.ask(user, Command.STATUS)
    before = len(world.log.records)
    world.ask(user, Command.DELETE, refusal=replies.fail("no", "not-permitted"))
    assert [event for event, _ in world.log.records[before:]] == [
        Event.COMMAND_REQUESTED,
        Event.COMMAND_COMPLETED,
    ]


def test_others_are_not_concerned(world):
    """One user's flood costs another, and root, no record; root's own flood is on record whole."""
    for _ in range(5000):
        world.ask(world.user(), Command.STATUS)
    before = len(world.log.records)
    for rights in (world.user(8), ROOT):
        world.ask(rights, Command.STATUS)
    assert len(world.log.records) == before + 4
    for _ in range(5000):
        world.ask(ROOT, Command.STATUS)
    assert len(world.log.records) == before + 4 + 10_000


def test_consequences_count(world):
    """What a command caused is charged to whoever gave it: processes that come and go fill a log, too."""
    user = world.user()
    world.ask(user, Command.RESTART)
    for _ in range(1000):
        world.log.on_caused("x-0", 300)
    assert world.ask(user, Command.RESTART).code == "slow-down"
    world.log.on_caused("x-nobody", 300)
    world.pass_time(3600)
    assert world.ask(user, Command.RESTART).response == "success"


def test_kinds_are_bounded(world):
    """Commands and codes of all sorts at once cost no more records than there are kinds."""
    user = world.user()
    for code in range(2000):
        world.ask(user, Command.STATUS, reply=replies.fail("no", f"code-{code % 200}"))
    world.recording.flush()
    assert len(world.log.of(Event.COMMAND_COUNTED)) <= tally._KINDS + 1
    done = len(world.log.of(Event.COMMAND_COMPLETED))
    assert done + world.log.counted() == 2000


def test_hosts_share_one_bucket(world):
    """Addresses are had for nothing: all hosts without a certificate have the share of one."""
    for number in range(3000):
        name = f"2001:db8::{number:x}"
        host = Rights(name, f"host {name}", None, (), everything=False)
        world.ask(host, Command.STATUS, refusal=replies.fail("no", "not-permitted"))
    assert world.log.size < allotment.BURST_S * A_DAY / 86400


def test_identities_are_bounded():
    """However many users there are, few are told apart at a time; idle ones are forgotten."""
    clock = Clock()
    made = Allotments(clock, A_DAY)
    for uid in range(10_000):
        one = made.of(Rights("u", f"uid {uid}", uid, (), everything=False))
        assert one is not None
        one.take(1000)
    assert len(made._known) <= allotment._REMEMBERED + 1
    clock.now += 3600
    assert made.of(Rights("u", "uid 70000", 1, (), everything=False)).name == "uid 70000"


def test_no_limit():
    """With 0 a day nobody is counted."""
    world = World(0)
    for _ in range(1000):
        assert world.ask(world.user(), Command.STATUS).response == "success"
    assert len(world.log.records) == 2000
    world.loop.close()


def test_on_the_reserve(world):
    """While the disk is full, reads of all are counted, and only root changes anything; stop works for all."""
    world.log.on_reserve = True
    user = world.user()
    world.ask(ROOT, Command.STATUS)
    assert not world.recording.may_read(ROOT, 800)
    assert world.log.records == []
    assert world.ask(user, Command.START).code == "audit-unwritable"
    assert world.ask(user, Command.STOP).response == "success"
    assert world.ask(ROOT, Command.START).response == "success"
    assert len(world.log.of(Event.COMMAND_COMPLETED)) == 2
    world.recording.flush()
    assert world.log.counted() == 2
