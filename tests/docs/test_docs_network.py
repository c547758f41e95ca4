"""The page on other hosts: its recipe and its configuration work as they are typed, and its numbers are true."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from certificates import needs_openssl
from docs_pages import console, flat, page
from running import DEADLINE_S, ROOT

from taskmaster.cli.address import TLS_VARIABLES
from taskmaster.control import handshakes, tls

NETWORK = page("docs/network.rst")


@needs_openssl
def test_recipe(make_daemon, tmp_path: Path) -> None:
    """The certificates are made, the daemon takes the configuration, and the last command is answered."""
    *recipe, use = [step.command for step in console(NETWORK)]
    assert len(recipe) == 6
    (example,) = re.findall(r"code-block:: json\n\n((?:(?:   .*)?\n)+)", NETWORK)
    daemon = make_daemon(**json.loads(example))
    subprocess.run(
        ["/bin/sh", "-e", "-c", "\n".join(recipe)],
        cwd=daemon.folder, check=True, capture_output=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert all(
        (daemon.folder / f"{name}.key").stat().st_mode & 0o077 == 0
        for name in ("ca", "server", "anna")
    )
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    for host in ("localhost", socket.gethostname()):
        asked = use.replace("tls://localhost", f"tls://{host}:{daemon.port}").split()
        assert asked[0] == "taskmasterctl"
        if host != "localhost" and not _is_local(host):
            continue
        done = subprocess.run(
            [sys.executable, "-m", "taskmaster.cli", *asked[1:]],
            cwd=daemon.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "web\n"), done.stderr
    assert daemon.events("command.completed")[-1]["peer"]["certificate"] == "anna"
    assert daemon.events("command.completed")[-1]["role"] == "operator"


def _is_local(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def test_numbers() -> None:
    """Lengths, times and variables are those of the program."""
    assert f"a name over {tls.MAX_NAME} characters" in flat(NETWORK)
    assert all(f"``{variable}``" in NETWORK for variable in TLS_VARIABLES.values())
    limits = flat(page("docs/protocol.rst"))
    assert f"handshake is not done: {handshakes.MAX_WAITING}, of which" in limits
    assert f"and {handshakes.DEADLINE_S:g} seconds for each" in limits
    assert f"get {handshakes._TURN_S * 1000:g} ms of a turn" in flat(page("docs/architecture.rst"))
