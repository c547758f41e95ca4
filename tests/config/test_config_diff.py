"""What changed in the job directory."""

from hypothesis import given
from hypothesis import strategies as st

from taskmaster.config.diff import DirectoryDiff, compare

DIRECTORIES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2"]))


def test_each_kind():
    """New, changed, removed and unchanged are told apart, each sorted."""
    diff = compare({"d": "1", "a": "1", "c": "1"}, {"b": "9", "a": "1", "c": "2", "aa": "9"})
    assert diff == DirectoryDiff(new=("aa", "b"), changed=("c",), removed=("d",), unchanged=("a",))


@given(DIRECTORIES, DIRECTORIES)
def test_partition(in_force, on_disk):
    """Every name is in exactly one group, and the groups lead from one directory to the other."""
    diff = compare(in_force, on_disk)
    groups = (diff.new, diff.changed, diff.removed, diff.unchanged)
    assert sorted(name for group in groups for name in group) == sorted({*in_force, *on_disk})
    result = {n: s for n, s in in_force.items() if n not in diff.removed}
    result.update({n: on_disk[n] for n in (*diff.new, *diff.changed)})
    assert result == on_disk
