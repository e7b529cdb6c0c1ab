"""The recipes of prompting, with tiny models of random weights: tables, kept prompts, reports, endpoints."""

from __future__ import annotations

import json
import os
import typing
from pathlib import Path

import pytest
from tiny_models import make_folder

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.runs.folder import Run
from quatrain.runs.inputs import check_inputs
from quatrain.runs.recipe import load
from quatrain.runs.stages.prompting import Selection
from quatrain.tasks.prompting import prompt as prompts
from quatrain.tasks.prompting.prompt import load_prompt

needs_data = pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")

TINY = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
        "model.intermediate_size=32", "evaluate.max_new_tokens=4", "evaluate.examples=6"]  # fmt: skip
SHORT = ["stage.pretrain.train.steps=2", "stage.pretrain.train.batch_tokens=512", "stage.pretrain.train.warmup_steps=1",
         "stage.pretrain.train.evaluate_every=2", "tokenizer.vocab_size=512", "stage.tokenizer.data.source=the-verdict",
         "stage.pretrain.data.source=the-verdict", "stage.finetune.data.source=instructions",
         "stage.finetune.train.epochs=none", "stage.finetune.train.steps=2", "stage.finetune.train.warmup_steps=1",
         "stage.finetune.train.batch_tokens=512"]  # fmt: skip


def run(name: str, place: Path, *overrides: str) -> Run:
    return quatrain.run(load(name, overrides), runs_dir=place, reporter=SilentReporter())


def test_the_stage_knows_every_selection() -> None:
    assert typing.get_args(Selection) == typing.get_args(prompts.Selection)


def test_what_a_stage_must_have() -> None:
    with pytest.raises(InputError, match="has neither prompts nor search"):
        load("dialogue-prompting", ["stage.prompting.prompts=[]", "stage.prompting.decodings=[]"])
    with pytest.raises(InputError, match="needs a model"):
        load("dialogue-prompting", ["model.folder=none"])
    with pytest.raises(InputError, match=r"selection.*must be one of"):
        load("dialogue-prompting", ['stage.prompting.prompts.0.selection="near"'])
    own = load("dialogue-prompting", ["stage.prompting.templates=none.toml", "stage.prompting.embedder=nowhere"])
    with pytest.raises(InputError) as told:
        check_inputs(own)
    assert [problem.split(":")[0] for problem in told.value.problems] == [
        "model.folder", "stage[0].embedder", "stage[0].templates",
    ]  # fmt: skip
    recipe = load("dialogue-prompting", ["model.folder=none", "model.endpoint=http://localhost:1/v1#a"])
    assert recipe.model.endpoint is not None


@needs_data
@pytest.mark.slow
def test_dialogue_prompting_on_a_folder_and_on_an_endpoint(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("rouge_score")
    folder = make_folder(tmp_path / "tiny", context=2400)
    small = [
        *("evaluate.examples=3", "stage.prompting.decoding.max_new_tokens=4", "name=prompted"),
        "data.source=dialogsum-dev",
        'stage.prompting.prompts=[{ template = "none" }, { template = "flan-1", shots = 1, selection = "bm25" }]',
        "stage.prompting.decodings=[{ max_new_tokens = 2 }, { max_new_tokens = 4, temperature = 1.0 }]",
    ]
    done = run("dialogue-prompting", tmp_path / "runs", f"model.folder={folder}", *small)
    (result,) = done.results
    first, second = result["comparisons"]
    assert [each["template"] for each in first["results"]] == ["none", "flan-1"]
    assert [each["decoding"]["max_new_tokens"] for each in second["results"]] == [2, 4]
    lead = first["baseline"]
    assert lead["name"].startswith("the first three turns") and 0 < lead["rouge2"] < lead["rougeL"] < lead["rouge1"]
    (row, *_) = result["side_by_side"]
    assert len(row["answers"]) == 4 and len(row["references"]) == 3, "three people summed up each dialogue"
    kept = sorted((done.folder / "stages" / "01-prompting" / "prompts").glob("*.toml"))
    files = [load_prompt(path) for path in kept]
    assert len(files) == 4 and all(file.score[0].model == str(folder) for file in files)
    report = done.report.read_text(encoding="utf-8")
    assert "Side by side with what is expected" in report and "flan-1, 1 shot bm25" in report
    assert "expected, 3 of 3" in report
    again = run("dialogue-prompting", tmp_path / "runs", f"model.folder={folder}", *small)
    assert again.results == done.results

    from serving_setup import running

    with running([str(folder)]) as server:
        own = ["model.folder=none", f"model.endpoint={server.address}/v1#tiny", "name=remote"]
        remote = run("dialogue-prompting", tmp_path / "runs", *small, *own)
    shown, expected = remote.results[0]["side_by_side"], result["side_by_side"]
    assert [each["output"] for each in shown[0]["answers"][:2]] == [
        each["output"] for each in expected[0]["answers"][:2]
    ]


@needs_data
@pytest.mark.slow
def test_soft_hard_has_all_ways_in_one_table(tmp_path: Path) -> None:
    methods = [f"stage.adapters.methods.{name}.train.{key}" for name in ("soft-prompt", "lora")
               for key in ("steps=2", "warmup_steps=1", "batch_tokens=512", "evaluate_every=2")]  # fmt: skip
    search = ["stage.prompting.search.shots=[0, 2]", 'stage.prompting.search.templates=["plain", "it-was"]',
              "stage.prompting.search.examples=4", 'stage.prompting.search.selections=["balanced"]']  # fmt: skip
    done = run("soft-hard", tmp_path, *TINY, *SHORT, *methods, *search)
    prompting, adapters = done.results[-2:]
    titles = [table["title"] for table in prompting["comparisons"]]
    assert titles == ["prompts on test", "search on development", "best of the search on test"]
    assert len(prompting["comparisons"][1]["results"]) == 4
    (table,) = adapters["comparisons"]
    ways = [row[0] for row in table["rows"]]
    assert ways[0].startswith("baseline: ") and ways[-2:] == ["soft-prompt", "lora"] and len(ways) == 5
    assert ways[2].startswith("best prompt found: ")
    soft, lora = (int(row[1].replace(",", "")) for row in table["rows"][-2:])
    assert soft == 20 * 16 and lora > 0
    assert all(float(row[-1]) >= 0 for row in table["rows"][-2:])
    assert json.loads((done.folder / "stages/05-adapters/lora/result.json").read_text())["seconds"] > 0
    assert {key for key in adapters["scores"]} == {"test, soft-prompt", "test, lora"}
    assert (done.folder / "stages" / "05-adapters" / "lora" / "adapter" / "adapter_config.json").is_file()
    base = quatrain.load(done.model)
    assert base.config.hidden_size == 16, "the model is the one before the adapters"
    report = done.report.read_text(encoding="utf-8")
    assert "one task, several ways" in report and "This run is not finished" not in report
    curves = [json.loads(line)["stage"] for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"05-adapters-lora", "05-adapters-soft-prompt"} <= set(curves)
