"""Output files of one job that would get in each other's way: by name alone, nothing is looked up on a disk.

A file that is rotated has one writer, and the names of its generations are taken. In the job's log folder a
watchdog that crashes leaves its reason, under a name that no output may have.
"""

from __future__ import annotations

from collections.abc import Iterator

from taskmaster.core import names
from taskmaster.core.spec import INHERITED, JobSpec, output_path
from taskmaster.errors import FileError


def check(file: str, spec: JobSpec) -> None:
    """Raises FileError, ``file`` being the job's, where two outputs of the job cannot both be."""
    rotates = spec.log_max_bytes > 0
    seen: dict[str, str] = {}
    for stream, path in outputs(spec):
        if path.split("/")[0] == names.CRASH_FILE:
            found = f"{path}, where a watchdog leaves the reason of a crash"
            raise FileError(file, stream, found, "another name")
        if rotates and path in seen:
            found = f"{path}, which is a file of {seen[path]} of another process too"
            raise FileError(file, stream, found, "a file for each, or logMaxBytes 0")
        seen[path] = stream
    for path, stream in seen.items():
        for above in _above(path):
            if above in seen:
                found = f"{path}, in a folder that is the file of {seen[above]}"
                raise FileError(file, stream, found, "another name")
        rotated, dot, number = path.rpartition(".")
        if rotates and dot and rotated in seen and _is_generation(number, spec.log_backups):
            found = f"{path}, which is what rotation makes of {rotated}"
            raise FileError(file, stream, found, "another name, or logMaxBytes 0")


def outputs(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Stream and path of each output file of the job's processes; one that both streams share comes once."""
    for number in range(spec.proc_nr):
        stdout = output_path(spec, "stdout", number)
        if stdout is not None and stdout not in INHERITED:
            yield "stdout", stdout
        stderr = output_path(spec, "stderr", number)
        if stderr is not None and stderr not in INHERITED and stderr != stdout:
            yield "stderr", stderr


def _above(path: str) -> Iterator[str]:
    at = path.find("/", 1)
    while at > 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _is_generation(number: str, backups: int) -> bool:
    digits = number.isascii() and number.isdigit() and number[0] != "0"
    return digits and len(number) < 5 and int(number) <= backups
