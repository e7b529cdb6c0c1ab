"""Writes are whole or absent, and their failures are told in words."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quatrain.core import atomic
from quatrain.core.errors import InputError, QuatrainError


def test_a_write_replaces_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "a.txt"
    atomic.write_text(path, "old")
    atomic.write_text(path, "new é\n")
    assert path.read_bytes() == "new é\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic.atomic_write(path, "wb") as handle:
        handle.write(b"half of the n")
        raise KeyError("x")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_json_is_utf8_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"name": "naïve", "n": 1.5})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": "naïve", "n": 1.5}
    assert "naïve" in (tmp_path / "a.json").read_text("utf-8")
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["n"] == 1.5


def test_a_full_disk_is_told_with_path_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    path = tmp_path / "model.json"
    with pytest.raises(QuatrainError, match="disk is full") as caught:
        atomic.write_json(path, {})
    assert str(path) in str(caught.value) and "free on that disk" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_really_full_device_is_told() -> None:
    full = Path("/dev/full")
    with pytest.raises(QuatrainError, match="disk is full"), atomic.disk_errors(full):
        full.write_text("x")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(QuatrainError, match="in the way"):
        atomic.write_text(tmp_path / "runs" / "a.txt", "x")


def test_a_name_that_no_file_can_have_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*Choose another name"):
        atomic.write_text(tmp_path / ("x" * 300) / "a.txt", "x")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(QuatrainError, match="Choose a folder"):
            atomic.write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_forbidden_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(QuatrainError, match="Choose a folder"):
        atomic.write_text(tmp_path / "a.txt", "x")


def test_another_error_in_the_block_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.atomic_write(tmp_path / "a.txt") as handle:
        handle.write(Path(tmp_path / "absent.txt").read_text())


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_while_writing_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = (
        "import sys, os, signal\n"
        "from quatrain.core.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as f:\n"
        "    f.write('new' * 100000); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - {path}
    (tmp_path / ".a.txt.partial").touch()  # of somebody else's
    (tmp_path / "below" / ".bm25.01234567.partial").mkdir(parents=True)
    assert [atomic.is_leftover(each) for each in (left, path, tmp_path / ".a.txt.partial")] == [True, False, False]
    atomic.remove_leftovers(tmp_path)
    assert {each.name for each in tmp_path.rglob("*")} == {"a.txt", ".a.txt.partial", "below"}
    assert path.read_text() == "old"
