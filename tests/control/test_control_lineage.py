"""Whose what comes next is: of who has ended since the last look, unless that was several."""

from __future__ import annotations

import pytest

from taskmaster.control.lineage import NO_JOB, Lineage

#: What ended between looks, each by its owners (none: it had not been seen), and whose the next ones are then.
SUCCESSION = {
    "nothing has ended": ([[]], None),
    "one of a job": ([[{"web"}]], "web"),
    "two of it": ([[{"web"}, {"web"}]], "web"),
    "two of two jobs": ([[{"web"}, {"db"}]], None),
    "of no job, but the caller's": ([[{NO_JOB}]], NO_JOB),
    "the caller's and a job's": ([[{NO_JOB}, {"web"}]], None),
    "one of nobody can say whom": ([[{None}]], None),
    "one that came and ended unseen": ([[set()]], None),
    "one that came and ended unseen beside its parent": ([[set(), {"web"}]], "web"),
    "one that came and ended unseen after its parent": ([[{"web"}], [set()]], "web"),
    "many such, one after the other": ([[{"web"}], [set()], [set()]], "web"),
    "one such after two parents": ([[{"web"}, {"db"}], [set()]], None),
    "one such of either": ([[{"web"}], [set(), {"db"}]], None),
    "after it, of another job": ([[{"web"}], [{"db"}]], "db"),
}


@pytest.mark.parametrize("name", SUCCESSION)
def test_succession(name: str) -> None:
    """Each row of the table."""
    looks, owner = SUCCESSION[name]
    lineage = Lineage()
    for number, ended in enumerate(looks):
        if number:
            lineage.looked()
        for owners in ended:
            lineage.ended(owners)
    assert lineage.only == owner
    assert lineage.pending == bool(looks[-1])
    told = lineage.looked()
    assert not lineage.pending
    assert owner is None or told == {owner}
