"""The audit log's document: its program verifies what the product writes, and finds what was changed."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from docs_pages import page

from taskmaster.audit import AuditLog, Event


def test_the_program_by_hand(tmp_path: Path) -> None:
    """A few lines of Python and sha256sum are enough, as the document says, to find a record that was touched."""
    document = page("docs/audit.rst")
    (block,) = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", document)
    (one,) = re.findall(r"``(sed .* \| sha256sum)``", document)
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, max_bytes=0, backups=0)
    for number in range(5):
        log.record(Event.JOB_ADDED, job=f"jöb-{number}", uptime=1.0, text='"}\n')
    log.close()
    seq, digest = log.head

    def by_hand() -> tuple[int, str]:
        argv = [sys.executable, "-c", textwrap.dedent(block), str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert by_hand() == (0, f"good up to {seq}:{digest}\n")
    line = path.read_bytes().splitlines(keepends=True)[-1]
    summed = subprocess.run(["/bin/sh", "-c", one], input=line, capture_output=True, check=True)
    assert summed.stdout.split()[0].decode() == digest
    path.write_bytes(path.read_bytes().replace("jöb-2".encode(), b"job-22"))
    status, said = by_hand()
    assert status == 1
    assert "record 3 is not what was written" in said
