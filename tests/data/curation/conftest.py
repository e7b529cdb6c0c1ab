"""What the tests of curation share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quatrain.core.progress import create_reporter
from quatrain.data.curation.runner import CurationResult, curate, read_shards
from quatrain.data.curation.settings import CurationRecipe


@pytest.fixture
def curated(tmp_path: Path) -> Callable[..., tuple[CurationResult, list[dict[str, Any]]]]:
    """Curates texts or rows by steps; returns the result and the rows of the training split."""
    runs = 0

    def run(
        rows: Sequence[str | Mapping[str, Any]], *steps: Mapping[str, Any], **settings: Any
    ) -> tuple[CurationResult, list[dict[str, Any]]]:
        nonlocal runs
        runs += 1
        path = tmp_path / f"rows{runs}.jsonl"
        lines = [json.dumps({"text": row} if isinstance(row, str) else row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        raw = {"unit_megabytes": 0.02, "source": [{"path": str(path)}], "step": list(steps), **settings}
        result = curate(
            CurationRecipe.model_validate(raw), tmp_path / f"out{runs}", reporter=create_reporter(quiet=True)
        )
        return result, list(read_shards(result.folder))

    return run
