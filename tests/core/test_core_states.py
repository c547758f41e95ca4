"""The state of a job from the states of its processes."""

from itertools import chain, combinations

from taskmaster.core.states import SETTLED, Desired, State, job_state

#: The words of the status document; a job shows the first that occurs, but RUNNING only when all are.
PRECEDENCE = ["UNKNOWN", "FATAL", "BACKOFF", "STOPPING", "STARTING", "WAITING", "EXITED", "STOPPED"]


def test_every_combination():
    """All 512 sets of states: RUNNING when every process is, else the first of the documented order."""
    sizes = range(len(State) + 1)
    subsets = list(chain.from_iterable(combinations(State, size) for size in sizes))
    assert len(subsets) == 512
    for subset in subsets:
        words = {state.value for state in subset}
        expected = next((word for word in PRECEDENCE if word in words), "STOPPED")
        if words == {"RUNNING"}:
            expected = "RUNNING"
        for processes in (subset, subset[::-1] * 2, iter(subset)):
            assert job_state(processes) is State(expected)


def test_words():
    """The states are exactly the words that clients know, and each is its own word."""
    assert {state.value for state in State} == {*PRECEDENCE, "RUNNING"}
    assert all(state.name == state.value == State(state.value) for state in State)
    assert [desired.value for desired in Desired] == ["UP", "DOWN"]


def test_settled():
    """A wait is over in RUNNING, STOPPED, EXITED and FATAL."""
    assert {state.value for state in SETTLED} == {"RUNNING", "STOPPED", "EXITED", "FATAL"}
