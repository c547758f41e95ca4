"""Work done by a process of another user: what it may reach is what that user may reach."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - socket needs it, and another user may not read where it is
import json
import os
import pwd
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
NOBODY = pwd.getpwnam("nobody").pw_uid


class Done(NamedTuple):
    """What a process of another user did: its pid, and what the work gave."""

    pid: int
    result: Any


def as_user(uid: int, work: Callable[[], Any]) -> Done:
    """Do ``work`` in a child that is user ``uid`` and nobody else; its result comes back as JSON."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            entry = pwd.getpwuid(uid)
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
            os.setgroups(groups)
            os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
            os.setresuid(uid, uid, uid)
            said = {"result": work()}
        except BaseException:  # noqa: BLE001 - told to the parent, whatever it is
            said = {"error": traceback.format_exc()}
        data = json.dumps(said, default=lambda value: value.decode("utf-8", "replace")).encode()
        while data:
            data = data[os.write(write_end, data) :]
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as file:
        said = json.load(file)
    os.waitpid(pid, 0)
    assert "error" not in said, said["error"]
    return Done(pid, said["result"])
