"""The dpo stage: each source of preferences, each kind of loss, the base as reference, held-out accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_models import make_folder

import quatrain
from quatrain.alignment.losses import LOSSES, NAMES
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.models.io import model_folder
from quatrain.runs.recipe import loads
from quatrain.runs.stages.dpo import SMOOTHED, UNREFERENCED, DPOStage

TRAIN = (
    "train = { epochs = 4, batch_tokens = 400, learning_rate = 3e-3, warmup_steps = 1, log_every = 1, "
    'precision = "float32" }'
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("start"), 96)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs: the answer in letters is better than the one in digits, and longer."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"say {number}", "chosen": "abcab"[: 3 + number % 2], "rejected": str(number)}
        for number in range(20)
    ]
    rows.append({"prompt": "say it", "chosen": "same", "rejected": "same"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def go(
    start: Path, folder: Path, *stage: str, data: str = "", train: str = TRAIN
) -> tuple[dict[str, Any], list[Any], Path]:
    """The result of the stage, its logged steps, and the run's model."""
    text = f"""
        name = "tiny"
        model = {{ folder = '{start}' }}
        data = {{ {data} }}
        evaluate = {{ max_new_tokens = 6 }}
        [[stage]]
        kind = "dpo"
        {train}
    """ + "\n".join(stage)
    run = quatrain.run(loads(text), runs_dir=folder, reporter=SilentReporter())
    lines = [line for line in read_metrics(run.folder / "metrics.jsonl") if "loss" in line]
    return run.results[0], lines, run.model


def test_pairs_of_a_source_are_learned_and_measured(start: Path, pairs: Path, tmp_path: Path) -> None:
    result, lines, model = go(start, tmp_path, data=f"source = '{pairs}', validation = 0.25")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=2e-5)
    assert lines[0]["rewards/chosen"] == pytest.approx(0, abs=1e-4) and lines[-1]["loss"] < 0.6
    assert {"logps/chosen", "logps/rejected", "margin", "accuracy"} <= lines[0].keys()
    scores = result["scores"]["held-out preferences"]
    assert scores["count"] == 5 and scores["accuracy"] == 1.0
    assert result["baselines"]["held-out preferences"] == {"name": "the shorter answer wins", "accuracy": 0.0}
    notes = "\n".join(result["notes"])
    assert "21 pairs from" in notes and "5 of them held out" in notes
    assert "1 of " in notes and "left out: chosen and rejected are the same" in notes
    assert model_folder.load(model).num_parameters() == model_folder.load(start).num_parameters()


def test_a_test_file_is_measured_and_takes_no_part_in_validation(start: Path, pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    rows = [{"prompt": f"tell {number}", "chosen": str(number), "rejected": "abcab"} for number in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = TRAIN.replace("train = { ", "train = { evaluate_every = 5, ")
    data = f"source = '{pairs}', test = '{path}', validation = 0.25"
    result, _, model = go(start, tmp_path, data=data, train=train)
    scores = result["scores"]["held-out preferences"]
    assert scores["count"] == 7 and scores["accuracy"] == 0.0, "the opposite of what is learned"
    measured = [each for each in read_metrics(model.parent / "metrics.jsonl") if "validation_accuracy" in each]
    assert measured[-1]["validation_accuracy"] == 1.0
    notes = "\n".join(result["notes"])
    assert "5 of them held out" in notes and f"7 pairs from {path}" in notes


def test_rated_answers_are_learned_by_kto(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "rated.jsonl"
    rows = [
        {"prompt": f"say {number}", "completion": "abc" if number % 2 else "123", "label": bool(number % 2)}
        for number in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, lines, _ = go(start, tmp_path, 'loss = "kto"', data=f"preferences = '{path}', validation = 0.2")
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-4) and lines[-1]["loss"] < 0.45
    assert {"kl", "desirable", "accuracy"} <= lines[0].keys() and lines[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert result["scores"]["held-out preferences"]["count"] == 4
    assert result["baselines"]["held-out preferences"]["name"] == "the commoner rating"
    with pytest.raises(InputError) as caught:
        go(start, tmp_path / "wrong", data=f"preferences = '{path}'")
    assert 'loss = "kto"' in str(caught.value)


def test_the_base_under_the_adapter_needs_no_precomputed_references(start: Path, pairs: Path, tmp_path: Path) -> None:
    adapter = 'adapter = { method = "lora", rank = 4, alpha = 8 }'
    logged = []
    for name, reference in (("precomputed", ""), ("base", 'reference = "base"')):
        result, lines, _ = go(start, tmp_path / name, 'loss = "ipo"', adapter, reference, data=f"source = '{pairs}'")
        assert lines[0]["loss"] == pytest.approx(25, abs=1e-2)
        assert 0 < result["trainable_parameters"] < result["parameters"]
        logged.append([line["loss"] for line in lines])
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)


def test_a_quantized_base_is_its_own_reference(start: Path, pairs: Path, tmp_path: Path) -> None:
    """The reference is the base as it is held: a float reference would differ from the policy before the first step."""
    adapter = 'adapter = { method = "lora", rank = 4, quantize_base = "int8" }'
    _, lines, _ = go(start, tmp_path, adapter, data=f"source = '{pairs}'")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=2e-5)


def test_samples_are_ranked_by_rewards(start: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(12)))
    rewards = 'rewards = [{ kind = "regex", pattern = "[aeiou]", most = 9 }]'
    result, lines, _ = go(start, tmp_path, rewards, "samples = 4", "temperature = 2.0", data=f"source = '{prompts}'")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert any("samples of 12 prompts, mean reward" in note for note in result["notes"])


def test_a_reward_model_of_the_recipe_ranks_the_samples(start: Path, pairs: Path, tmp_path: Path) -> None:
    text = f"""
        name = "tiny"
        model = {{ folder = '{start}' }}
        data = {{ source = '{pairs}' }}
        evaluate = {{ max_new_tokens = 6 }}
        [[stage]]
        kind = "reward"
        evaluate = false
        train = {{ steps = 2, batch_tokens = 512, warmup_steps = 0, precision = "float32" }}
        [[stage]]
        kind = "dpo"
        rewards = [{{ kind = "model", stage = "reward" }}]
        temperature = 2.0
        {TRAIN}
    """
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(8)))
    text = text.replace('kind = "dpo"', f"kind = \"dpo\"\ndata = {{ source = '{prompts}' }}")
    run = quatrain.run(loads(text), runs_dir=tmp_path, reporter=SilentReporter())
    assert any("samples of 8 prompts, mean reward" in note for note in run.results[1]["notes"])


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ('loss = "dpo2"', "loss"),
        ("label_smoothing = 0.1", 'only loss = "cdpo" or "robust" reads it'),
        ('loss = "cdpo"', "needs the assumed share of swapped pairs"),
        ("simpo_gamma = 0.5", 'only loss = "simpo" reads it'),
        ("desirable_weight = 2.0", 'only loss = "kto" reads it'),
        ('loss = "orpo"\nsft_weight = 1.0', "has this loss already"),
        ('reference = "base"', "there is no adapter"),
    ],
)
def test_settings_that_are_not_read_are_refused(
    start: Path, pairs: Path, tmp_path: Path, stage: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        go(start, tmp_path, stage, data=f"source = '{pairs}'")
    assert words in str(caught.value)


def test_the_stage_knows_every_loss() -> None:
    assert set(get_args(DPOStage.model_fields["loss"].annotation)) == set(NAMES)
    assert set(SMOOTHED) == {name for name, loss in LOSSES.items() if "label_smoothing" in loss.reads}
    assert set(UNREFERENCED) == {name for name, loss in LOSSES.items() if not loss.reference}
