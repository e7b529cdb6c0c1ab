"""Freed memory stays with the process within the block, and goes back to the system at its end."""

import os
import subprocess
import sys

import pytest

from quatrain.core import allocation
from quatrain.core.allocation import freed_memory_kept

glibc = pytest.mark.skipif(allocation._glibc() is None, reason="the allocator of this system is not glibc's")
TRIAL = """
import sys, torch
from quatrain.core.process_memory import resident_memory
from quatrain.core.allocation import freed_memory_kept
def freed():
    torch.ones(50_000_000)
    return resident_memory()
before = freed()
with freed_memory_kept() as kept:
    within = freed()
print(bool(kept), within - before > 190e6, freed() - before < 10e6)
"""
HOLES = """
import contextlib, torch
from quatrain.core.process_memory import resident_memory
from quatrain.core.allocation import large_apart
def made():
    passing, kept = [], []
    for _ in range(20):
        passing.append(torch.ones(2_000_000))
        kept.append(torch.ones(3_000))  # behind it, so that it cannot go back alone
    passing.clear()
    return kept
def left(how):
    before = resident_memory()
    with how:
        held.append(made())
    return resident_memory() - before
held = [torch.ones(3_000) for _ in range(3_000)]  # what the imports have freed is used up, whatever they have compiled
torch.ones(7_000_000)  # so large that glibc maps apart nothing smaller from then on
with large_apart():
    pass
print(left(contextlib.nullcontext()) > 100e6, left(large_apart()) < 20e6)
"""


def trial(code: str = TRIAL, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name not in allocation._OF_THE_USER}
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@glibc
def test_freed_memory_is_kept_and_then_given_back():
    assert trial() == ["True", "True", "True"]


@glibc
def test_what_is_freed_leaves_no_hole_where_it_was_apart():
    assert trial(HOLES) == ["True", "True"]


def test_what_was_set_before_is_set_again(monkeypatch):
    class Glibc(dict):
        def mallopt(self, name, value):
            self[name] = value
            return 1

        def malloc_trim(self, padding):
            self.trimmed += 1

        trimmed = 0

    now = Glibc()
    monkeypatch.setattr(allocation, "_glibc", lambda: now)
    for name in allocation._OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    with freed_memory_kept():
        kept = dict(now)
        with allocation.large_apart():
            assert now[allocation._MMAP_THRESHOLD] == 1 << 20
            assert now[allocation._MMAP_MAX] > 0
        assert now.items() >= kept.items()
        assert now.trimmed == 1, "what is kept is not given back"
        assert now[allocation._MMAP_THRESHOLD] == 32 << 20
    assert now == allocation._USUAL


def test_what_lies_free_is_given_back_where_it_is_much(monkeypatch):
    """Steps from a clean heap tell what is needed beside the process itself; half as much again is kept, no more."""
    trims = []

    class Glibc:
        def malloc_trim(self, padding):
            trims.append(step)

    held = iter([1000, *(1000 + step for step in (100, 120, 149, 151, 110, 130, 166, 90, 135))])
    monkeypatch.setattr(allocation, "resident_memory", lambda: next(held))
    kept = allocation.Kept(Glibc())
    for step in range(9):  # noqa: B007
        kept.after_step()
    # 151 is past 100 * 1.5; the step after it leaves 110, which is then what is needed; 166 is past 110 * 1.5.
    assert trims == [3, 6]
    assert not allocation.Kept(None)


@glibc
def test_an_environment_that_says_how_memory_is_allocated_has_the_last_word():
    assert trial(MALLOC_TRIM_THRESHOLD_="1000000") == ["False", "False", "True"]


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with freed_memory_kept() as kept:
        assert not kept


def test_it_is_left_alone_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr(allocation, "_glibc", lambda: pytest.fail("asked for the allocator"))
    with freed_memory_kept(False) as kept:
        assert not kept
