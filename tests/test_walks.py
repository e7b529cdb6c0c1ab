"""The walks through the code in docs/architecture.md are as short as it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOLERANCE = 2
"""Files by which a trace may exceed the page, so that not each new helper has to change it."""


def test_the_traces_enter_as_few_files_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("walks", ROOT / "tools" / "walks.py")
    assert spec is not None and spec.loader is not None
    walks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walks)
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    written = [int(count) for count in re.findall(r"^\| from [^|]+ \| (\d+) \|$", page, re.MULTILINE)]
    found = walks.walks(tmp_path)
    for count, name in zip(written, ("training", "generation"), strict=True):
        files = sorted(found[name])
        message = f"{name}: {len(files)} files, docs/architecture.md says {count}: {', '.join(files)}"
        assert count - TOLERANCE <= len(files) <= count + TOLERANCE, message


def test_the_tables_list_few_files() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    training, generating = page.split("## Two walks")[1].split("From `quatrain generate MODEL PROMPT`")
    files = [set(re.findall(r"`([\w/]+\.py)`", "".join(re.findall(r"^\|.*$", part, re.MULTILINE))))
             for part in (training, generating.split("Inside `Model`")[0])]  # fmt: skip
    assert len(files[0]) <= 20 and len(files[1]) <= 17, [len(each) for each in files]
