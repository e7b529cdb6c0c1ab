"""`quatrain plan --method`: what a training will hold, said from a configuration alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.models.families.fresh import fresh_config
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip
NONE = ["--trainable-tokens", "none"]
SMALL = ["--batch-tokens", "64", "--context", "32", "--precision", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without its weights: a plan reads the configuration alone."""
    folder = tmp_path_factory.mktemp("plan") / "model"
    model_folder.save(Model(fresh_config("llama", SIZES)).initialize(0), folder)
    (folder / "model.safetensors").unlink()
    return folder


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_methods_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"full": [], "lora": NONE, "qlora": NONE}
    found = {name: planned(capsys, str(folder), "--method", name, *SMALL, *words) for name, words in more.items()}
    for name, each in found.items():
        said = each["method"]
        assert said["method"] == name and (said["rows"], said["context"]) == (2, 32)
        assert said["percent"] == pytest.approx(100 * said["trainable"] / said["all"])
        assert said["memory"]["peak"] > said["memory"]["weights"]
    full, lora, qlora = (found[name]["method"] for name in ("full", "lora", "qlora"))
    assert full["trainable"] == full["all"] == found["full"]["parameters"]
    assert lora["trainable"] == qlora["trainable"] and lora["all"] == qlora["all"] == full["all"] + lora["trainable"]
    peaks = [each["memory"]["peak"] for each in (full, lora, qlora)]
    assert peaks == sorted(peaks, reverse=True)
    assert qlora["merged"] == 4 * full["all"] and lora["merged"] == full["merged"] == 0


def test_rank_and_targets_are_heard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trainable(*words: str) -> int:
        return planned(capsys, str(folder), "--method", "lora", *SMALL, *NONE, *words)["method"]["trainable"]

    assert trainable("--rank", "4") * 2 == trainable("--rank", "8")
    assert trainable("--rank", "4", "--target-modules", "q_proj", "--target-modules", "o_proj") == 2 * 2 * 4 * (64 + 64)


def test_rows_of_special_tokens_cost_themselves_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_rows = planned(capsys, str(folder), "--method", "lora", *SMALL)["method"]
    without = planned(capsys, str(folder), "--method", "lora", *SMALL, *NONE)["method"]
    both = 2 * 4 * 64  # no tokenizer is there: one row of the embedding stands for all, and one of the head's own
    assert with_rows["memory"]["gradients"] - without["memory"]["gradients"] == both
    assert 2 * both <= with_rows["memory"]["optimizer"] - without["memory"]["optimizer"] < 3 * both
    assert with_rows["memory"]["adapter"] - without["memory"]["adapter"] == both
    assert with_rows["trainable"] - without["trainable"] == 2 * 64


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(folder), "--method", "qlora", "--optimizer", "adamw8bit", *SMALL]) == 0
    said = capsys.readouterr().out
    for words in ("qlora: trains", "%)", "2 x 32 tokens", "adamw8bit", "weights", "adapter", "gradients", "optimizer",
                  "activations", "peak memory, about", "merged at its end"):  # fmt: skip
        assert words in said, words


def test_a_recipe_can_be_planned_by_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "sherlock", "model.hidden_size=64", "--method", "dora", *SMALL)
    assert found["method"]["method"] == "dora" and found["training"]["pretrain"] > 0


RECIPE = """
name = "further"
[data]
source = "{folder}/chats.jsonl"
[model]
folder = "{folder}"
{before}
[[stage]]
kind = "finetune"
context = 32
adapter = {{ rank = 4, trainable_tokens = "none" }}
{train}
"""
TRAIN = 'train = { steps = 2, batch_tokens = 128, precision = "bfloat16", warmup_steps = 0 }'


@pytest.mark.slow
def test_frozen_weights_of_narrow_files_cost_less_where_training_begins_from_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(folder, narrow)
    about = json.loads((narrow / "config.json").read_text(encoding="utf-8"))
    (narrow / "config.json").write_text(json.dumps(about | {"dtype": "bfloat16"}), encoding="utf-8")
    words = ["--method", "lora", *NONE, *SMALL[:-1], "bfloat16"]
    wide, less = (planned(capsys, str(each), *words)["method"]["memory"] for each in (folder, narrow))
    assert wide["weights"] - less["weights"] == 4 * planned(capsys, str(folder))["parameters"]
    peaks = []
    for before in ("", f'[[stage]]\nkind = "pretrain"\ncontext = 32\n{TRAIN}'):
        for each in (folder, narrow):
            path = tmp_path / "recipe.toml"
            path.write_text(RECIPE.format(folder=each, before=before, train=TRAIN), encoding="utf-8")
            peaks.append(planned(capsys, str(path))["training"]["finetune"])
    assert peaks[1] < peaks[0]
    assert peaks[3] == peaks[2] == peaks[0], "the stage before has left float32"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "qlorra"], ["did you mean qlora?", "must be one of full, lora, qlora, dora"]),
        (["--method", "lora", "--optimizer", "adam8bit", "--rank", "0", "--context", "4096"],
         ["did you mean adamw8bit?", "rank", "the model's longest, 128"]),
        (["--method", "ia3", "--rank", "4"], ["rank", 'only method = "lora"']),
        (["--method", "full", "--rank", "4"], ["rank", "every weight"]),
        (["--method", "lora", "--target-modules", "q_prj"], ["did you mean q_proj"]),
        (["--method", "lora", "--batch-tokens", "16", "--context", "32"], ["at least one row"]),
        (["--rank", "4", "--precision", "float32"], ["--precision, --rank", "--method"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_all_at_once(
    folder: Path, words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(folder), *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    for each in said:
        assert each in error, error
