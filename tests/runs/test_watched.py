"""A reinforcement learning run is watched: a reward that overrates length trips the alarm, everywhere."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import make_folder

import quatrain
from quatrain.alignment.comparison import gain, perplexity
from quatrain.alignment.rollouts import Prompt
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.io import model_folder
from quatrain.runs.recipe import loads
from quatrain.tokenizers.tokenizer import Tokenizer

RECIPE = """
name = "length"
[data]
source = 'SOURCE'
validation = 0.3
[model]
folder = 'MODEL'
[[stage]]
kind = "ppo"
prompts = 32
passes = 2
max_new_tokens = 24
prompt_format = "text"
prompt_tokens = [2, 4]
kl_coef = 0.0
rewards = [ { kind = "length", target = 24, unit = "characters" } ]
true_rewards = [ { kind = "regex", pattern = "e", name = "words" } ]
held_out = 6
evaluate = false
train = { steps = 60, learning_rate = 1e-3, warmup_steps = 0, schedule = "constant", weight_decay = 0.0, precision = "float32", device = "cpu", log_every = 1, evaluate_every = 20 }
"""  # noqa: E501


class Shown(SilentReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned to end its texts after a few characters."""
    folder = make_folder(tmp_path_factory.mktemp("brief") / "model", context=64)
    model, tokenizer = model_folder.load(folder), Tokenizer.load(folder)
    rows = torch.randint(5, 40, (64, 3), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([rows, torch.full((64, 1), tokenizer.eos_id)], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        loss = model(inputs[:, :-1], inputs[:, 1:])[1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model_folder.save(model, folder)
    return folder


def test_a_reward_that_overrates_length_trips_the_alarm(model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"number {each} of the texts"}) + "\n" for each in range(30)))
    text = RECIPE.replace("SOURCE", str(texts)).replace("MODEL", str(model))
    reporter = Shown()
    done = quatrain.run(loads(text), runs_dir=tmp_path, reporter=reporter)
    entries = read_metrics(done.folder / "metrics.jsonl")
    alarms = [alarm for entry in entries for alarm in entry.get("alarms", [])]
    lengths = [entry["completion_length"] for entry in entries if "completion_length" in entry]
    assert lengths[-1] > 1.5 * lengths[0]
    assert "completion_length_drift" in {alarm["kind"] for alarm in alarms}
    (result,) = done.results
    assert result["alarms"] == alarms and any(alarms[0]["text"] in warning for warning in reporter.warnings)
    report = done.report.read_text(encoding="utf-8")
    assert "tokens per completion went from" in report and 'class="alarm"' in report
    compared = result["alignment"]
    before, after = compared["before"], compared["after"]
    assert len(before["rewards"]) == len(after["rewards"]) == 6 == len(after["texts"]) == len(compared["prompts"])
    assert compared["gain"] == pytest.approx(gain(before["rewards"], after["rewards"])) and compared["gain"] > 0
    assert sum(after["lengths"]) > sum(before["lengths"]) and after["perplexity"] > 1
    for outcome in (before, after):
        scores = [-min(1.0, abs(len(text) - 24) / 24) for text in outcome["texts"]]
        assert outcome["rewards"] == pytest.approx(scores, abs=1e-4) == outcome["parts"]["length"]
        assert outcome["true"]["words"] == [float("e" in text) for text in outcome["texts"]]
    # Before the training the policy is the reference: the perplexity is that of its own samples.
    engine = Engine(model_folder.load(model), Tokenizer.load(model))
    prompts = [Prompt(engine.encode(prompt)) for prompt in compared["prompts"]]
    pairs = [(list(p.ids), text) for p, text in zip(prompts, before["texts"], strict=True) if text]
    scored = engine.score([ids for ids, _ in pairs], [text for _, text in pairs])
    assert scored and all(score.total < 0 for score in scored)
    assert json.loads((done.folder / "stages/01-ppo/result.json").read_text())["alignment"] == compared


def test_perplexity_is_per_token_over_all_completions(model: Path) -> None:
    engine = Engine(model_folder.load(model), Tokenizer.load(model))
    prompts = [Prompt(engine.encode(text)) for text in ("a b", "of the")]
    params = SamplingParams(max_new_tokens=6, temperature=1.0, logprobs_mode="temperature")
    completions = engine.generate([list(prompt.ids) for prompt in prompts], params, seeds=[1, 2])
    total = sum(sum(each.logprobs) for each in completions)
    expected = torch.tensor(-total / sum(len(each.ids) for each in completions)).exp().item()
    assert perplexity(prompts, completions, engine) == pytest.approx(expected, rel=1e-4)


def test_what_could_not_be_judged_takes_no_part_in_the_gain() -> None:
    assert gain([0.0, None, 2.0], [2.0, None]) == 1.0 and gain([None], [1.0]) is None


def test_gain_is_in_standard_deviations_of_the_first() -> None:
    assert gain([0.0, 2.0], [5.0, 5.0]) == 4.0
    assert gain([1.0, 1.0], [5.0, 5.0]) is None
