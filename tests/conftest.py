"""What all tests share: no network, one thread, seeded generators, and the real data where it is."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import no_network
import pytest

from quatrain.models.kernels import code_cache

# Before torch or tokenizers are imported: tests run side by side, a thread for each worker is what there is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["QUATRAIN_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if not os.environ.get("QUATRAIN_CACHE"):
    # Not the cache of whoever runs the tests.
    os.environ["QUATRAIN_CACHE"] = tempfile.mkdtemp(prefix="quatrain-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["QUATRAIN_CACHE"], ignore_errors=True)
if os.environ.get("QUATRAIN_DATA"):
    os.environ["QUATRAIN_DATA"] = str(Path(os.environ["QUATRAIN_DATA"]).resolve())


no_network.block()

# Small models decode in PyTorch, whatever an earlier test has compiled: as fast and with the same bits every time.
code_cache.is_compiled = lambda: False

LONGEST = (
    "test_families.py", "test_benchmarks.py", "test_shipped_recipes.py", "test_labs.py", "test_inspection.py",
    "test_random_configs.py", "test_running.py", "test_page.py", "test_fuzz.py", "test_killed.py", "test_readme.py",
    "test_parallel.py", "test_scheduler.py", "test_families_speak.py", "test_bad_input.py", "test_together.py",
    "test_trainer.py", "test_resume.py", "test_commands.py", "test_docs.py", "test_security.py", "test_streams.py",
)  # fmt: skip
"""Files of fifteen seconds to two minutes, about in this order."""


@pytest.fixture(autouse=True)
def _same_process_for_every_test() -> Iterator[None]:
    """A test that changes the folder or the environment leaves them as it found them."""
    folder, environment = os.getcwd(), dict(os.environ)
    yield
    os.chdir(folder)
    for key in os.environ.keys() - environment.keys():
        del os.environ[key]
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def _no_other_host() -> Iterator[None]:
    """A test that tries to reach another host fails, even if the code takes it for a machine without network."""
    no_network.ATTEMPTS.clear()
    yield
    assert not no_network.ATTEMPTS, f"tests reach no other host, and this one tried {no_network.ATTEMPTS}"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes by their length: compressed ones hold the time, and every worker must call a test the same."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """A million objects that the collection imports are no garbage: nothing searches them, now or during the tests.

    `gc.collect()` and Python's own searches then see what tests make. A search of everything took a second, and one
    follows each model that a server unloads.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m` picks by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the later cases of each family of models as slow: one of each is enough for the quick set of tests.

    Side by side, the longest files come first, so that no worker ends with one of them alone.
    Skip what needs a CUDA device where there is none; torch is loaded only if there is such a test.
    """
    if battery := sys.modules.get("battery"):
        for item in items:
            case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
            if isinstance(case, battery.Case) and case.name not in battery.quick_cases():
                item.add_marker(pytest.mark.slow)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
