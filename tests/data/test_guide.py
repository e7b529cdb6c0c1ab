"""The code of docs/text.md runs as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "text.md"
DATA = os.environ.get("QUATRAIN_DATA")


@pytest.mark.skipif(not DATA or not Path(DATA).is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATRAIN_DATA", str(Path(DATA or "").resolve()))
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
