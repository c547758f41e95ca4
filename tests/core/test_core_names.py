"""What may name a job."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.core.names import FILE_SUFFIX, checked, is_valid
from taskmaster.errors import InvalidJobName

FIRST = string.ascii_letters + string.digits
LATER = FIRST + "._-"


@pytest.mark.parametrize(
    "name", ["a", "Z", "0", "nginx", "web-1.example_com", "a" * 64, "a.", "a-", "tm.json", "x.TM.JSON",
             "x.tm.json.", "x.tm.json2", "a..b"],
)  # fmt: skip
def test_valid(name):
    """A valid name is itself."""
    assert is_valid(name)
    assert checked(name) is name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "_a", "a" * 65, "a b", " a", "a ", "a\n", "\na", "a\0", "a/b",
             "../a", "a\\b", "a*", "a:b", "é", "a\u0301", "\u0661", "a\u0661", "\uff41", "a\u2024b", "\u212a",
             "x.tm.json", "a.tm.json.tm.json", "x" * 56 + ".tm.json", "\ud800", "a;;", "%61"],
)  # fmt: skip
def test_invalid(name):
    """Every other name is refused with the one sentence, and the codes that go with it."""
    assert not is_valid(name)
    with pytest.raises(InvalidJobName) as caught:
        checked(name)
    assert str(caught.value) == "Invalid job name."
    assert (caught.value.code, caught.value.exit_status) == ("invalid-job-name", 4)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(max_size=70) | st.text(alphabet=LATER + "/\n\u00e9", max_size=70))
def test_the_alphabet_is_closed(name):
    """The definition, spelled out without a pattern."""
    valid = (
        1 <= len(name) <= 64
        and name[0] in FIRST
        and all(character in LATER for character in name)
        and not name.endswith(FILE_SUFFIX)
    )
    assert is_valid(name) is valid
