"""The files of ``tls``: whatever is wrong with one is said with its key, and nothing of a key is ever shown."""

import json
import os
import shutil

import pytest
from certificates import Authority, needs_openssl, openssl
from config_disk import UID, folder, written

from taskmaster.config import tls
from taskmaster.config.daemon import load
from taskmaster.config.tls import TlsFiles
from taskmaster.errors import FileError

pytestmark = needs_openssl
NAMES = {"certificate": "s.crt", "key": "s.key", "clientCA": "ca.crt"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.issue("server", alt="DNS:localhost")
    authority.issue("other")
    openssl(
        *("ec", "-aes256", "-passout", "pass:x"),
        *("-in", authority.folder / "server.key", "-out", authority.folder / "locked.key"),
    )
    return authority


@pytest.fixture
def place(made, tmp_path):
    """A folder with a good configuration and its files."""
    for source, name in (("server.crt", "s.crt"), ("server.key", "s.key"), ("ca.crt", "ca.crt")):
        shutil.copy(made.folder / source, tmp_path / name)
        (tmp_path / name).chmod(0o600)
    written(tmp_path / "config.json", json.dumps({"tls": NAMES}).encode())
    return tmp_path


def refused(place):
    with pytest.raises(FileError) as caught:
        load(place / "config.json", {}, UID)
    error = caught.value
    assert error.file == str(place / "config.json")
    assert error.exit_status == 78
    assert error.accepted
    assert "PRIVATE" not in str(error)
    return error


def test_good(place):
    """Paths are relative to the file; the result speaks TLS 1.3 alone and asks for certificates."""
    config = load(place / "config.json", {}, UID)
    assert config.tls == TlsFiles(*(str(place / name) for name in NAMES.values()))
    before = set(os.listdir("/proc/self/fd"))
    context = tls.context(config.tls, UID, "x")
    assert context.minimum_version.name == "TLSv1_3"
    assert context.verify_mode.name == "CERT_REQUIRED"
    assert context.num_tickets == 0
    assert set(os.listdir("/proc/self/fd")) == before
    # Certificate and key in one file, a remark in UTF-8 between, the key readable for its owner alone.
    both = (place / "s.crt").read_bytes() + "Schlüssel\n".encode() + (place / "s.key").read_bytes()
    written(place / "both.pem", both, 0o400)
    members = {"tls": {"certificate": "both.pem", "key": "both.pem", "clientCA": "ca.crt"}}
    written(place / "config.json", json.dumps(members).encode())
    assert load(place / "config.json", {}, UID).tls is not None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, "a boolean"),
        (["a", "b", "c"], "a list"),
        ({}, "no certificate"),
        ({"certificate": "a", "key": "b"}, "no clientCA"),
        ({**NAMES, "clientCa": "x"}, 'unknown key "clientCa"'),
        ({**NAMES, "key": 1}, "key: 1"),
        ({**NAMES, "key": ""}, 'key: ""'),
        ({**NAMES, "clientCA": "a\0"}, "clientCA: a NUL"),
    ],
)
def test_wrong_values(place, value, found):
    """What is no object of three paths is an error of the key ``tls``."""
    written(place / "config.json", json.dumps({"tls": value}).encode())
    error = refused(place)
    assert error.key == "tls"
    assert found in error.found


@pytest.mark.parametrize(
    ("name", "source", "key", "found"),
    [
        ("s.crt", None, "certificate", "No such file"),
        ("s.crt", b"", "certificate", "no certificate in PEM"),
        ("s.crt", b"\xff\xfe garbage", "certificate", "no certificate in PEM"),
        ("s.crt", "server.key", "certificate", "no certificate in PEM"),
        ("s.crt", "other.crt", "key", "does not belong to the certificate"),
        ("s.key", None, "key", "No such file"),
        ("s.key", b"", "key", "no private key in PEM"),
        ("s.key", "server.crt", "key", "no private key in PEM"),
        ("s.key", "other.key", "key", "does not belong to the certificate"),
        ("s.key", "locked.key", "key", "encrypted"),
        ("s.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "key", "cannot be used"),
        ("ca.crt", None, "clientCA", "No such file"),
        ("ca.crt", b"x", "clientCA", "no certificate in PEM"),
        ("ca.crt", "server.crt", "clientCA", "may not sign"),
    ],
)  # fmt: skip
def test_broken_files(made, place, name, source, key, found):
    """A file that is not there, no PEM, of something else or of another pair is named, with the reason."""
    path = place / name
    if source is None:
        path.unlink()
    else:
        data = source if isinstance(source, bytes) else (made.folder / source).read_bytes()
        written(path, data)
    error = refused(place)
    assert error.key == f"tls.{key}"
    assert found in error.found
    assert str(place / NAMES[key]) in error.found


@pytest.mark.parametrize(("name", "mode"), [("s.key", 0o640), ("s.key", 0o604), ("ca.crt", 0o664)])
def test_files_of_others(place, name, mode):
    """Nobody else may read the key, nor write any of the files, nor be where a link or a folder leads."""
    (place / name).chmod(mode)
    error = refused(place)
    assert f"mode {mode:04o}" in error.found
    assert str(place / name) in error.found
    (place / name).chmod(0o600)
    (place / name).rename(place / "real")
    open_to_all = folder(place / "open", 0o777)
    (open_to_all / name).write_bytes((place / "real").read_bytes())
    (open_to_all / name).chmod(0o600)
    (place / name).symlink_to(f"open/{name}")
    assert "a link that others could change" in refused(place).found
    assert "mode 0777" in refused(place).found
    (place / name).unlink()
    (place / "real").rename(open_to_all / name)
    named = {key: f"open/{name}" if one == name else one for key, one in NAMES.items()}
    written(place / "config.json", json.dumps({"tls": named}).encode())
    assert f"{open_to_all}: mode 0777" in refused(place).found
