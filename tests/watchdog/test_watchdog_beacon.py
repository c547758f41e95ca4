"""Whose a process of taskmaster is shows in its descriptors, and nobody else can say so for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from running import ROOT
from strangers import NOBODY, needs_root

from taskmaster import beacon

SHOW = """
import os, sys
sys.path.insert(0, sys.argv[1])
from taskmaster import beacon, syscalls
syscalls.set_name(sys.argv[4])
if len(sys.argv) > 5:
    os.setresuid(*[int(sys.argv[5])] * 3)
beacon.light(sys.argv[2], sys.argv[3])
print("lit", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def shown():
    """A process that shows a state directory and a job, under a name that the kernel has for it."""
    programs = []

    def show(state, job, name="watchdog x", *user):
        words = [sys.executable, "-c", SHOW, str(ROOT), state, job, name, *user]
        program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        programs.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == "lit\n"
        return program.pid

    yield show
    for program in programs:
        program.kill()
        program.communicate()


def test_seen(shown, tmp_path):
    """By state directory and job, the daemon as the one without; of another state directory not."""
    state = f"{tmp_path}/{'deep/' * 60}state"
    web, daemon = shown(state, "web"), shown(state, "", "taskmasterd")
    shown(f"{state}2", "other")
    seen = beacon.look(state)
    assert (seen.daemon, seen.watchdogs) == (daemon, {"web": web})
    assert beacon.is_lit(web, state, "web")
    assert not beacon.is_lit(web, state, "we")
    assert not beacon.is_lit(web, state)


@needs_root
def test_strangers_are_not_believed(shown, tmp_path):
    """Another user's process that shows the same is not taken for root's."""
    state = str(tmp_path / "state")
    shown(state, "web", "watchdog web", str(NOBODY))
    shown(state, "", "taskmasterd", str(NOBODY))
    assert beacon.look(state) == (None, {}, frozenset())


def test_programs_of_other_names_are_not(shown, tmp_path):
    """A job's program that has copied it is none of ours."""
    state = str(tmp_path / "state")
    shown(state, "web", "postgres")
    assert beacon.look(state).watchdogs == {}


def test_this_process_is_not_its_own_stray(tmp_path):
    """Who looks has it too."""
    fd = beacon.light(str(tmp_path))
    try:
        assert beacon.look(str(tmp_path)).daemon is None
    finally:
        os.close(fd)


def test_who_writes_into_pipes_that_are_gone(tmp_path):
    """Its job is known by the path that the pipe had."""
    folder = tmp_path / "jobs/web"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "0.stdout")
    fd = os.open(folder / "0.stdout", os.O_RDWR)
    try:
        program = subprocess.Popen(["sleep", "1000"], stdout=fd)
        try:
            assert beacon.look(str(tmp_path)).orphaned == frozenset()
            (folder / "0.stdout").unlink()
            assert beacon.look(str(tmp_path)).orphaned == {"web"}
        finally:
            program.kill()
            program.wait()
    finally:
        os.close(fd)
