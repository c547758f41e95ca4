"""Files and folders for the tests of configuration, with modes that do not depend on the umask."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UID = os.getuid()
STRANGER = 54321

needs_root = pytest.mark.skipif(UID != 0, reason="only root can give files away")


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """Make a file with exactly this mode."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def folder(path: Path, mode: int = 0o700) -> Path:
    """Make a folder with exactly this mode."""
    path.mkdir(exist_ok=True)
    path.chmod(mode)
    return path
