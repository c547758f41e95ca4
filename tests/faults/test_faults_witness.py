"""What the control plane holds of processes that are neither its own nor, any more, their watchdog's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from running import alive, process_start, wait_for

from taskmaster.control.witness import Witness
from taskmaster.eventloop import EventLoop

_TELLS = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)


@pytest.mark.skipif(not _TELLS, reason="a pidfd tells of an exit since Linux 6.15")
def test_handed_over_to_the_next_program():
    """A process that ended, and was reaped by another, between two programs is told of by the second."""
    loop = EventLoop()
    before, after = Witness(loop), Witness(loop)
    child = "import os, signal; pid = os.fork()\nif not pid: signal.pause()\nprint(pid, flush=True); os.wait()"
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        start = process_start(pid)
        before.watch([(pid, start)])
        handed = before.hand_over()
        assert [one[:2] for one in handed] == [(pid, start)]
        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: process_start(pid) is None)
    after.take_over([(*handed[0][:2], os.dup(handed[0][2]))])
    told = []
    assert after.ask(pid, start, told.append)
    assert told == [signal.SIGUSR1]
    assert after.told() == [(pid, start, signal.SIGUSR1)]
    before.close()
    after.close()
    loop.close()


@pytest.mark.skipif(not _TELLS, reason="a pidfd tells of an exit since Linux 6.15")
def test_who_asked_is_gone_before_the_answer(loop, until):
    """A zombie that is not reaped yet may be asked about again, and by the next program: only the last is told."""
    witness, after = Witness(loop), Witness(loop)
    child = "import os, signal, sys; pid = os.fork()\nif not pid: signal.pause()\nprint(pid, flush=True)\n"
    child += "sys.stdin.read(); os.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        start = process_start(pid)
        witness.watch([(pid, start)])
        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: not alive(pid))
        told = []
        assert witness.ask(pid, start, lambda status: told.append(("first", status)))
        assert witness.ask(pid, start, lambda status: told.append(("second", status)))
        handed = [(*one[:2], os.dup(one[2])) for one in witness.hand_over()]
        after.take_over(handed)
        assert after.ask(pid, start, lambda status: told.append(("after", status)))
        assert told == []
    until(lambda: len(told) == 2)
    assert sorted(told) == [("after", signal.SIGUSR1), ("second", signal.SIGUSR1)]
    assert witness.told() == [(pid, start, signal.SIGUSR1)]
    witness.close()
    after.close()
