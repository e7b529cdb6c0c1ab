"""Freed memory stays with the process within the block, and goes back to the system at its end."""

import os
import subprocess
import sys

import pytest

from quatrain.training import allocation
from quatrain.training.allocation import freed_memory_kept

glibc = pytest.mark.skipif(allocation._glibc() is None, reason="the allocator of this system is not glibc's")
TRIAL = """
import sys, torch
from quatrain.planning.machine import resident_memory
from quatrain.training.allocation import freed_memory_kept
def freed():
    torch.ones(50_000_000)
    return resident_memory()
before = freed()
with freed_memory_kept() as kept:
    within = freed()
print(bool(kept), within - before > 190e6, freed() - before < 10e6)
"""


def trial(**environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name not in allocation._OF_THE_USER}
    done = subprocess.run([sys.executable, "-c", TRIAL], env=clean | environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@glibc
def test_freed_memory_is_kept_and_then_given_back():
    assert trial() == ["True", "True", "True"]


def test_what_lies_free_is_given_back_where_it_is_much(monkeypatch):
    """Steps from a clean heap tell what is needed; half as much again is kept, no more."""
    trims = []

    class Glibc:
        def malloc_trim(self, padding):
            trims.append(step)

    held = iter([100, 120, 149, 151, 110, 130, 166, 90, 135])
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
