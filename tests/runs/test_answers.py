"""A chat stage holds chats out, measures its answers on them, and asks the recipe's prompts in turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quatrain
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run
from quatrain.tasks.instructions import encode_chats
from quatrain.tokenizers.tokenizer import Tokenizer

TINY = (Path(__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
ROAD = """
[[stage]]
kind = "pretrain"
train = { steps = 4, batch_tokens = 192, warmup_steps = 1 }
[[stage]]
kind = "finetune"
data = { source = '{chats}', validation = 0.2 }
train = { epochs = 2, batch_tokens = 192, warmup_steps = 1, evaluate_every = 2, sample_every = 3, keep = "best" }
[[stage]]
kind = "evaluate"
data = { source = '{chats}', test = '{chats}' }
"""


@pytest.fixture(scope="module")
def done(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    text, chats = str(materials / "text.txt"), str(materials / "chats.jsonl")
    recipe = loads((TINY + ROAD).replace("{text}", text).replace("{chats}", chats))
    return quatrain.run(recipe, runs_dir=tmp_path_factory.mktemp("runs"), reporter=SilentReporter())


def test_a_share_of_the_chats_is_held_out(done: Run) -> None:
    found = done.results[2]
    assert any(note.startswith("32 chats") for note in found["notes"])
    assert found["validation_loss"] > 0
    scores = found["scores"]["held out"]
    assert list(scores) == ["loss", "perplexity", "count", "exact"] and scores["count"] == 3  # evaluate.examples
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line["stage"] == "03-finetune"]
    assert sum("validation_loss" in line for line in mine) >= 2
    assert any(line.get("samples") for line in mine)


def test_prompts_are_asked_in_turns_beside_held_out_chats(done: Run) -> None:
    samples = done.results[2]["samples"]
    assert [each["set"] for each in samples] == ["held out"] * 3 + ["temperature 0.0", "temperature 1.0"]
    assert all(each["prompt"].startswith("say ") and each["reference"] for each in samples[:3])
    assert samples[3]["prompt"] == "the cat" and "reference" not in samples[3]
    assert done.results[1]["samples"][0]["prompt"] == "the cat"  # a text that goes on, before there are turns


def test_an_evaluate_stage_measures_a_set_of_its_own(done: Run) -> None:
    ((name, scores),) = done.results[3]["scores"].items()
    assert name.endswith("chats.jsonl") and scores["count"] == 3


def test_evaluate_measures_answers_of_chats(done: Run, materials: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(done.model), str(materials / "chats.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "chat" and found["chats"] == 40 and found["loss"] > 0
    assert main(["evaluate", str(done.model), str(materials / "text.txt")]) == 0
    assert "bits per character" in capsys.readouterr().out


def test_a_chat_that_the_template_refuses_is_named_with_its_place() -> None:
    template = "{% generation %}{{ raise_exception('never') if messages[0].content == 'b' }}{% endgeneration %}"
    tokenizer = Tokenizer.train(["abc"], vocab_size=300, chat_template=template)
    chats = [(f"a.jsonl:{n}", [{"role": "user", "content": text}]) for n, text in enumerate("aab", 1)]
    with pytest.raises(InputError, match=r"a\.jsonl:3: the chat template refuses this conversation: never"):
        encode_chats(chats, tokenizer, 100)


def test_chats_that_are_left_out_are_said_with_their_number(done: Run, tmp_path: Path) -> None:
    said = [{"role": "assistant", "content": "cat"}]
    short = [[{"role": "user", "content": "say cat"}, *said]] * 6
    long = [[{"role": "user", "content": "the cat sat " * 200}, *said]] * 3
    silent = [[{"role": "user", "content": "say"}, {**said[0], "weight": 0}]]
    for name, rows in (("a", short + long + silent), ("b", short[:2] + long[:1])):
        rows_of = (json.dumps({"messages": messages}) + "\n" for messages in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows_of), encoding="utf-8")
    text = (
        f"name = 'left'\n[data]\nsource = '{tmp_path / 'a.jsonl'}'\ndev = '{tmp_path / 'b.jsonl'}'\n[model]\n"
        f"folder = '{done.model}'\n[[stage]]\nkind = 'finetune'\n"
        "train = { steps = 2, batch_tokens = 192, warmup_steps = 1 }\n"
    )

    class Heard(SilentReporter):
        lines: list[str] = []

        def warn(self, text: str) -> None:
            self.lines.append(text)

    run = quatrain.run(loads(text), runs_dir=tmp_path, reporter=Heard())
    expected = [("3 of 10 chats are longer than", "a.jsonl:7"), ("1 of 10 chats have no token", "a.jsonl:10"),
                ("validations: 1 of 3 chats are longer than", "b.jsonl:3")]  # fmt: skip
    for lines in (Heard.lines, run.results[-1]["notes"]):
        left = [line for line in lines if "left out" in line]
        for line, (words, place) in zip(left, expected, strict=False):
            assert words in line and place in line
        assert len(left) >= 3


def test_a_model_without_turns_is_given_a_template(done: Run, materials: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in done.model.iterdir():
        if file.name not in ("chat_template.jinja", "recipe.toml"):
            (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    stage = "[[stage]]\nkind = 'finetune'\ntrain = { steps = 2, batch_tokens = 192, warmup_steps = 1 }\n"
    text = f"name = 'over'\n[data]\nsource = '{materials / 'chats.jsonl'}'\n[model]\nfolder = '{base}'\n"
    # The tokens of chatml are there; without them it would be plain.
    over = quatrain.run(loads(text + stage), runs_dir=tmp_path, reporter=SilentReporter())
    assert "<|im_start|>" in str(Tokenizer.load(over.model).chat_template)
    named = text.replace("[data]", "[tokenizer]\nchat_template = 'llama-3'\n[data]").replace("'over'", "'named'")
    other = Tokenizer.load(quatrain.run(loads(named + stage), runs_dir=tmp_path, reporter=SilentReporter()).model)
    assert "<|eot_id|>" in str(other.chat_template) and other.token_to_id("<|eot_id|>") is not None
    wrong = named.replace("llama-3", "{{ messages[0]['content'] }}").replace("'named'", "'wrong'").replace("'{{", '"{{')
    with pytest.raises(InputError, match="does not mark what the assistant says"):
        quatrain.run(loads(wrong.replace("}}'", '}}"') + stage), runs_dir=tmp_path, reporter=SilentReporter())
