"""The stages around the training of a project: scope, plan and serve, and the bill at the end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.progress import SilentReporter
from quatrain.planning import counts
from quatrain.runs.costs import stage_costs
from quatrain.runs.fingerprints import stage_marks
from quatrain.runs.recipe import load, loads
from quatrain.runs.runner import run

RECIPE = """
name = "small"
[data]
source = "{source}"
validation = 0.25
[tokenizer]
kind = "bpe"
vocab_size = 300
[model]
family = "llama"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 64
[[stage]]
kind = "scope"
gates = [{{ metric = "training_examples", at_least = 10 }}, {{ metric = "held_out_examples", at_least = 2 }}]
[[stage]]
kind = "plan"
gates = [{{ metric = "planned_parameters", at_most = 200_000 }}]
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
evaluate = false
data = {{ source = "{text}", validation = 0.2 }}
train = {{ steps = 1, batch_tokens = 128, warmup_steps = 0, schedule = "constant", precision = "float32" }}
[[stage]]
kind = "finetune"
train = {{ steps = 2, batch_tokens = 128, warmup_steps = 1, precision = "float32" }}
[[stage]]
kind = "export"
format = "F32"
gates = [{{ metric = "proved_share", at_least = 1.0 }}]
[[stage]]
kind = "serve"
prompts = ["ab", "b", "{long}"]
requests = 6
max_new_tokens = 4
gates = [{{ metric = "equal_share", at_least = 1.0 }}]
[evaluate]
examples = 4
max_new_tokens = 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in ("ab", "ba", "abba", "baab") * 8
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("say abba baab " * 60, encoding="utf-8")
    return RECIPE.format(source=path, text=text, long="ab ba " * 100)


@pytest.mark.slow
def test_a_project_passes_its_gates_and_gets_its_bill(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the server is an extra")
    done = run(loads(recipe), runs_dir=tmp_path, reporter=SilentReporter())
    scope, plan, _, _, _, exported, served = done.results
    assert scope["training_examples"] == 24 and scope["held_out_examples"] == 8
    assert plan["planned_parameters"] > 0 and plan["planned_flops"] > 0 and plan["planned_memory_bytes"] > 0
    assert served["equal_share"] == 1.0 and served["requests"] == 6
    assert served["notes"][0] == "1 questions are longer than the model's context and were not asked"
    (file,) = (done.folder / "stages/06-export/files").glob("*.gguf")
    assert exported["proved_share"] == 1.0 and exported["export_bytes"] >= file.stat().st_size > 0
    assert 0 < served["p50_seconds"] <= served["p95_seconds"]
    state = json.loads((done.folder / "run.json").read_text())
    assert len(state["gates"]) == 5 and all(gate["passed"] for gate in state["gates"])
    with pytest.raises(QuatrainError, match="planned_parameters"):
        run(loads(recipe.replace("200_000", "10")), runs_dir=tmp_path, reporter=SilentReporter())


def test_the_cost_of_the_stages_is_that_of_their_tokens(recipe: str) -> None:
    parsed = loads(recipe)
    _, cost = stage_costs(parsed)
    config = parsed.model.config(parsed.tokenizer.vocab_size)
    assert cost.name == "05-finetune" and cost.flops == 2 * 128 * counts.flops_per_token(config, 64)
    assert cost.memory > 0


@pytest.mark.parametrize(
    ("source", "kind", "steps"),
    [("{folder}/a.txt", "bpe", 100), ("{folder}/a.txt", "char", 400), ("{folder}", "bpe", 100 + 130),
     ("{folder}/a.txt + the-verdict", "bpe", 100 + 20_479 / 4_000), ("hf:someone/something", "bpe", 1000)],
)  # fmt: skip
def test_an_epoch_is_counted_by_the_sizes_of_files(source: str, kind: str, steps: float, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"word " * 80_000)
    (tmp_path / "b.jsonl.gz").write_bytes(b"x" * 200_000)
    parsed = load(
        "gpt-pretrain",
        [f"data.source={source.format(folder=tmp_path)}", f"tokenizer.kind={kind}", "tokenizer.vocab_size=500",
         "stage.pretrain.train.steps=none", "stage.pretrain.train.epochs=2", "stage.pretrain.train.batch_tokens=1000"],
    )  # fmt: skip
    (cost,) = stage_costs(parsed, memory=False)
    tokens = cost.flops / counts.training_flops_per_token(parsed.model.config(500), 256)
    assert tokens == pytest.approx(2 * steps * 1000, rel=1e-3)


def test_a_plan_depends_on_all_stages_and_no_stage_on_the_plan(recipe: str) -> None:
    """Longer training is another plan; another plan is no other training."""
    marks = [
        stage_marks(loads(text), {})
        for text in (
            recipe,
            recipe.replace("steps = 2,", "steps = 3,"),
            recipe.replace('"plan"', '"plan"\nutilization = 0.5'),
        )
    ]
    base, longer, other = ([mark.fingerprint for mark in each] for each in marks)
    assert [a == b for a, b in zip(base, longer, strict=True)] == [True, False, True, True, False, False, False]
    assert [a == b for a, b in zip(base, other, strict=True)] == [True, False, True, True, True, True, True]


def test_a_server_without_questions(recipe: str, tmp_path: Path) -> None:
    from quatrain.runs.contexts import stage_context
    from quatrain.runs.stages._serve import asked

    without = re.sub(r"prompts = \[.*\]\n", "", recipe)
    assert without != recipe
    parsed = loads(without)
    for name in ("01-scope", "02-plan", "03-tokenizer", "04-pretrain", "05-finetune", "06-export"):
        (tmp_path / "stages" / name).mkdir(parents=True)
        (tmp_path / "stages" / name / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"neither questions held out nor evaluate\.prompts"):
        asked(parsed.stage[6], stage_context(parsed, tmp_path, 6, SilentReporter()))


@pytest.mark.slow
def test_the_shipped_project_runs_at_tiny_size(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the server is an extra")
    tiny = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2", "data.examples=200",
            "model.intermediate_size=32", "evaluate.examples=2",
            "stage.pretrain.train.steps=2", "stage.pretrain.train.warmup_steps=0", "stage.finetune.train.steps=2",
            "stage.finetune.train.warmup_steps=0", "stage.dpo.prompts=4", "stage.dpo.samples=2",
            "stage.dpo.train.steps=2", "stage.dpo.train.warmup_steps=0", "stage.serve.requests=2",
            "stage.serve.max_new_tokens=2", "stage.prompting.decoding.max_new_tokens=2"]  # fmt: skip
    kinds = [stage.kind for stage in load("project").stage]
    done = run(
        load("project", [*tiny, *(f"stage.{kind}.gates=[]" for kind in kinds)]), runs_dir=tmp_path,
        reporter=SilentReporter(),
    )  # fmt: skip
    assert [result["kind"] for result in done.results] == kinds
    assert done.results[-1]["equal_share"] == 1.0 and done.results[1]["planned_flops"] > 0


def test_every_step_of_the_shipped_project_has_a_gate() -> None:
    stages = load("project").stage
    assert [stage.kind for stage in stages if not stage.gates] == ["tokenizer"]
