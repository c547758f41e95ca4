"""The manual's keys of both files are those of the tables, with their defaults, meanings and what they accept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from docs_pages import ROOT, entries, flat, page, section

from taskmaster.config import history, jobfile, jsonc, keys
from taskmaster.config.daemon import DAEMON_KEYS, load
from taskmaster.config.jobfile import JOB_KEYS
from taskmaster.config.keys import Computed, Key, Required
from taskmaster.core import backoff, lifecycle, names
from taskmaster.core.states import PRECEDENCE, State
from taskmaster.watchdog import output

JOBS = page("docs/jobs.rst")
DAEMON = page("docs/taskmasterd.rst")
SAMPLE = page("conf/config.json")


def plainly(row: Key) -> str:
    """The second paragraph of a key's entry."""
    if isinstance(row.default, Required):
        default = "Required."
    elif isinstance(row.default, Computed):
        default = f"Default: {row.default.words}."
    else:
        value = row.default
        text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
        default = f"Default: ``{text}``."
    restarts = " A change restarts." if row in JOB_KEYS and jobfile.restarts(row) else ""
    return flat(f"{default} Accepted: {row.kind.accepted}.{restarts}")


@pytest.mark.parametrize(
    ("text", "title", "table"),
    [(JOBS, "Keys", JOB_KEYS), (DAEMON, "Configuration", DAEMON_KEYS)],
    ids=["jobs", "daemon"],
)
def test_every_key(text: str, title: str, table: tuple[Key, ...]) -> None:
    """No key is missing, none is made up, and what stands of each is what holds."""
    found = entries(section(text, title))
    assert set(found) == {row.name for row in table}
    for row in table:
        meaning, plain, *_ = found[row.name]
        assert (meaning, plain) == (row.meaning, plainly(row)), row.name


def test_states() -> None:
    """Every state is explained, and the order of their precedence is the one there is."""
    described = entries(section(JOBS, "States"))
    assert set(described) == {state.value for state in State}
    order = ", ".join(f"``{state.value}``" for state in PRECEDENCE)
    assert order in flat(section(JOBS, "States"))


def test_numbers() -> None:
    """Times and sizes in sentences are those of the program."""
    delays = [f"{backoff.delay_s(attempt, 0.5):g}" for attempt in range(8)]
    assert delays[-2:] == [f"{backoff.CAP_S:g}"] * 2
    assert backoff.JITTER == 0.2
    for sentence in (
        f"After the first one it waits {delays[0]} second, then {', '.join(delays[1:4])} …, "
        f"at most {backoff.CAP_S:g}, each a fifth more or less",
        f"``RUNNING`` for {backoff.HEALTHY_S:g} seconds has made up",
        f"end after at least {lifecycle.BUSY_LOOP_S:g} second is always followed",
        f"SIGKILL is repeated every {lifecycle.KILL_AGAIN_S:g} seconds",
        f"of at most {keys.MAX_BYTES >> 20} MiB. An unknown key",
        f"unless it is longer than {output.LONGEST_LINE >> 20} MiB",
        f"the last {history.KEPT} of each job",
    ):
        assert sentence in flat(JOBS), sentence
    longest = re.search(r"\{0,(\d+)\}", names._NAME.pattern)
    assert longest
    assert f"1 to {int(longest.group(1)) + 1} letters" in flat(JOBS)


def test_example_is_a_job() -> None:
    """The example of the manual is a job file that would be accepted."""
    (example,) = re.findall(r"code-block:: json\n\n((?:(?:   .*)?\n)+)", JOBS)
    spec = jobfile.parse_job("web", example.encode(), Path("/srv"))
    assert (spec.proc_nr, spec.argv[2]) == (2, "80%n")


def uncommented(text: str) -> str:
    return re.sub(r'^(\s*)// ("\w+":)', r"\1\2", text, flags=re.MULTILINE)


def test_sample_configuration(tmp_path: Path) -> None:
    """conf/config.json has every key, as it is and uncommented: root's defaults both times; each is explained."""
    file = tmp_path / "config.json"
    for text in (SAMPLE, uncommented(SAMPLE)):
        file.write_text(text)
        file.chmod(0o600)
        assert {**_settings(load(file, {}, 0)), "base": None, "file": None} == {
            **_settings(load(None, {}, 0, system_file=tmp_path / "none")),
            "base": None,
            "file": None,
        }
    members = jsonc.loads(uncommented(SAMPLE).encode(), keys.MAX_BYTES)
    assert isinstance(members, dict)
    assert list(members) == [row.name for row in DAEMON_KEYS]
    for row in DAEMON_KEYS:
        before, _, _ = SAMPLE.partition(f'"{row.name}":')
        comment = before.rstrip("/ \n").rpartition("//")[2].strip()
        assert comment.startswith(row.meaning.rstrip(".")), row.name


def _settings(config: object) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}  # type: ignore[attr-defined]


def test_sample_jobs() -> None:
    """Each sample is a usable job that begins with what it is, and needs no program but /bin/sh by its path."""
    samples = sorted((ROOT / "conf/jobs").iterdir())
    assert [one.name for one in samples] == [
        f"{name}.tm.json" for name in ("flaky", "once", "ticker", "worker")
    ]
    for sample in samples:
        data = sample.read_bytes()
        spec = jobfile.parse_job(names_of(sample), data, Path("/srv"))
        assert spec.runas == "", "runs as any user"
        assert data.startswith(b"// ")
        assert not re.search(rb'"/(?!bin/sh")', data), sample.name


def names_of(sample: Path) -> str:
    return sample.name.removesuffix(names.FILE_SUFFIX)
