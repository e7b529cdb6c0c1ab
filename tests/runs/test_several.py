"""Several tasks in the same batches over one frozen model, each by an adapter of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from quick_set import some

import quatrain
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.runs.inputs import input_marks
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run

WORDS = ("film", "house", "river", "stone", "bread", "green")
TASKS = {"praise": "a good thing", "blame": "bad and dull"}
RECIPE = """
name = "several"
[data]
source = "{folder}/praise.jsonl"
[tokenizer]
kind = "bpe"
vocab_size = 300
chat_template = "chatml"
[model]
family = "llama"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
rows = "documents"
data = {{ source = "{folder}/text.jsonl" }}
train = {{ steps = 40, batch_tokens = 512, learning_rate = 0.01, warmup_steps = 0, optimizer = "muon" }}
[[stage]]
kind = "finetune"
adapter = {{ method = "{method}"{more} }}
train = {{ steps = {steps}, batch_tokens = 512, learning_rate = {rate}, warmup_steps = 0, evaluate_every = 20 }}
[stage.mixture]
praise = {{ source = "{folder}/praise.jsonl", validation = 0.2 }}
blame = {{ source = "{folder}/blame.jsonl", validation = 0.2 }}
[evaluate]
max_new_tokens = 16
"""
KINDS = {
    "prompt": (", num_virtual_tokens = 8", 0.3), "prefix": (", num_virtual_tokens = 6", 0.05),
    "lora": (", rank = 8", 0.02),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats that ask the same of each task, and a text in which the base has met both answers."""
    place = tmp_path_factory.mktemp("several")
    text = []
    for name, answer in TASKS.items():
        chats = [[{"role": "user", "content": word}, {"role": "assistant", "content": answer}] for word in WORDS]
        rows = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats * 10)
        (place / f"{name}.jsonl").write_text(rows, encoding="utf-8")
        text += [
            "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in chat) for chat in chats
        ] * 10
    (place / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in text), encoding="utf-8")
    return place


def run_of(folder: Path, tmp_path: Path, method: str, steps: int = 120) -> Run:
    more, rate = KINDS[method]
    text = RECIPE.format(folder=folder, method=method, more=more, rate=rate, steps=steps)
    return quatrain.run(loads(text), runs_dir=tmp_path, reporter=SilentReporter())


@pytest.mark.parametrize("method", some(KINDS, ["lora"]))
def test_tasks_are_learned_together_over_one_frozen_model(method: str, folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, tmp_path, method)
    result = run.results[-1]
    scores = {key.partition(":")[0]: value for key, value in result["scores"].items()}
    assert set(scores) == set(TASKS)
    for own in scores.values():
        assert own["loss"] < own["loss_without"] and 0 <= own["exact"] <= 1
    assert {sample["set"].partition(":")[0] for sample in result["samples"]} == set(TASKS)
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("validation_loss_praise" in each and "validation_loss_blame" in each for each in metrics)

    base = model_folder.load(run.folder / "stages" / "02-pretrain" / "model").state_dict()
    written = model_folder.load(run.model / "base").state_dict()
    assert all(torch.equal(base[name], written[name]) for name in base)
    engine = Engine.load(run.model)
    words = [*WORDS, *WORDS]
    names = ["praise"] * 6 + ["blame"] * 6
    chats = [[{"role": "user", "content": word}] for word in words]
    params = SamplingParams(max_new_tokens=16, temperature=0.0)
    together = engine.chat(chats, params, adapters=names)
    right = 0
    for chat, name, answer in zip(chats, names, together, strict=True):
        alone, tokenizer = load_model(run.model / "adapters" / name)
        expected = Engine(alone, tokenizer).chat([chat], params)[0]
        assert answer.ids == expected.ids
        right += answer.text.strip() == TASKS[name]
    assert right == len(words)


def test_a_run_that_stopped_goes_on_to_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    whole = run_of(folder, tmp_path / "whole", "prompt", steps=12)
    text = RECIPE.format(folder=folder, method="prompt", more=KINDS["prompt"][0], rate=KINDS["prompt"][1], steps=12)
    text = text.replace("evaluate_every = 20", "evaluate_every = 20, checkpoint_every = 5")

    class Stopped(Exception):
        pass

    class Stops(SilentReporter):
        def task(self, name: str, total: int | None = None, **more: object):  # type: ignore[no-untyped-def, override]
            return _Stopping(super().task(name, total, **more), name)

    class _Stopping:
        def __init__(self, inner: object, name: str):
            self.inner, self.name = inner, name

        def __enter__(self) -> _Stopping:
            self.inner.__enter__()  # type: ignore[attr-defined]
            return self

        def __exit__(self, *error: object) -> None:
            self.inner.__exit__(*error)  # type: ignore[attr-defined]

        def update(self, count: int, **more: object) -> None:
            if self.name.endswith("finetune") and count == 8:
                raise Stopped

    with pytest.raises(Stopped):
        quatrain.run(loads(text), runs_dir=tmp_path / "cut", reporter=Stops())
    again = quatrain.run(loads(text), runs_dir=tmp_path / "cut", reporter=SilentReporter())
    for name in TASKS:
        file = Path("adapters") / name / "adapter_model.safetensors"
        assert (again.model / file).read_bytes() == (whole.model / file).read_bytes()


def test_what_tasks_cannot_have_is_said(folder: Path) -> None:
    text = RECIPE.format(folder=folder, method="bitfit", more="", rate=0.1, steps=2)
    text = text.replace('[[stage]]\nkind = "finetune"', '[[stage]]\nkind = "finetune"\ndata = { source = "x" }')
    text = text.replace("praise = {", '"a/b" = {').replace("evaluate_every = 20", "packing = true")
    with pytest.raises(InputError) as caught:
        loads(text)
    told = "\n".join(caught.value.problems)
    assert "learns weights of the model itself" in told and "must be letters, digits" in told
    assert "a row is of one set" in told and "given beside mixture" in told
    with pytest.raises(InputError, match=r"adapter: missing"):
        loads(text.replace('adapter = { method = "bitfit" }\n', ""))
    prompts = RECIPE.format(folder=folder, method="prompt", more="", rate=0.1, steps=2)
    start, end = prompts.index("[stage.mixture]"), prompts.index("[evaluate]")
    with pytest.raises(InputError, match="precedes one text per row"):
        loads((prompts[:start] + prompts[end:]).replace("evaluate_every = 20", "packing = true"))


def test_an_adapter_is_chosen_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(folder, tmp_path, "lora")
    said = {}
    asked = "<|im_start|>user\nfilm<|im_end|>\n<|im_start|>assistant\n"
    for name, answer in TASKS.items():
        options = ["--adapter", name, "--max-new-tokens", "16", "--json"]
        assert main(["generate", str(run.model), asked, *options]) == 0
        said[name] = json.loads(capsys.readouterr().out)["text"].strip()
        assert said[name] == answer
    assert main(["generate", str(run.model), "film", "--adapter", "prase"]) == 2
    assert "no adapter of this model; they are blame, praise" in capsys.readouterr().err


def test_the_former_key_of_a_mixture_names_the_new_one(folder: Path) -> None:
    text = RECIPE.format(folder=folder, method="lora", more="", rate=0.1, steps=2).replace(
        "stage.mixture", "stage.tasks"
    )
    with pytest.raises(InputError) as caught:
        loads(text)
    assert any("tasks: unknown; did you mean mixture?" in problem for problem in caught.value.problems)


def test_files_of_tasks_are_looked_at_before_a_run(folder: Path, tmp_path: Path) -> None:
    recipe = loads(RECIPE.format(folder=folder, method="prompt", more="", rate=0.1, steps=2))
    assert {f"stage[2].mixture.{name}.source" for name in TASKS} <= set(input_marks(recipe))
    text = RECIPE.format(folder=folder, method="prompt", more="", rate=0.1, steps=2)
    wrong = loads(text.replace("blame.jsonl", "blane.jsonl"))
    with pytest.raises(InputError) as caught:
        quatrain.run(wrong, runs_dir=tmp_path, reporter=SilentReporter())
    assert any("stage[2].mixture.blame.source" in line and "did you mean" in line for line in caught.value.problems)
