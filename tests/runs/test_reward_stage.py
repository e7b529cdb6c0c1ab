"""The stage reward: from pairs to a folder that rewards and transformers read alike, beside what lengths give."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny_models import SIZES

import quatrain
from quatrain.alignment.rewards.model import ModelReward
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.models.io import model_folder
from quatrain.runs.recipe import loads
from quatrain.tokenizers.tokenizer import Tokenizer

RECIPE = """
name = "tiny"
[data]
source = "{source}"
validation = 0.2
[tokenizer]
kind = "{tokenizer}"
vocab_size = 300
[model]
family = "{family}"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 64
[evaluate]
examples = 20
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "reward"
{more}
train = {{ steps = 30, batch_tokens = 1024, learning_rate = 2e-2, evaluate_every = 15 }}
"""
WORDS = "cat dog sea town hall".split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose chosen answer says please, among them two that cannot be preferred."""
    path, generator, rows = tmp_path_factory.mktemp("pairs") / "pairs.jsonl", random.Random(0), []
    for number in range(60):
        first, second = (" ".join(generator.choices(WORDS, k=generator.randint(1, 4))) for _ in range(2))
        rows.append({"prompt": f"say {number}", "chosen": f"{first} please", "rejected": second})
    rows += [{"prompt": "same", "chosen": "cat", "rejected": "cat"}] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("family", "tokenizer", "more"),
    [
        ("llama", "bpe", "center_rewards_coefficient = 0.01"),
        ("bert", "wordpiece", ""),
        ("modernbert", "wordpiece", 'reads = "answer"\npooling = "mean"'),
    ],
)
def test_learns_what_is_preferred_and_rewards_it(tmp_path, pairs, family, tokenizer, more):
    transformers = pytest.importorskip("transformers")
    recipe = loads(RECIPE.format(source=pairs, family=family, tokenizer=tokenizer, more=more))
    run = quatrain.run(recipe, runs_dir=tmp_path, reporter=SilentReporter())
    result = run.results[-1]
    scores = result["scores"]["held out"]
    assert scores["accuracy"] > 0.85 > result["baselines"]["held out"]["accuracy"] and 0 <= scores["ece"] < 0.5
    assert scores["count"] == sum(each["count"] for each in result["calibration"]["bins"]) == 12
    assert sum(result["length_baselines"].values()) == pytest.approx(1)
    assert any("2 pairs with two equal answers" in note for note in result["notes"])
    reward = ModelReward(str(run.model))
    polite, plain = reward(["say 3"] * 2, ["cat please", "cat"])
    assert polite > plain
    own = Tokenizer.load(run.model)
    assert own.pad_id is not None and own.pad_id not in own.stop_ids
    rows = [reward.row("say 3", text) for text in ("cat please", "cat")]
    assert own.decode(rows[0].ids).startswith("cat") == ("answer" in more)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run.model)
    inputs = theirs.dummy_inputs["input_ids"].new_full((2, max(map(len, rows))), own.pad_id)
    types = inputs.new_zeros(inputs.shape)
    for number, row in enumerate(rows):
        inputs[number, : len(row)] = inputs.new_tensor(row.ids)
        types[number, : len(row)] = inputs.new_tensor(row.token_types or [0] * len(row))
    more_inputs = {"token_type_ids": types} if family == "bert" else {}
    logits = theirs(inputs, attention_mask=(inputs != own.pad_id).long(), **more_inputs).logits[:, 0].tolist()
    assert logits == pytest.approx([polite, plain], abs=1e-4)
    if "mean" in more:
        assert model_folder.load_config(run.model).pooling == "mean"


def test_a_padding_token_that_ends_texts_is_replaced(tmp_path, pairs):
    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.transformer.stack import Model

    tokenizer = Tokenizer.train(["say cat please"] * 3, vocab_size=300, pad=None)
    tokenizer.config["pad_token"] = tokenizer.config["eos_token"]
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size}
    model_folder.save(Model(fresh_config("llama", sizes, head="causal")).initialize(0), tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    assert Tokenizer.load(tmp_path / "base").pad_id == tokenizer.eos_id
    text = RECIPE.format(source=pairs, family="llama", tokenizer="bpe", more="")
    head, _, stages = text.partition("[tokenizer]")
    text = f'{head}[model]\nfolder = "{tmp_path / "base"}"\n[[stage]]{stages.rpartition("[[stage]]")[2]}'
    run = quatrain.run(loads(text), runs_dir=tmp_path, reporter=SilentReporter())
    own, config = Tokenizer.load(run.model), model_folder.load_config(run.model)
    assert own.id_to_token(own.pad_id) == "<|pad|>" and config.pad_token_id == own.pad_id != own.eos_id
    assert config.vocab_size == tokenizer.vocab_size + 1


def test_problems_of_the_recipe(pairs):
    for change, words in (
        (("more", 'pooling = "mean"'), "modernbert"),
        (("more", "center_rewards_coefficient = -1.0"), "center_rewards_coefficient"),
        (("family", "marian"), "no model of family"),
    ):
        values = {"source": pairs, "family": "llama", "tokenizer": "bpe", "more": ""} | dict([change])
        with pytest.raises(InputError, match=words):
            loads(RECIPE.format(**values))


def test_an_encoder_may_read_named_preferences_before(tmp_path, pairs):
    stage = '[[stage]]\nkind = "pretrain"\nobjective = "masked"\n{data}'
    stage += "train = {{ steps = 2, batch_tokens = 256, warmup_steps = 1 }}\n"
    head = RECIPE.format(source=pairs, family="bert", tokenizer="wordpiece", more="").rpartition("[[stage]]")[0]
    named = f'data = {{ source = "{pairs}", format = "preference" }}\n'
    run = quatrain.run(loads(head + stage.format(data=named)), runs_dir=tmp_path, reporter=SilentReporter())
    assert run.results[-1]["steps"] == 2
    with pytest.raises(InputError, match="chats"):
        recipe = head.replace('"tiny"', '"other"') + stage.format(data="")
        quatrain.run(loads(recipe), runs_dir=tmp_path, reporter=SilentReporter())
