"""The laws of the house: which part may import and call what. Read from the sources, never imported."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: Modules that compute and touch nothing: no clock, no file, no process, no environment.
PURE = frozenset(
    {"__future__", "base64", "binascii", "collections", "dataclasses", "enum", "functools"}
    | {"hashlib", "hmac", "itertools", "json", "math", "re", "string", "struct", "typing"}
    | {"msgspec", "taskmaster.errors"}
)
#: The file of the command line that finds the daemon's log and seal.
DAEMON_FILES = "taskmaster/cli/audit/where.py"
STARTS_PROCESSES = (
    *("os.fork", "os.forkpty", "pty.fork", "os.posix_spawn", "os.posix_spawnp"),
    *("os.system", "os.popen", "os.spawnl", "os.spawnv", "os.spawnve", "os.spawnvp"),
    *("subprocess", "multiprocessing", "concurrent.futures", "asyncio"),
)


class Source(NamedTuple):
    """One file of the product: its path below the checkout, what it imports and what it names."""

    path: str
    imports: frozenset[str]
    names: frozenset[str]
    has_docstring: bool


def read(path: str, text: str) -> Source:
    """Every import, also within functions, and every dotted name, with ``import x as y`` undone."""
    tree = ast.parse(text, path)
    imports: set[str] = set()
    aliases: dict[str, str] = {}
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports.add(alias.name)
                aliases[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = node.level - path.endswith("/__init__.py")
                base = package[: len(package) - above]
                module = ".".join([*base, module] if module else base)
            for alias in node.names:
                imports.add(f"{module}.{alias.name}")
                aliases[alias.asname or alias.name] = f"{module}.{alias.name}"
    names = {name for node in ast.walk(tree) if (name := dotted(node, aliases))}
    return Source(path, frozenset(imports), frozenset(names), ast.get_docstring(tree) is not None)


def dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """``os.fork`` for the expression of that name, however ``os`` or ``fork`` were imported."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, aliases)
        return f"{before}.{node.attr}" if before else ""
    return ""


def within(name: str, modules: object) -> bool:
    """Whether ``name`` is one of these modules or in one of them."""
    assert isinstance(modules, (tuple, frozenset))
    return any(name == module or name.startswith(f"{module}.") for module in modules)


class Law(NamedTuple):
    """A sentence, the files it is for, and what in such a file breaks it."""

    sentence: str
    applies: Callable[[str], bool]
    broken_by: Callable[[Source], Iterator[str]]


def below(*folders: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(folders)


def but(*paths: str) -> Callable[[str], bool]:
    return lambda path: not path.startswith(paths)


def imports_of(*modules: str) -> Callable[[Source], Iterator[str]]:
    return lambda source: (name for name in sorted(source.imports) if within(name, modules))


def uses_of(*names: str) -> Callable[[Source], Iterator[str]]:
    return lambda source: (
        name for name in sorted(source.names | source.imports) if within(name, names)
    )


def imports_beyond(allowed: frozenset[str], *, of: str = "") -> Callable[[Source], Iterator[str]]:
    """Imports that are not in ``allowed``; with ``of``, only among those of that package."""

    def broken(source: Source) -> Iterator[str]:
        for name in sorted(source.imports):
            if not within(name, allowed) and (not of or within(name, (of,))):
                yield name

    return broken


def broken_by_no_docstring(source: Source) -> Iterator[str]:
    if not source.has_docstring:
        yield "no docstring"


LAWS = {
    "core": Law(
        "core is pure: it imports nothing that touches the world, and nothing else of the house",
        below("taskmaster/core/"),
        imports_beyond(PURE | {"taskmaster.core"}),
    ),
    "wire": Law(
        "wire is pure: bytes to messages and back, knowing only core",
        below("taskmaster/wire/"),
        imports_beyond(PURE | {"taskmaster.core", "taskmaster.wire"}),
    ),
    "evidence": Law(
        "evidence is pure: canonical records, hashes, seals; it knows nothing else of the house",
        below("taskmaster/evidence/"),
        imports_beyond(PURE | {"taskmaster.evidence"}),
    ),
    "watchdog": Law(
        "a watchdog knows nothing of clients, configuration files and the audit log",
        below("taskmaster/watchdog/"),
        imports_of(
            *("taskmaster.control", "taskmaster.config", "taskmaster.audit", "taskmaster.cli"),
            *("click", "structlog"),
        ),
    ),
    "control": Law(
        "the control plane knows of the watchdog only its entry point",
        below("taskmaster/control/"),
        imports_beyond(
            frozenset(
                {"taskmaster.watchdog.entry", "taskmaster.control", "taskmaster.core"}
                | {"taskmaster.wire", "taskmaster.config", "taskmaster.audit", "taskmaster.errors"}
                | {"taskmaster.eventloop", "taskmaster.stream", "taskmaster.syscalls"}
                | {"taskmaster.procfs", "taskmaster.fifos", "taskmaster.children"}
                | {
                    "taskmaster.sockdiag",
                    "taskmaster.channel",
                    "taskmaster.stdio",
                    "taskmaster.accounts",
                    "taskmaster.beacon",
                    "taskmaster.statefolder",
                }
                | {"taskmaster.__version__", "taskmaster.__file__"}
            ),
            of="taskmaster",
        ),
    ),
    "cli": Law(
        "the command line imports errors, wire, evidence, job names, and how to ask the kernel who listens",
        lambda path: path.startswith("taskmaster/cli/") and path != DAEMON_FILES,
        imports_beyond(
            frozenset(
                {"taskmaster.cli", "taskmaster.errors", "taskmaster.wire", "taskmaster.evidence"}
                | {"taskmaster.core.names", "taskmaster.__version__"}
                | {"taskmaster.stdio", "taskmaster.sockdiag"}
            ),
            of="taskmaster",
        ),
    ),
    "files of the daemon": Law(
        "one file of it reads the daemon's configuration, to find the daemon's files as the daemon does",
        lambda path: path == DAEMON_FILES,
        imports_beyond(
            frozenset({"taskmaster.config.daemon", "taskmaster.errors"}), of="taskmaster"
        ),
    ),
    "shared": Law(
        "what both daemon and watchdog use imports neither of them",
        lambda path: path.count("/") == 1,
        imports_of(
            *("taskmaster.control", "taskmaster.watchdog", "taskmaster.config"),
            *("taskmaster.audit", "taskmaster.cli"),
        ),
    ),
    "audit": Law(
        "the audit log depends on nothing of the house but evidence and errors",
        below("taskmaster/audit/"),
        imports_beyond(
            frozenset({"taskmaster.audit", "taskmaster.evidence", "taskmaster.errors"}),
            of="taskmaster",
        ),
    ),
    "config": Law(
        "configuration knows jobs, not processes, clients or the loop",
        below("taskmaster/config/"),
        imports_of(
            *("taskmaster.control", "taskmaster.watchdog", "taskmaster.audit", "taskmaster.cli"),
            *("taskmaster.eventloop", "taskmaster.stream", "taskmaster.syscalls"),
        ),
    ),
    "selectors": Law(
        "eventloop.py is the one that waits for descriptors",
        but("taskmaster/eventloop.py"),
        uses_of("selectors", "select.epoll", "asyncio"),
    ),
    "ctypes": Law(
        "syscalls.py is the one user of ctypes",
        but("taskmaster/syscalls.py"),
        imports_of("ctypes", "cffi"),
    ),
    "structlog": Law(
        "only the audit log imports structlog",
        but("taskmaster/audit/"),
        imports_of("structlog"),
    ),
    "click": Law(
        "only the command line imports click",
        but("taskmaster/cli/", "taskmaster/control/main.py"),
        imports_of("click"),
    ),
    "fork": Law(
        "processes are started in three files: watchdogs in launch.py, a job's in process.py, ssh in cli/ssh.py",
        but(
            "taskmaster/control/launch.py",
            "taskmaster/watchdog/process.py",
            "taskmaster/cli/ssh.py",
        ),
        uses_of(*STARTS_PROCESSES),
    ),
    "process": Law(
        "a job's process is forked and exec'd, without multiprocessing or subprocess",
        below("taskmaster/watchdog/process.py"),
        imports_of("multiprocessing", "subprocess"),
    ),
    "threads": Law(
        "one thread: a fork from a process with threads may deadlock the child",
        below("taskmaster/"),
        imports_of("threading", "_thread", "queue"),
    ),
    "code": Law(
        "no input becomes code: no pickle, no eval, no import by a name made at run time",
        below("taskmaster/"),
        uses_of(
            *("pickle", "_pickle", "marshal", "shelve", "importlib", "runpy"),
            *("eval", "exec", "__import__", "builtins"),
        ),
    ),
    "sleep": Law(
        "daemon and watchdog never sleep: they arm a timer and return to the loop",
        but("taskmaster/cli/"),
        uses_of("time.sleep", "signal.pause", "signal.sigwait"),
    ),
    "docstring": Law(
        "every file opens with what it is",
        below("taskmaster/"),
        broken_by_no_docstring,
    ),
}


def sources() -> list[Source]:
    files = sorted((ROOT / "taskmaster").rglob("*.py"))
    return [
        read(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files
    ]


def violations(law: Law, of: list[Source]) -> list[str]:
    return [
        f"{source.path}: {what}"
        for source in of
        if law.applies(source.path)
        for what in law.broken_by(source)
    ]


@pytest.mark.parametrize("name", LAWS)
def test_law(name: str) -> None:
    """Each law holds in every file it is for."""
    assert violations(LAWS[name], sources()) == [], LAWS[name].sentence


def test_the_house_is_found() -> None:
    """The sources that the laws are for are there: an empty walk would keep every law."""
    paths = {source.path for source in sources()}
    for folder in (*("core", "wire", "evidence", "watchdog", "control", "config", "audit", "cli"),):
        assert f"taskmaster/{folder}/__init__.py" in paths


BREACHES = [
    ("core", "taskmaster/core/x.py", "import time"),
    ("core", "taskmaster/core/x.py", "def f():\n    from os import environ"),
    ("core", "taskmaster/core/x.py", "from taskmaster import procfs"),
    ("core", "taskmaster/core/x.py", "from ..wire import frames"),
    ("wire", "taskmaster/wire/x.py", "import socket"),
    ("evidence", "taskmaster/evidence/x.py", "import os"),
    ("evidence", "taskmaster/evidence/x.py", "from taskmaster.audit import events"),
    ("watchdog", "taskmaster/watchdog/x.py", "from taskmaster import config"),
    ("watchdog", "taskmaster/watchdog/__init__.py", "from ..control import main"),
    ("watchdog", "taskmaster/watchdog/x.py", "import structlog.processors"),
    ("control", "taskmaster/control/x.py", "from taskmaster.watchdog.process import spawn"),
    ("control", "taskmaster/control/x.py", "from taskmaster.watchdog import process"),
    ("control", "taskmaster/control/x.py", "import taskmaster.cli"),
    ("cli", "taskmaster/cli/x.py", "def f():\n    import taskmaster.control.main"),
    ("cli", "taskmaster/cli/x.py", "from taskmaster.core.spec import JobSpec"),
    ("cli", "taskmaster/cli/audit/verify.py", "from taskmaster.config.daemon import load"),
    ("files of the daemon", DAEMON_FILES, "from taskmaster.audit import read_records"),
    ("shared", "taskmaster/stream.py", "from taskmaster.control import session"),
    ("audit", "taskmaster/audit/x.py", "from taskmaster.core import states"),
    ("config", "taskmaster/config/x.py", "from taskmaster.eventloop import EventLoop"),
    ("selectors", "taskmaster/stream.py", "from selectors import DefaultSelector"),
    ("selectors", "taskmaster/stream.py", "import select\nselect.epoll()"),
    ("ctypes", "taskmaster/watchdog/x.py", "import ctypes.util as u"),
    ("structlog", "taskmaster/control/x.py", "import structlog as log"),
    ("click", "taskmaster/control/x.py", "import click"),
    ("fork", "taskmaster/control/x.py", "import os\nos.fork()"),
    ("fork", "taskmaster/control/x.py", "from os import fork as f"),
    ("fork", "taskmaster/control/x.py", "import os as system\nspawn = system.fork"),
    ("fork", "taskmaster/cli/x.py", "from subprocess import run"),
    ("fork", "taskmaster/watchdog/entry.py", "import multiprocessing.connection"),
    ("process", "taskmaster/watchdog/process.py", "import multiprocessing"),
    ("threads", "taskmaster/control/x.py", "from threading import Thread"),
    ("code", "taskmaster/wire/x.py", "eval('1')"),
    ("code", "taskmaster/wire/x.py", "run = exec"),
    ("code", "taskmaster/wire/x.py", "from pickle import loads"),
    ("code", "taskmaster/control/x.py", "__import__('x')"),
    ("sleep", "taskmaster/control/x.py", "import time\ntime.sleep(1)"),
    ("sleep", "taskmaster/watchdog/x.py", "from time import sleep as wait\nwait(1)"),
    ("docstring", "taskmaster/watchdog/x.py", "import os"),
]


@pytest.mark.parametrize(("name", "path", "text"), BREACHES)
def test_a_breach_is_seen(name: str, path: str, text: str) -> None:
    """Each law is broken by a file that breaks it: the walk can fail."""
    assert violations(LAWS[name], [read(path, text)])


def test_every_law_can_be_broken() -> None:
    """No law without an example of a breach."""
    assert {name for name, _, _ in BREACHES} == set(LAWS)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("taskmaster/core/x.py", '"""X."""\nfrom .states import State\nimport re, msgspec'),
        ("taskmaster/wire/x.py", '"""X."""\nfrom taskmaster.core.states import State'),
        ("taskmaster/control/launch.py", '"""X."""\nimport os, multiprocessing\nos.fork()'),
        ("taskmaster/control/launch.py", '"""X."""\nfrom taskmaster.watchdog.entry import run'),
        ("taskmaster/watchdog/process.py", '"""X."""\nimport os\nos.fork()\nos.execve'),
        (
            "taskmaster/cli/x.py",
            '"""X."""\nimport time\ntime.sleep(1)\nfrom taskmaster import wire',
        ),
        ("taskmaster/audit/x.py", '"""X."""\nimport structlog'),
        ("taskmaster/control/x.py", '"""X. time.sleep, eval(x)."""\nsession.exec("os.fork")'),
    ],
)
def test_what_is_allowed_is_no_breach(path: str, text: str) -> None:
    """No law is broken by what the design asks for, or by words in a text."""
    source = read(path, text)
    assert [name for name, law in LAWS.items() if violations(law, [source])] == []
