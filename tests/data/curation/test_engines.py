"""Steps in other engines: a whole datatrove pipeline, and functions of rows that travel to other processes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.data.curation.engines import RowStep

TEXTS = ["one two three four five six", "short", "mail to someone@example.org about the six words"]


def test_datatrove_pipeline_runs_our_steps(tmp_path: Path) -> None:
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install datatrove")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from quatrain.data.curation.datatrove_steps import CurationStep

    (tmp_path / "in").mkdir()
    rows = [{"text": text, "id": str(number), "url": "x"} for number, text in enumerate(TEXTS)]
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pipeline = [
        JsonlReader(str(tmp_path / "in")),
        CurationStep("length", min_words=5),
        CurationStep("personal_data", kinds=["email"]),
        JsonlWriter(str(tmp_path / "out"), output_filename="${rank}.jsonl", compression=None),
    ]
    statistics = LocalPipelineExecutor(pipeline, logging_dir=str(tmp_path / "log"), skip_completed=False).run()
    written = [json.loads(line) for line in (tmp_path / "out" / "00000.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in written] == [TEXTS[0], TEXTS[2].replace("someone@example.org", "[EMAIL]")]
    assert written[1]["metadata"]["masked"] == 1 and written[0]["metadata"]["url"] == "x"
    assert statistics.stats[1].stats["dropped_words below 5"].total == 1


def test_rows_through_a_step_in_another_process() -> None:
    step = pickle.loads(pickle.dumps(RowStep("length", min_words=5)))
    assert [step({"text": text, "id": 7}) for text in TEXTS] == [
        [{"text": TEXTS[0], "id": 7}], [], [{"text": TEXTS[2], "id": 7}],
    ]  # fmt: skip


def test_what_prepares_is_prepared_once(tmp_path: Path) -> None:
    (tmp_path / "exam.txt").write_text("what is the name of the quiet river in the north\n", encoding="utf-8")
    settings = {"sets": [{"path": str(tmp_path / "exam.txt")}]}
    step = RowStep("decontaminate", folder=tmp_path / "work", **settings)
    (tmp_path / "exam.txt").unlink()
    again = RowStep("decontaminate", folder=tmp_path / "work", **settings)
    for each in (step, again):
        assert each({"text": "So: What is the name of the quiet river in the North?"}) == []


def test_steps_that_an_engine_cannot_run_are_refused() -> None:
    with pytest.raises(InputError, match="compares documents"):
        RowStep("near_duplicates")
    with pytest.raises(InputError, match="did you mean length"):
        RowStep("lenght")
    with pytest.raises(InputError, match="min_words: -1; must be at least 0"):
        RowStep("length", min_words=-1)
