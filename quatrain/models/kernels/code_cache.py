"""The compiled code of native decoding on disk: whether an earlier process has left it.

Numba compiles the step of `decode_step` for the processor, which takes half a minute of processor time, and keeps the
code in its cache: `__pycache__` beside the file, or NUMBA_CACHE_DIR. From there it loads in a fraction of a second.
`python -c "import quatrain.models.kernels.decode_step"` compiles it ahead of time, as `make run` does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_STEP = "decode_step"
_LARGEST = "take_part"
"""The function that takes nearly all of the time; it is compiled first."""
OLDEST_NUMBA = (0, 66)
"""Its LLVM is the first that compiles the step: that of 0.62 to 0.65 rejects it, that of 0.61 ends the process."""


@cache
def numba_problem() -> str | None:
    """Why Numba cannot compile the step, found without importing it; None if it can."""
    oldest = ".".join(map(str, OLDEST_NUMBA))
    if importlib.util.find_spec("numba") is None:
        return f"Numba is not installed (pip install 'quatrain[fast]'); native code needs {oldest} or later"
    version = importlib.metadata.version("numba")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_NUMBA:
        return f"native code needs Numba {oldest} or later; installed is {version} (pip install -U 'quatrain[fast]')"
    return None


def fingerprint() -> str:
    """What the compiled code depends on beside Numba: its source, and the instructions that the processor has. It is
    part of the functions' names, so that Numba's cache is not used for another source or processor.
    """
    from quatrain.models.kernels import vectors

    digest = hashlib.blake2b(digest_size=8)
    for name in (f"{_STEP}.py", "vectors.py", "code_cache.py"):
        digest.update((_FOLDER / name).read_bytes())
    digest.update(repr((vectors.HAS_VNNI, vectors.HAS_BFLOAT16)).encode())
    return digest.hexdigest()


def is_compiled() -> bool:
    """Whether native decoding can start without compiling. Imports Numba only if some compiled code exists."""
    if f"{__package__}.{_STEP}" in sys.modules:
        return True
    if numba_problem() is not None:
        return False
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    places = sorted(Path(chosen).glob("*")) if chosen else [_FOLDER / "__pycache__"]
    names = {path.name for place in places for path in place.glob(f"{_STEP}.{_LARGEST}_*.nbi")}
    if not names:
        return False
    wanted = f"{_STEP}.{_LARGEST}_{fingerprint()}-"
    return any(name.startswith(wanted) for name in names)
