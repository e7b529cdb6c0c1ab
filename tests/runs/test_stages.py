"""Each kind of stage through `quatrain.run`: what it writes, what the next one finds, what it says of itself."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import PlainReporter, SilentReporter, read_metrics
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run
from quatrain.tokenizers.tokenizer import Tokenizer

HEAD = (Path(__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
TRAIN = "train = {{ {size}, batch_tokens = 192, learning_rate = 3e-3, warmup_steps = 2, log_every = 1{more} }}\n"


def stage(kind: str, size: str = "", more: str = "", **keys: str) -> str:
    lines = [f'[[stage]]\nkind = "{kind}"', *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n" + (TRAIN.format(size=size, more=more) if size else "")


def go(head: str, *stages: str, folder: Path, reporter: Any = None) -> Run:
    return quatrain.run(loads(head + "".join(stages)), runs_dir=folder, reporter=reporter or SilentReporter())


@pytest.fixture(scope="module")
def road(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All kinds of stages on files of the user's: text, then chats, then preferences."""
    lora = '{ method = "lora", rank = 2, alpha = 4, dropout = 0.1 }'
    return go(
        HEAD.format(text=materials / "text.txt"),
        stage("pretrain", "steps = 12", ", evaluate_every = 6"),
        stage("finetune", "epochs = 2", adapter=lora, data=f"{{ source = '{materials / 'chats.jsonl'}' }}"),
        stage("dpo", "epochs = 1", data=f"{{ preferences = '{materials / 'pairs.jsonl'}' }}"),
        stage("quantize"),
        stage("evaluate"),
        folder=tmp_path_factory.mktemp("runs"),
    )


def result(run: Run, name: str) -> dict[str, Any]:
    return next(each for each in run.results if each["name"] == name)


def test_every_stage_has_its_result_and_leaves_no_checkpoint(road: Run) -> None:
    names = ["01-tokenizer", "02-pretrain", "03-finetune", "04-dpo", "05-quantize", "06-evaluate"]
    assert [each["name"] for each in road.results] == names
    for name in names:
        folder = road.folder / "stages" / name
        assert json.loads((folder / "result.json").read_text())["finished"] is True
        assert not (folder / "checkpoints").exists()
        assert (folder / "model").is_dir() == (name not in ("01-tokenizer", "06-evaluate"))
    assert (road.folder / "report.html").is_file()


def test_the_tokenizer_is_that_of_the_recipe_and_of_every_model(road: Run) -> None:
    tokenizer = Tokenizer.load(road.folder / "stages/01-tokenizer/tokenizer")
    assert tokenizer.vocab_size == 300 and tokenizer.chat_template
    assert "300 bpe tokens learned from" in result(road, "01-tokenizer")["notes"][0]
    for name in ("02-pretrain", "03-finetune", "04-dpo", "05-quantize"):
        other = Tokenizer.load(road.folder / "stages" / name / "model")
        assert other.fingerprint == tokenizer.fingerprint and other.max_length == 48


def test_what_training_says_of_itself(road: Run) -> None:
    found = result(road, "02-pretrain")
    assert found["steps"] == 12 and found["tokens"] == 12 * 192
    assert found["validation_loss"] < 6 and found["perplexity"] == pytest.approx(
        2.71828 ** found["validation_loss"], 1e-3
    )
    assert (
        found["parameters"]
        == found["trainable_parameters"]
        == load_model(road.folder / "stages/02-pretrain/model")[0].num_parameters()
    )
    lines = [line for line in read_metrics(road.folder / "metrics.jsonl") if line["stage"] == "02-pretrain"]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_loss" in line] == [6, 12]
    # Measured again after the last step, with the weights as they are written.
    assert lines[-1]["validation_loss"] == pytest.approx(found["validation_loss"], rel=1e-4)
    assert {sample["set"] for sample in found["samples"]} == {"temperature 0.0", "temperature 1.0"}


def test_finetuning_trains_the_adapter_alone_and_merges_it(road: Run) -> None:
    found = result(road, "03-finetune")
    assert 0 < found["trainable_parameters"] < found["parameters"]
    assert any("36 chats" in note and "of them learned" in note for note in found["notes"])
    before = model_folder.load(road.folder / "stages/02-pretrain/model").state_dict()
    after = model_folder.load(road.folder / "stages/03-finetune/model").state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("_proj" in name for name in changed)
    special = Tokenizer.load(road.model).special_ids
    for name in (name for name in changed if "_proj" not in name):
        # The turns' own tokens mean nothing before they are taught; no other row of the embedding moves.
        assert name in ("embed_tokens.weight", "lm_head.weight")
        assert set((before[name] != after[name]).any(dim=1).nonzero().flatten().tolist()) <= special
    merged = load_model(road.folder / "stages/03-finetune/adapter")[0]
    ids = torch.arange(20)[None]
    expected = load_model(road.folder / "stages/03-finetune/model")[0](ids)[0]
    torch.testing.assert_close(merged(ids)[0], expected, rtol=1e-4, atol=1e-5)


def test_preferences_move_the_model_and_are_read_as_they_are_written(road: Run) -> None:
    found = result(road, "04-dpo")
    assert any("40 pairs from" in note and "of them held out" in note for note in found["notes"])
    lines = [line for line in read_metrics(road.folder / "metrics.jsonl") if line["stage"] == "04-dpo"]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < 0.693
    assert set(found["scores"]["held-out preferences"]) >= {"accuracy", "likelihood_accuracy", "margin", "count"}
    assert found["baselines"]["held-out preferences"]["name"] == "the shorter answer wins"
    assert set(found["preference_baselines"]) == {
        "the shorter answer wins", "the reference's likelihood", "the reference's likelihood per token",
    }  # fmt: skip


def test_the_quantized_model_is_smaller_and_is_the_runs_model(road: Run) -> None:
    assert result(road, "05-quantize")["model_bytes"] < result(road, "04-dpo")["model_bytes"]
    assert result(road, "05-quantize")["trainable_parameters"] == 0
    # Those in few bits count too.
    assert result(road, "06-evaluate")["parameters"] == result(road, "05-quantize")["parameters"]
    config = json.loads((road.folder / "model" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    outputs = [
        [sample["output"] for sample in result(road, name)["samples"] if sample.get("temperature") == 0.0]
        for name in ("05-quantize", "06-evaluate")
    ]
    assert outputs[0] == outputs[1] and outputs[0]


def test_a_model_folder_is_a_beginning(road: Run, materials: Path, tmp_path: Path) -> None:
    base = road.folder / "stages/02-pretrain/model"
    head = HEAD.format(text=materials / "text.txt").replace('[[stage]]\nkind = "tokenizer"\n', "")
    shape, rest = head.split("[model]\n")[1].split("[evaluate]")
    head = head.replace(shape, f"folder = '{base}'\n")
    assert rest in head
    done = go(head, stage("evaluate"), stage("pretrain", "steps = 2", context="8"), folder=tmp_path)
    assert [each["name"] for each in done.results] == ["01-evaluate", "02-pretrain"]
    assert result(done, "02-pretrain")["tokens"] == 2 * 192
    assert Tokenizer.load(done.folder / "model").fingerprint == Tokenizer.load(base).fingerprint


@pytest.mark.parametrize("rows", ["windows", "documents"])
def test_the_same_recipe_gives_the_same_weights(rows: str, materials: Path, tmp_path: Path) -> None:
    stages = stage("pretrain", "epochs = 1", ", dropout = 0.2", rows=f'"{rows}"')
    found = [
        (
            go(HEAD.format(text=materials / "text.txt"), stages, folder=tmp_path / str(i)).folder
            / "model/model.safetensors"
        ).read_bytes()
        for i in range(2)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(("objective", "family"), [("denoise", "bart"), ("span", "t5"), ("masked", "modernbert")])
def test_long_documents_are_cut_for_what_hides_tokens(
    objective: str, family: str, materials: Path, tmp_path: Path
) -> None:
    """This tokenizer puts nothing around a text: a row of the text is as long as what the model reads."""
    head = HEAD.format(text=materials / "text.txt").replace("vocab_size = 300", "vocab_size = 400")
    head = head.replace("[model]", f'[model]\nfamily = "{family}"')
    pretrain = stage("pretrain", "steps = 2", objective=f'"{objective}"', rows='"documents"')
    done = go(head.replace('prompts = ["the cat"]', "prompts = []"), pretrain, folder=tmp_path)
    assert result(done, "02-pretrain")["steps"] == 2


def test_a_database_of_the_users_own(make_database: Callable[[Path], Path], tmp_path: Path) -> None:
    database = make_database(tmp_path / "my towns.sqlite")
    head = (
        HEAD.replace("source = '{text}'", f"database = '{database}'\nexamples = 80")
        .replace("max_position_embeddings = 48", "max_position_embeddings = 192")
        .replace('prompts = ["the cat"]', "prompts = []")
    )
    done = go(
        head,
        stage("pretrain", "steps = 3", rows='"documents"'),
        stage("finetune", "steps = 3", adapter="{ rank = 2, alpha = 4 }"),
        stage("dpo", "steps = 2", prompts="6", samples="2"),
        stage("quantize"),
        folder=tmp_path / "runs",
    )
    for name in ("02-pretrain", "03-finetune", "04-dpo", "05-quantize"):
        found = result(done, name)
        assert found["scores"], name
        for score in found["scores"].values():
            assert 0 <= score["execution_accuracy"] <= 1 and 1 <= score["count"] <= 3
    assert database.stat().st_size > 0 and not database.with_name(database.name + "-wal").exists()


def test_chats_that_are_too_long_for_the_context_are_named(materials: Path, tmp_path: Path) -> None:
    data = f"{{ source = '{materials / 'chats.jsonl'}' }}"
    with pytest.raises(InputError, match="No chat is left to learn from: 36 are longer than 4 tokens"):
        go(
            HEAD.format(text=materials / "text.txt"),
            stage("pretrain", "steps = 2", evaluate="false").replace("warmup_steps = 2", "warmup_steps = 0"),
            stage("finetune", "epochs = 1", context="4", data=data),
            folder=tmp_path,
        )
    assert (tmp_path / "tiny/stages/02-pretrain/result.json").exists()


def test_a_character_model_of_another_text_begins_with_its_own_words(tmp_path: Path) -> None:
    """The prompts of a recipe are made for its own text; another one has not all of their characters."""
    book = tmp_path / "book.txt"
    book.write_text("ein alter hund lag in der sonne und schlief\n" * 40, encoding="utf-8")
    head = HEAD.format(text=book).replace('vocab_size = 300\nchat_template = "chatml"', 'kind = "char"')
    out = io.StringIO()
    prompted = head.replace('["the cat"]', r'["ROMEO:\n"]')
    done = go(prompted, stage("pretrain", "steps = 3"), folder=tmp_path, reporter=PlainReporter(out))
    found = result(done, "02-pretrain")
    assert {sample["prompt"] for sample in found["samples"]} == {"ein alter hund lag"}
    assert r'evaluate.prompts: "ROMEO:\n" left out: characters that this character tokenizer' in out.getvalue()
    assert "the text's own beginning is the prompt instead" in found["notes"][-1]
    some = head.replace('["the cat"]', '["ROMEO", "der hund"]').replace('"tiny"', '"some"')
    found = result(go(some, stage("pretrain", "steps = 3"), folder=tmp_path), "02-pretrain")
    assert {sample["prompt"] for sample in found["samples"]} == {"der hund"} and len(found["notes"]) == 1


def test_a_prompt_longer_than_the_context_is_left_out_with_the_count(materials: Path, tmp_path: Path) -> None:
    head = HEAD.format(text=materials / "text.txt").replace('"the cat"', '"' + "Q7x " * 60 + '", "the dog"')
    found = result(go(head, stage("pretrain", "steps = 2"), folder=tmp_path), "02-pretrain")
    assert "and the model reads 48" in found["notes"][0]
    assert {sample["prompt"] for sample in found["samples"]} == {"the dog"}
