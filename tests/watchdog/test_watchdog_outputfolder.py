"""The way to an output file with an absolute path: whose folders are on it, and with whose rights it is gone."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog_children import CHOWN, SETGID, SETUID, capable

from taskmaster.watchdog import outputfolder
from taskmaster.watchdog.outputfolder import Folder, Standing, standing
from taskmaster.watchdog.rights import Rights

WEB, OTHER = 54_321, 54_322
THEIRS = Rights(WEB, WEB, (WEB,))
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_APPEND
changes_users = pytest.mark.skipif(
    not capable(CHOWN, SETGID, SETUID), reason="needs root that may become others"
)


def status(uid: int, mode: int) -> os.stat_result:
    """Of a folder."""
    return os.stat_result((stat.S_IFDIR | mode, 0, 0, 2, uid, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("uid", "mode", "found"),
    [
        (0, 0o755, Standing.CLOSED),
        (7, 0o700, Standing.CLOSED),
        (0, 0o1777, Standing.STICKY),
        (0, 0o1775, Standing.STICKY),
        (7, 0o775, Standing.SHARED),
        (0, 0o2775, Standing.SHARED),
        (0, 0o777, Standing.FOREIGN),
        (0, 0o757, Standing.FOREIGN),
        (8, 0o755, Standing.FOREIGN),
        (8, 0o1777, Standing.FOREIGN),
        (8, 0o555, Standing.FOREIGN),
    ],
)
def test_standing(uid: int, mode: int, found: Standing) -> None:
    """Root's and ours (7) are no others; who may write decides the rest."""
    assert standing(status(uid, mode), frozenset({0, 7})) is found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of ours that other users may enter."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def made(path: Path, uid: int = 0, mode: int = 0o755) -> Path:
    """A folder of this user."""
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


def opened(path: Path, rights: Rights | None = None, name: str = "log") -> Path:
    """Open (or make) the log there; where it is."""
    folder = outputfolder.enter(str(path), name, lambda: rights)
    try:
        fd = folder.open(name, FLAGS)
        found = Path(os.readlink(f"/proc/self/fd/{fd}"))
        os.close(fd)
        return found
    finally:
        folder.close()


def refused(path: Path, rights: Rights | None = None, name: str = "log") -> OSError:
    """What it is refused for."""
    with pytest.raises(OSError, match=r"\w") as caught:
        opened(path, rights, name)
    return caught.value


def test_links_of_ours_are_followed(place: Path) -> None:
    """``/var/log`` may be a link that root made; relative or absolute, one behind the other."""
    made(place / "disk")
    made(place / "disk/app")
    (place / "log").symlink_to(place / "disk")
    (place / "again").symlink_to("log/app")
    assert opened(place / "again") == place / "disk/app/log"


def test_up_from_a_link_is_what_the_kernel_means(place: Path) -> None:
    """``current/../common``: above the folder that the link leads to, not above the link."""
    for name in ("releases", "releases/1", "releases/common", "common"):
        made(place / name)
    (place / "current").symlink_to("releases/1")
    assert opened(place / "current/../common/.") == place / "releases/common/log"
    assert opened(Path(f"{place}//current/.././../common")) == place / "common/log"


def test_links_in_circles(place: Path) -> None:
    """They have an end."""
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    assert refused(place / "a").errno == errno.ELOOP


def test_what_is_missing_or_no_folder_is_named(place: Path) -> None:
    """The path of the part that is wrong."""
    (place / "file").touch()
    assert (refused(place / "x/y").errno, refused(place / "x/y").filename) == (
        errno.ENOENT,
        f"{place}/x",
    )
    assert refused(place / "file/y").errno == errno.ENOTDIR


@changes_users
def test_a_link_in_a_sticky_folder(place: Path) -> None:
    """Root's is followed; another user's is not, nor a file that another user has put there before."""
    made(place / "tmp", mode=0o1777)
    made(place / "root")
    (place / "tmp/ours").symlink_to(place / "root")
    assert opened(place / "tmp/ours") == place / "root/log"
    (place / "tmp/theirs").symlink_to(place / "root")
    os.chown(place / "tmp/theirs", OTHER, OTHER, follow_symlinks=False)
    assert refused(place / "tmp/theirs").errno == errno.ELOOP
    assert opened(place / "tmp") == place / "tmp/log"
    (place / "tmp/before").touch()
    os.chown(place / "tmp/before", OTHER, OTHER)
    assert refused(place / "tmp", name="before").errno == errno.EACCES


@changes_users
@pytest.mark.parametrize("mode", [0o775, 0o2775])
def test_a_folder_of_a_group(place: Path, mode: int) -> None:
    """``/var/log`` of Debian: files and folders in it are used, links are not, nor second names of files."""
    made(place / "log", mode=mode)
    made(place / "log/app")
    made(place / "etc")
    assert opened(place / "log") == place / "log/log"
    assert opened(place / "log/app", THEIRS) == place / "log/app/log"
    (place / "log/link").symlink_to(place / "etc")
    assert refused(place / "log/link").errno == errno.ELOOP
    (place / "log/app/link").symlink_to(place / "etc")
    assert refused(place / "log/app/link").errno == errno.ELOOP
    (place / "etc/passwd").write_text("root")
    os.link(place / "etc/passwd", place / "log/second")
    assert refused(place / "log", name="second").errno == errno.EMLINK
    assert not (place / "etc/log").exists()


@changes_users
def test_a_folder_of_the_jobs_user(place: Path) -> None:
    """It is opened as that user: the file is theirs, their own links lead where they may go themselves."""
    made(place / "home", WEB)
    made(place / "home/releases", WEB)
    made(place / "root")
    assert opened(place / "home", THEIRS) == place / "home/log"
    assert (place / "home/log").stat().st_uid == WEB
    (place / "home/current").symlink_to("releases")
    assert opened(place / "home/current", THEIRS) == place / "home/releases/log"
    (place / "home/evil").symlink_to(place / "root")
    assert refused(place / "home/evil", THEIRS).errno == errno.ELOOP
    (place / "root/secret").write_text("secret")
    (place / "root/secret").chmod(0o600)
    os.link(place / "root/secret", place / "home/second")
    assert refused(place / "home", THEIRS, "second").errno == errno.EMLINK
    (place / "home/final").symlink_to(place / "root/made")
    assert refused(place / "home", THEIRS, "final").errno == errno.ELOOP
    assert sorted(path.name for path in (place / "root").iterdir()) == ["secret"]


@changes_users
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o1777, 0o775])
@pytest.mark.parametrize("rights", [None, THEIRS], ids=["root's job", "another user's job"])
def test_a_folder_of_a_third_user(place: Path, mode: int, rights: Rights | None) -> None:
    """Their links lead nowhere, whoever the job runs as; a file in it is used all the same."""
    made(place / "other", OTHER, mode)
    made(place / "other/logs", OTHER, mode)
    made(place / "root")
    made(place / "web", WEB)
    assert opened(place / "other/logs", rights) == place / "other/logs/log"
    for name in ("root", "web"):
        link = place / f"other/{name}"
        link.symlink_to(place / name)
        os.chown(link, OTHER, OTHER, follow_symlinks=False)
        assert refused(link, rights).errno == errno.ELOOP
        assert list((place / name).iterdir()) == []


@changes_users
def test_a_file_that_the_jobs_user_may_not_open(place: Path) -> None:
    """One that root's daemon made there before: it is gone on with, without a link and with one name."""
    made(place / "home", WEB)
    (place / "home/log").write_text("before\n")
    (place / "home/log").chmod(0o600)
    os.chown(place / "home/log", 0, 0)
    assert opened(place / "home", THEIRS) == place / "home/log"


@changes_users
def test_files_are_moved_with_the_same_rights(place: Path) -> None:
    """Rotation in a folder that its user closed to themselves is refused, as it would be to them."""
    made(place / "home", WEB)
    folder = outputfolder.enter(str(place / "home"), "log", lambda: THEIRS)
    os.close(folder.open("log", FLAGS))
    folder.rename("log", "log.1")
    assert folder.stat("log.1").st_uid == WEB
    folder.unlink("log.1")
    (place / "home").chmod(0o555)
    with pytest.raises(PermissionError):
        folder.open("log", FLAGS)
    folder.close()


def test_rights_are_given_back_after_an_error(place: Path) -> None:
    """Whatever happens meanwhile."""
    if not capable(CHOWN, SETGID, SETUID):
        pytest.skip("needs root that may become others")
    before = ids()
    folder = Folder(os.open(place, os.O_PATH), THEIRS)
    with pytest.raises(PermissionError):
        folder.open("log", FLAGS)
    folder.close()
    assert ids() == before
    with THEIRS.taken():
        assert ids() == ["0 0 0 54321", "0 0 0 54321", "54321"]
    assert ids() == before


def ids() -> list[str]:
    """Real, effective, saved and file system's user and group, and the further groups."""
    lines = Path("/proc/self/status").read_text().splitlines()
    wanted = ("Uid:", "Gid:", "Groups:")
    return [" ".join(line.split()[1:]) for line in lines if line.split()[0] in wanted]
