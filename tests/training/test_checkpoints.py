"""Checkpoints: a flipped byte, a cut or a missing file is refused by name and the earlier one used; a full disk at any
write leaves the previous one whole; the best one is protected."""

import builtins
import errno
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tiny_models import llama
from tiny_training import CONFIG

from quatrain.core import atomic
from quatrain.core.errors import QuatrainError
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.training import checkpoints

TINY = llama(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, tie_word_embeddings=True)


def write(folder, step, config=TINY, **more):
    model = Model(config).initialize(step)
    tensors = {name: torch.full_like(tensor, step) for name, tensor in model.state_dict().items()}
    state = {"step": step, "recent": [0.1 * step]}
    return checkpoints.write(
        folder, step, weights=lambda place: model_folder.save(model, place), tensors=tensors, state=state, **more
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints of a folder, and every file of the newer one with its bytes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    first, second = write(folder, 1), write(folder, 2)
    files = {
        path.relative_to(second).as_posix(): path.read_bytes() for path in sorted(second.rglob("*")) if path.is_file()
    }
    assert {"manifest.json", "config.json", "model.safetensors", checkpoints.STATE, checkpoints.TENSORS} <= set(files)
    return folder, first, second, files


def refused(folder, first, second, name):
    with pytest.raises(QuatrainError) as caught:
        checkpoints.check(second)
    warned = []
    assert checkpoints.newest_intact(folder, warned.append) == first
    assert len(warned) == 1 and second.name in warned[0] and "earlier checkpoint" in warned[0]
    return str(caught.value), name


@examples(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_byte_flipped_anywhere_is_refused_by_name(pair, data):
    folder, first, second, files = pair
    name = data.draw(st.sampled_from(sorted(files)))
    place = data.draw(st.integers(0, len(files[name]) - 1))
    flip = data.draw(st.integers(1, 255))
    spoiled = bytearray(files[name])
    spoiled[place] ^= flip
    try:
        (second / name).write_bytes(spoiled)
        text, _ = refused(folder, first, second, name)
        assert name in text
    finally:
        (second / name).write_bytes(files[name])
    checkpoints.check(second)


def test_every_byte_of_the_manifest_counts(pair):
    _, _, second, files = pair
    whole = files[checkpoints.MANIFEST]
    try:
        for place in range(len(whole)):
            for flip in (1, 32):
                spoiled = bytearray(whole)
                spoiled[place] ^= flip
                (second / checkpoints.MANIFEST).write_bytes(spoiled)
                with pytest.raises(QuatrainError, match=r"manifest\.json"):
                    checkpoints.check(second)
    finally:
        (second / checkpoints.MANIFEST).write_bytes(whole)


@examples(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_or_missing_is_refused_by_name(pair, data):
    folder, first, second, files = pair
    name = data.draw(st.sampled_from(sorted(files)))
    length = data.draw(st.integers(-1, len(files[name]) - 1))
    try:
        if length < 0:
            (second / name).unlink()
        else:
            (second / name).write_bytes(files[name][:length])
        text, _ = refused(folder, first, second, name)
        assert name in text
    finally:
        (second / name).write_bytes(files[name])


class Disk:
    """A disk on which a number of bytes may still be written, or a number of operations done."""

    def __init__(self, monkeypatch, *, room=None, operations=None):
        self.room, self.operations, self.done = room, operations, 0
        monkeypatch.setattr(atomic, "open", self.open, raising=False)
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, operation):
        def run(*given, **named):
            self.done += 1
            if self.operations is not None and self.done > self.operations:
                raise OSError(errno.ENOSPC, "No space left on device")
            return operation(*given, **named)

        return run

    def open(self, *given, **named):
        file = builtins.open(*given, **named)  # noqa: SIM115 - closed by the wrapper
        write = file.write

        def counted(data):
            size = len(data)
            if self.room is not None:
                if size > self.room:
                    write(data[: self.room])
                    self.room = 0
                    raise OSError(errno.ENOSPC, "No space left on device")
                self.room -= size
            return write(data)

        # File objects of C take no attributes; a wrapper does.
        return _File(file, counted)


class _File:
    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *given):
        return self._file.__exit__(*given)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@examples(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_disk_full_at_any_byte_leaves_the_previous_one_whole(pair, share, tmp_path_factory):
    size = sum(len(data) for data in pair[3].values())
    folder = tmp_path_factory.mktemp("full")
    write(folder, 1)
    before = contents(folder)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, room=int(share * size))
        with pytest.raises(QuatrainError, match="the disk is full"):
            write(folder, 2)
    assert contents(folder) == before
    assert checkpoints.newest_intact(folder, pytest.fail).name == "step-00000001"


def test_an_operation_that_fails_at_any_point_leaves_the_previous_one_whole(tmp_path):
    write(tmp_path / "counted", 1)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        write(tmp_path / "counted", 2)
        needed = disk.done
    assert needed > 8
    folder = tmp_path / "full"
    write(folder, 1)
    before = contents(folder)
    failed = 0
    for operations in range(needed):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, operations=operations)
            try:
                write(folder, 2)
            except QuatrainError as error:
                assert "the disk is full" in str(error)
                failed += 1
                assert contents(folder) == before
            else:
                # Flushing a folder's list of names is the last thing, and may fail: all is written by then.
                checkpoints.check(checkpoints.place(folder, 2))
                for path in sorted(checkpoints.place(folder, 2).rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                checkpoints.place(folder, 2).rmdir()
    assert failed >= needed // 2


def test_the_newest_two_and_the_protected_ones_stay(tmp_path):
    for step in range(1, 7):
        write(tmp_path, step, protect=(2,) if step >= 2 else ())
    assert [path.name for path in checkpoints.found(tmp_path)] == ["step-00000002", "step-00000005", "step-00000006"]
    (tmp_path / ".step-00000007.partial").mkdir()  # of a kill
    checkpoints.prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_what_was_written_is_read(tmp_path):
    place = write(tmp_path, 3, config=CONFIG)
    state, tensors = checkpoints.read_state(place)
    assert state == {"step": 3, "recent": [pytest.approx(0.3)]}
    assert all((tensor == 3).all() for tensor in tensors.values())
    listed = json.loads((place / checkpoints.MANIFEST).read_text())
    assert set(listed["files"]) == {name for name in contents(place) if name != checkpoints.MANIFEST}
