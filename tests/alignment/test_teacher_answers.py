"""Sequence-level distillation: the teacher's texts replace the answers, whatever its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import CHARACTERS, make_folder

from quatrain.alignment import teacher_answers
from quatrain.alignment.teacher_answers import answered
from quatrain.core.progress import SilentReporter
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.runs.recipe import loads
from quatrain.runs.runner import run

PARAMS = SamplingParams(max_new_tokens=5)
CHATS = [[{"role": "user", "content": f"Say {number}."}] for number in range(3)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("teacher") / "model", context=256, seed=3)


def test_answers_are_the_engines_and_are_kept(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "stage" / "answers.jsonl"
    found = answered(str(teacher), CHATS, store, params=PARAMS)
    assert found == [each.text for each in Engine.load(teacher).chat(CHATS, PARAMS)]
    lines = store.read_text().splitlines()
    store.write_text("\n".join(lines[:2]) + '\n{"key": "half')
    asked = []
    real = teacher_answers.open_model

    def counted(name: str):  # type: ignore[no-untyped-def]
        asked.append(name)
        return real(name)

    monkeypatch.setattr(teacher_answers, "open_model", counted)
    with store.open("a") as file:
        file.write("\n")
    assert answered(str(teacher), CHATS, store, params=PARAMS) == found and len(asked) == 1
    assert answered(str(teacher), CHATS, store, params=PARAMS) == found and len(asked) == 1


def test_a_student_of_another_tokenizer_learns_them(teacher: Path, tmp_path: Path) -> None:
    student = make_folder(tmp_path / "student", context=256, characters=CHARACTERS + "üöä")
    rows = [{"messages": [*chat, {"role": "assistant", "content": "the old answer"}]} for chat in CHATS]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = loads(f"""
name = "taught"
[data]
source = "{tmp_path / "chats.jsonl"}"
validation = 0.0
[model]
folder = "{student}"
[[stage]]
kind = "finetune"
teacher = {{ model = "{teacher}", max_new_tokens = 5 }}
train = {{ steps = 2, batch_tokens = 256, warmup_steps = 1 }}
[evaluate]
max_new_tokens = 4
""")
    folder = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder
    stored = (folder / "stages/01-finetune/teacher-answers.jsonl").read_text().splitlines()
    assert len(stored) == 3 and json.loads((folder / "stages/01-finetune/result.json").read_text())["steps"] == 2
