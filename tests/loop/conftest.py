"""Every test of loop and stream leaves the process as it found it."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _clean(leaves_nothing: None) -> None:
    pass
