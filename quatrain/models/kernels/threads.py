"""The threads that help with a native step: asleep while there is none, spinning for a moment after one.

A thread that comes late, or not at all (after a fork), costs nothing but its help: `decode_step` gives its share to
the others. So nothing here waits for a thread to start.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

SPINS = 3000
"""Rounds, of about 40 ns each, that a thread waits for the next step before it sleeps: decoding chooses a token."""


class StepThreads:
    """The caller and `threads` - 1 helpers; one step runs at a time."""

    def __init__(self, threads: int):
        self.threads = threads
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Starts anew, without threads, as a process does that was forked."""
        self._lock = threading.Lock()
        self._control: torch.Tensor | None = None
        self.retired: deque[Any] = deque(maxlen=1024)
        """The tables of decoders that are gone: a helper that was interrupted in an old step may still look at them,
        before it finds that there is nothing to do."""
        self._helpers: list[_Helper] = []

    def _start(self, code: Any) -> None:
        self._control = torch.zeros(code.C_PHASES + code.MAX_PHASES * code.PHASE_SPACING, dtype=torch.int64)
        self._helpers = [_Helper(code, self._control, number) for number in range(1, self.threads)]

    def run(self, code: Any, table: int, layers: int) -> None:
        """Runs the step whose table is at an address to its end."""
        with self._lock:
            if self._control is None:
                self._start(code)
            self._run(code, table, layers)

    def _run(self, code: Any, table: int, layers: int) -> None:
        control: Any = self._control
        step = code.start_step(control.data_ptr(), table, layers)
        for helper in self._helpers:
            helper.wake()
        code.take_part(control.data_ptr(), step, 0)


class _Helper:
    """One thread. `asleep` is set before it waits for `signal`, so that a step that comes in between wakes it."""

    def __init__(self, code: Any, control: torch.Tensor, number: int):
        self.code, self.control, self.number = code, control, number
        self.asleep, self.seen = False, 0
        self.signal = threading.Semaphore(0)
        threading.Thread(target=self._work, name=f"quatrain-step-{number}", daemon=True).start()

    def wake(self) -> None:
        """Lets it run if it is asleep."""
        if self.asleep:
            self.asleep = False
            self.signal.release()

    def _work(self) -> None:
        code, control = self.code, self.control.data_ptr()
        while True:
            step = code.await_step(control, self.seen, SPINS)
            if step == self.seen:
                self.asleep = True
                if code.await_step(control, self.seen, 1) == self.seen:
                    self.signal.acquire()
                self.asleep = False
                continue
            code.take_part(control, step, self.number)
            self.seen = step


@contextlib.contextmanager
def one_torch_thread(active: bool = True) -> Iterator[None]:
    """PyTorch works with one thread within this block, if `active`.

    After a parallel loop the threads of OpenMP spin for some milliseconds, on the cores that the helpers of the next
    native step need: choosing a token with two threads made a step of 3 ms take 5.
    """
    threads = torch.get_num_threads()
    if not active or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def step_threads() -> StepThreads:
    """The threads of this process: as many as PyTorch uses."""
    return StepThreads(torch.get_num_threads())
