"""What the kernel refuses: each capability made to fail, in the table and under a real filter."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys

import pytest
from running import wait_for

from taskmaster.control import probes
from taskmaster.errors import KernelRefuses

#: Has system calls fail with an error (x86-64), then becomes what its arguments say.
FILTER = """
import ctypes, os, struct, sys
error, calls = int(sys.argv[1]), [int(one) for one in sys.argv[2].split(",")]
ins = [(0x20, 0, 0, 0)]
for i, n in enumerate(calls):
    ins.append((0x15, len(calls) - i, 0, n))
ins += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | error)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *x) for x in ins))
class Prog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Prog(len(ins), ctypes.addressof(code)))):
    sys.exit("no seccomp")
os.execv(sys.argv[3], sys.argv[3:])
"""
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has its numbers")


def refusing(number):
    def try_():
        raise OSError(number, os.strerror(number))

    return try_


@pytest.mark.parametrize("probe", probes.PROBES, ids=lambda probe: probe.name)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_each_refusal(probe, number):
    """A fatal one ends the start with its name and what is lost; any other is told, and the rest still tried."""
    last = probe._replace(name="last", fatal=False, try_=refusing(errno.EPERM))
    tried = [probe._replace(try_=refusing(number)), last]
    if probe.fatal:
        with pytest.raises(KernelRefuses) as caught:
            probes.refusals(tried)
        told = str(caught.value)
        assert caught.value.exit_status == 71
    else:
        first, second = probes.refusals(tried)
        told = str(first)
        assert second.probe.name == "last"
    assert probe.name in told
    assert probe.lost in told
    assert os.strerror(number) in told


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_host_that_is_short_refuses_nothing(number):
    """No descriptors or no memory is no answer of the kernel's about what it can do."""
    assert probes.refusals([one._replace(try_=refusing(number)) for one in probes.PROBES]) == []


def test_this_kernel_refuses_nothing_fatal(leaves_nothing):
    """The probes work here, and leave no descriptor."""
    assert all(not one.probe.fatal for one in probes.refusals())


@needs_x86
@pytest.mark.parametrize(
    ("calls", "name"),
    [("434", "pidfd_open"), ("424", "pidfd_send_signal"), ("291,213", "epoll")],
    ids=["pidfd_open", "pidfd_send_signal", "epoll"],
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_clear_end(make_daemon, calls, name, number):
    """One line that names the call, and 71; nothing was started."""
    daemon = make_daemon()
    daemon.job("web", "sleep 1000")
    command = [sys.executable, "-c", FILTER, str(number), calls]
    program = [sys.executable, "-m", "taskmaster.control", "-c", str(daemon.config)]
    pid = daemon.host.start([*command, *program], daemon.messages)
    assert os.waitstatus_to_exitcode(daemon.host.wait(pid)) == 71
    (said,) = daemon.messages.read_text().splitlines()
    assert name in said
    assert not daemon.socket.exists()


@needs_x86
def test_going_on_without(make_daemon):
    """Without memfd, inotify, splice, tee, close_range and netlink: it serves, says so, and jobs are restarted."""
    daemon = make_daemon()
    daemon.job("web", ["/bin/sh", "-c", "echo out; exec sleep 1000"])
    command = [sys.executable, "-c", FILTER, str(errno.EPERM), "319,294,275,276,436"]
    program = [sys.executable, "-m", "taskmaster.control", "-c", str(daemon.config)]
    daemon.pid = daemon.host.start([*command, *program], daemon.messages)
    wait_for(daemon.serves)
    daemon.wait_state("web", "RUNNING")
    said = daemon.messages.read_text()
    lost = json.loads((daemon.state / "troubles.json").read_text())
    for name in ("memfd_create", "inotify", "splice and tee", "close_range"):
        assert name in said
        assert name in lost
    log = daemon.logs / "jobs/web/0_stdout.log"
    wait_for(lambda: log.read_text() == "out\n")
    (pid,) = daemon.pids("web")
    os.kill(pid, 9)
    wait_for(lambda: daemon.pids("web") not in ([], [pid]))
    wait_for(lambda: log.read_text() == "out\nout\n")
    assert daemon.stop() == 0
