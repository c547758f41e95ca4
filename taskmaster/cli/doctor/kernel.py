"""What the doctor looks at in the host: what taskmasterd uses of the kernel, and its limits.

Tried where trying is harmless, else told by the kernel's release.
"""

from __future__ import annotations

import os
import re
import resource

from taskmaster.cli import pidfd
from taskmaster.cli.doctor import looking
from taskmaster.cli.doctor.looking import OK, PROBLEM, WARNING, Finding

_KERNEL, _FILES = "kernel", "open files"
#: Of its descriptors, so many may be in use before it is worth saying: at the end new jobs wait in BACKOFF.
_FULL = 0.8
#: taskmasterd serves 512 clients unless told otherwise, and needs several descriptors for each job.
_FEW = 1024
_SUBREAPER, _CLOSE_RANGE, _EXIT_INFO = (3, 4), (5, 9), (6, 15)


def examine(daemon: int | None) -> list[Finding]:
    """Look at the host; ``daemon``: the pid of taskmasterd, where it runs."""
    findings = features(os.uname().release, **_tried())
    findings += hidden(looking.mounts(), os.geteuid())
    findings.append(open_files(daemon))
    return findings


def _tried() -> dict[str, bool]:
    own = os.getpid()
    held = pidfd.hold(own)
    try:
        has_info = held >= 0 and _has_info(held)
    finally:
        if held >= 0:
            os.close(held)
    return {
        "has_pidfd": held >= 0,
        "has_info": has_info,
        "has_children": os.path.exists(f"/proc/{own}/task/{own}/children"),
    }


def _has_info(held: int) -> bool:
    try:
        pidfd.info(held)
    except OSError:  # ENOTTY, EINVAL: before Linux 6.13
        return False
    return True


def features(release: str, *, has_pidfd: bool, has_info: bool, has_children: bool) -> list[Finding]:
    """What a kernel of this release has, of what was found by trying."""
    newer = "install and boot Linux {} or later"
    since = _version(release)
    findings = []
    if not has_pidfd:
        text = f"{release}: no pidfd_open (Linux 5.3): taskmasterd cannot run"
        findings.append(Finding(PROBLEM, _KERNEL, text, newer.format("5.3")))
    if since < _SUBREAPER:
        text = f"{release}: no PR_SET_CHILD_SUBREAPER (Linux 3.4): taskmasterd cannot run"
        findings.append(Finding(PROBLEM, _KERNEL, text, newer.format("3.4")))
    if not has_children:
        text = (
            "no /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN), or no /proc: what a job's programs "
            "start is found by looking at every process, which is slow"
        )
        findings.append(Finding(WARNING, _KERNEL, text, "ls /proc/self/task/*/children"))
    if since < _CLOSE_RANGE:
        text = f"{release}: no close_range (Linux 5.9): every start closes thousands of descriptors singly"
        findings.append(Finding(WARNING, _KERNEL, text, newer.format("5.9")))
    if not (has_info and since >= _EXIT_INFO):
        text = (
            f"{release}: no exit codes from PIDFD_GET_INFO (Linux 6.15): of a process that ends after "
            "both its watchdog and taskmasterd died, the exit code is unknown"
        )
        findings.append(Finding(WARNING, _KERNEL, text, newer.format("6.15")))
    return findings or [Finding(OK, _KERNEL, f"{release} has everything that is used")]


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def hidden(mounts: str, euid: int) -> list[Finding]:
    """Whether /proc hides the processes of other users; ``mounts``: the text of /proc/self/mounts."""
    options = ""
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) > 3 and words[1] == "/proc" and words[2] == "proc":
            options = words[3]  # the last one mounted there is the one that is seen
    hides = re.search(r"(?:^|,)hidepid=(?!0(?:,|$)|off(?:,|$))[^,]*", options)
    if hides is None:
        return []
    if euid == 0:
        return [
            Finding(OK, "/proc", f"mounted with {hides[0].strip(',')}, which root does not notice")
        ]
    text = (
        f"mounted with {hides[0].strip(',')}: a job's processes that change their user are not found, "
        "and not stopped"
    )
    return [Finding(WARNING, "/proc", text, "mount -o remount,hidepid=0 /proc")]


def open_files(daemon: int | None) -> Finding:
    """Whether taskmasterd has descriptors to spare; without one, whether it would have enough."""
    if daemon is not None:
        used, soft = len(looking.opened(daemon)), looking.open_files_limit(daemon)
        text = f"taskmasterd has {used} of {soft} descriptors in use"
        if soft is None or not used:
            return Finding(OK, _FILES, "those of taskmasterd may not be seen by this user")
        if used < _FULL * soft:
            return Finding(OK, _FILES, text)
        return Finding(PROBLEM, _FILES, f"{text}: soon it can start nothing", _more(daemon))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _FEW:
        text = f"a taskmasterd started from here may have {hard}: too few for its clients and jobs"
        return Finding(
            WARNING, _FILES, text, f"ulimit -Hn {_FEW * 64}, or LimitNOFILE= in its unit"
        )
    return Finding(OK, _FILES, f"a taskmasterd started from here may have {hard}")


def _more(daemon: int) -> str:
    return f"prlimit --pid {daemon} --nofile=1048576:1048576"
