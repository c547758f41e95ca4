"""What a job is: defaults, expected ends, what a change restarts, and where output goes."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.core.spec import (
    MAX_PROCESSES,
    UNLIMITED,
    Capabilities,
    JobSpec,
    RestartPolicy,
    StopTo,
    changed_fields,
    expand,
    output_path,
    same_processes,
)

DETERMINED = settings(deadline=None, derandomize=True)
SPEC = JobSpec("web", ("/bin/web",))

#: Another value of every field, and whether a running process must be replaced for it.
CHANGES = {
    "job": ("db", False),
    "argv": (("/bin/web", "-v"), True),
    "runas": ("www", True),
    "proc_nr": (2, False),
    "auto_start": (False, False),
    "restart": (RestartPolicy.ALWAYS, False),
    "start_time_s": (2.0, False),
    "normal_exit_codes": ((0, 2), False),
    "normal_exit_signals": ((15,), False),
    "restart_times": (4, False),
    "stop_signal": (2, False),
    "stop_time_s": (5.0, False),
    "stop_to": (StopTo.ALL, False),
    "stdout": ("out.log", False),
    "stderr": (None, False),
    "stderr_to_stdout": (True, False),
    "log_max_bytes": (1, False),
    "log_backups": (1, False),
    "env": ((("A", "1"),), True),
    "inherit_env": (True, True),
    "dir": ("/srv", True),
    "umask": (0o077, True),
    "env_file": ("/etc/web.env", True),
    "limits": ((("nofile", 1024, UNLIMITED),), True),
    "nice": (5, True),
    "ionice": ((3, 0), True),
    "oom_score_adj": (0, True),
    "cpu_affinity": ((0,), True),
    "no_new_privs": (False, True),
    "capabilities": (Capabilities((10,), (10,)), True),
    "groups": (("audio", 7), True),
    "memory_max": (2**29, False),
    "stdin": ("open", True),
}


def test_defaults():
    """Only the command is required; the defaults are those of a job file that says nothing else."""
    assert msgspec.structs.asdict(SPEC) == {
        "job": "web",
        "argv": ("/bin/web",),
        "runas": "",
        "proc_nr": 1,
        "auto_start": True,
        "restart": "unexpected",
        "start_time_s": 1,
        "normal_exit_codes": (0,),
        "normal_exit_signals": (),
        "restart_times": 3,
        "stop_signal": 15,
        "stop_time_s": 10,
        "stop_to": "main",
        "stdout": "%n_stdout.log",
        "stderr": "%n_stderr.log",
        "stderr_to_stdout": False,
        "log_max_bytes": 52428800,
        "log_backups": 10,
        "env": (),
        "inherit_env": False,
        "dir": "/",
        "umask": 0o022,
        "env_file": None,
        "limits": (),
        "nice": None,
        "ionice": None,
        "oom_score_adj": None,
        "cpu_affinity": None,
        "no_new_privs": None,
        "capabilities": None,
        "groups": None,
        "memory_max": None,
        "stdin": "null",
    }
    # What is as by default is not written out: a program that does not know a key yet can read the rest.
    assert msgspec.to_builtins(SPEC) == {"job": "web", "argv": ("/bin/web",)}
    assert MAX_PROCESSES == 1000


@pytest.mark.parametrize("field", JobSpec.__struct_fields__)
def test_one_field_changed(field):
    """Only a change of what the processes are replaces them; each change is named; nothing is mutable."""
    value, replaces = CHANGES[field]
    changed = msgspec.structs.replace(SPEC, **{field: value})
    assert same_processes(SPEC, changed) is same_processes(changed, SPEC) is not replaces
    assert changed_fields(SPEC, changed) == (field,)
    with pytest.raises(AttributeError):
        setattr(SPEC, field, value)


def test_nothing_and_everything_changed():
    """Equal definitions differ in nothing; the names come in the order of the definition."""
    assert changed_fields(SPEC, msgspec.structs.replace(SPEC)) == ()
    assert same_processes(SPEC, msgspec.structs.replace(SPEC))
    everything = JobSpec(**{field: value for field, (value, _) in reversed(CHANGES.items())})
    assert changed_fields(SPEC, everything) == JobSpec.__struct_fields__
    assert not same_processes(SPEC, everything)


@pytest.mark.parametrize(
    ("code", "signal", "normal"),
    [
        (0, None, True),
        (3, None, True),
        (1, None, False),
        (None, 15, True),
        (None, 9, False),
        (0, 9, False),  # a signal decides, whatever stands for a code beside it
        (None, 0, False),
        (15, None, False),  # codes and signals of the same number are different things
        (None, None, False),  # nobody could say how it ended
    ],
)
def test_expected_ends(code, signal, normal):
    """An end is expected by its exit code, or by its signal when it died of one."""
    spec = msgspec.structs.replace(SPEC, normal_exit_codes=(0, 3), normal_exit_signals=(15,))
    assert spec.is_normal(code, signal) is normal


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("", ""),
        ("plain", "plain"),
        ("%n", "7"),
        ("w%n-%n", "w7-7"),
        ("%%", "%"),
        ("%%n", "%n"),
        ("%%%n", "%7"),
        ("%%%%n", "%%n"),
        ("100%", "100%"),
        ("%", "%"),
        ("%%%", "%%"),
        ("%d %N %%d", "%d %N %d"),
        ("%n%%n%n", "7%n7"),
    ],
)
def test_expand(text, expanded):
    """``%n`` is the number, ``%%`` a percent sign, every other ``%`` itself."""
    assert expand(text, 7) == expanded


@DETERMINED
@given(st.text(alphabet="%n0a/", max_size=12), st.integers(0, MAX_PROCESSES - 1))
def test_expand_reads_from_left_to_right(text, number):
    """The same as reading the text once from the left, two characters at a ``%n`` or ``%%``."""
    values = {"%n": str(number), "%%": "%"}
    assert expand(text, number) == re.sub("%[n%]", lambda match: values[match[0]], text)


@pytest.mark.parametrize(
    ("changes", "stream", "path"),
    [
        ({}, "stdout", "3_stdout.log"),
        ({}, "stderr", "3_stderr.log"),
        ({"stdout": None}, "stdout", None),
        ({"stdout": None}, "stderr", "3_stderr.log"),
        ({"stderr": None}, "stderr", None),
        ({"stderr_to_stdout": True}, "stderr", "3_stdout.log"),
        ({"stderr_to_stdout": True, "stderr": None}, "stderr", "3_stdout.log"),
        ({"stderr_to_stdout": True, "stdout": None}, "stderr", None),
        ({"stdout": "out.log"}, "stdout", "out.log"),
        ({"stdout": "out.log", "proc_nr": 2}, "stdout", "3_out.log"),
        ({"stdout": "/var/log/web/out.log", "proc_nr": 4}, "stdout", "/var/log/web/3_out.log"),
        ({"stdout": "/out", "proc_nr": 4}, "stdout", "/3_out"),
        ({"stdout": "a/b/out.log", "proc_nr": 4}, "stdout", "a/b/3_out.log"),
        ({"stdout": "%n/out.log", "proc_nr": 4}, "stdout", "3/out.log"),
        ({"stdout": "out.%n", "proc_nr": 4}, "stdout", "out.3"),
        ({"stdout": "out%%n", "proc_nr": 4}, "stdout", "3_out%n"),
        ({"stdout": "out%%%n", "proc_nr": 4}, "stdout", "out%3"),
        ({"stdout": "100%", "proc_nr": 4}, "stdout", "3_100%"),
        ({"stdout": "%%/out", "proc_nr": 1}, "stdout", "%/out"),
        ({"stdout": "o", "proc_nr": 4, "stderr_to_stdout": True}, "stderr", "3_o"),
    ],
)
def test_output_path(changes, stream, path):
    """Where the output of process 3 goes."""
    assert output_path(msgspec.structs.replace(SPEC, **changes), stream, 3) == path


@DETERMINED
@given(st.text(alphabet="%n01_/", min_size=1, max_size=10))
def test_no_two_processes_share_a_file(path):
    """With more than one process, whatever the path, each has a file of its own in the same folder."""
    spec = msgspec.structs.replace(SPEC, stdout=path, proc_nr=120)
    paths = [output_path(spec, "stdout", number) for number in range(120)]
    assert len(set(paths)) == 120
    assert len({p.count("/") for p in paths}) == 1
