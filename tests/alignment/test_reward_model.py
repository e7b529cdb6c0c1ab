"""Reward models: the loss is TRL's, the score is read at the end token, held-out pairs are measured."""

import math

import pytest
import torch
from tiny_models import gpt2, llama, make_folder, random_model, save_random

from quatrain.alignment.reward_model import (
    LABELS,
    PairwiseReward,
    RewardExample,
    RewardTask,
    calibration,
    length_baselines,
    score_rows,
)
from quatrain.alignment.rewards.base import RewardContext
from quatrain.alignment.rewards.model import ModelReward, ModelRewardSettings
from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.data.records import Row
from quatrain.models.io import model_folder
from quatrain.tasks.answer_reader import AnswerReader
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.texts import EncodedText

HEAD = {"head": "sequence_classification", "labels": LABELS, "problem_type": "regression"}
WORDS = "count the apples in the basket now"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([WORDS] * 3, vocab_size=300, chat_template="chatml")


def reward_model(tokenizer, seed=0, **changes):
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    return random_model(llama(**HEAD | sizes | changes), seed)


def pairs_of(lengths, seed=0, margin=False):
    """Pairs of rows of token ids, of these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def row(length):
        return EncodedText(torch.randint(5, 250, (length,), generator=generator).tolist())

    return [
        RewardExample(row(first), row(second), float(number) / 2 if margin else 0.0)
        for number, (first, second) in enumerate(lengths)
    ]


LENGTHS = [(5, 9), (17, 3), (8, 8)]


@pytest.mark.parametrize(("center", "margin"), [(0.0, False), (0.05, True)])
def test_loss_and_gradients_equal_trl(tmp_path, tokenizer, center, margin):
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer.save(tmp_path / "model")
    model_folder.save(reward_model(tokenizer), tmp_path / "model")
    pairs = pairs_of(LENGTHS, margin=margin)
    rows = {"chosen_ids": [pair.chosen.ids for pair in pairs], "rejected_ids": [pair.rejected.ids for pair in pairs]}
    if margin:
        rows["margin"] = [pair.margin for pair in pairs]
    arguments = RewardConfig(
        str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        center_rewards_coefficient=center or None, max_length=None, disable_dropout=True,
    )  # fmt: skip
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"),
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(pairs))])
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    own = model_folder.load(tmp_path / "model")
    objective = PairwiseReward(tokenizer, center_rewards_coefficient=center)
    total, weight, metrics = objective.loss(own, objective.collate(pairs))
    (total / weight).backward()
    assert weight == len(pairs) and float(total.detach()) / weight == pytest.approx(float(expected.detach()), abs=1e-6)
    assert float(expected.detach()) != pytest.approx(math.log(2), abs=1e-3)
    assert float(metrics["margin"]) / weight == pytest.approx(trainer._metrics["eval"]["margin"][0], abs=1e-5)
    theirs = dict(trainer.model.named_parameters())
    ours = dict(own.named_parameters())
    compared = {"score.weight": "score.weight"} | {f"model.{name}": name for name in ours if name != "score.weight"}
    assert set(compared) == set(theirs)
    for name, own_name in compared.items():
        assert torch.allclose(theirs[name].grad, ours[own_name].grad, atol=1e-6), name


def alone(model, ids):
    """The score at the last token of one row without padding."""
    with torch.no_grad():
        return float(model.head(model.hidden_states(torch.tensor([ids]))[:, -1:], input_ids=torch.tensor([[0]]))[0])


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("pad", [0, 7])
def test_score_is_read_at_the_end_token(family, pad):
    """End tokens (7) also stand inside the prompt, and padding may be the end token: neither moves the place."""
    model = random_model(family(**HEAD | {"pad_token_id": pad, "eos_token_id": 7}), 3)
    rows = [[1, 7, 2, 3, 7], [7, 9, 7], [4, 5, 6, 8, 9, 11, 12, 7], [7]]
    scores = score_rows(model, [EncodedText(row) for row in rows], pad, batch_tokens=30)[:, 0]
    for row, score in zip(rows, scores.tolist(), strict=True):
        assert score == pytest.approx(alone(model, row), abs=1e-5)
        if len(row) > 1:
            assert abs(score - alone(model, row[:-1])) > 1e-3


def test_transformers_reads_the_same_score(tmp_path, tokenizer):
    pytest.importorskip("transformers")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer.save(tmp_path)
    model = reward_model(tokenizer, 2)
    model_folder.save(model, tmp_path)
    reward = ModelReward(str(tmp_path))
    chats = [[{"role": "user", "content": content}] for content in ("count", "the apples in the basket")]
    answers = ["now the basket", "now"]
    theirs, their_tokenizer = (
        auto.from_pretrained(tmp_path) for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    texts = [
        their_tokenizer.apply_chat_template(
            [*chat, {"role": "assistant", "content": answer}], tokenize=False
        ).removesuffix("\n")
        for chat, answer in zip(chats, answers, strict=True)
    ]
    inputs = their_tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, 0].tolist()
    assert inputs["attention_mask"].min() == 0
    assert reward(chats, answers) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("poison", [100.0, float("nan")])
def test_padding_does_not_reach_loss_or_gradients(tokenizer, poison):
    objective, pairs = PairwiseReward(tokenizer, center_rewards_coefficient=0.1), pairs_of(LENGTHS)
    results = []
    for poisoned in (False, True):
        model = reward_model(tokenizer, 1)
        batch = objective.collate(pairs)
        if poisoned:
            padding = torch.arange(batch.input_ids.shape[1]) >= batch.lengths[:, None]
            model.norm.register_forward_hook(
                lambda _, inputs, hidden, padding=padding: hidden.masked_fill(padding[..., None], poison)
            )
        total, _, _ = objective.loss(model, batch)
        total.backward()
        results.append((total.detach(), [parameter.grad for parameter in model.parameters()]))
    (clean, gradients), (dirty, others) = results
    assert torch.equal(clean, dirty) and all(map(torch.equal, gradients, others))


def test_micro_batches_and_padding_do_not_change_the_mean(tokenizer):
    model, objective, pairs = reward_model(tokenizer), PairwiseReward(tokenizer), pairs_of(LENGTHS, margin=True)
    with torch.no_grad():
        whole, weight, _ = objective.loss(model, objective.collate(pairs))
        parts = [objective.loss(model, objective.collate([pair])) for pair in pairs]
    assert weight == sum(count for _, count, _ in parts) == 3
    assert float(whole) == pytest.approx(sum(float(total) for total, _, _ in parts), abs=1e-5)


def test_rows_end_with_the_end_token_and_lose_the_beginning_of_the_prompt(tokenizer):
    prompt = [{"role": "user", "content": "count the apples"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("now", "in the basket")]
    end = tokenizer.token_to_id("<|im_end|>")
    first, second = AnswerReader(tokenizer).read(prompt, answers)
    assert first.ids[-1] == second.ids[-1] == end and end in first.ids[:-1] and not first.cut
    limit = len(second) - 4
    cut_first, cut_second = AnswerReader(tokenizer, limit).read(prompt, answers)
    assert (cut_first.ids, cut_second.ids) == (first.ids[4:], second.ids[4:]) and cut_second.cut == 4
    tiny = AnswerReader(tokenizer, 3).read(prompt, answers)
    assert [row.ids for row in tiny] == [first.ids[-3:], second.ids[-3:]]


def test_encoders_read_prompt_and_answer_as_a_pair():
    tokenizer = Tokenizer.train([WORDS] * 3, kind="wordpiece", vocab_size=60)
    prompt = [{"role": "user", "content": "count the apples"}]
    answer = [{"role": "assistant", "content": "in the basket now"}]
    (row,) = AnswerReader(tokenizer).read(prompt, [answer])
    pair = tokenizer.encode_pair("count the apples", "in the basket now")
    assert row.ids == pair.ids and row.token_types == pair.token_types
    (cut,) = AnswerReader(tokenizer, len(row) - 1).read(prompt, [answer])
    assert cut.ids == [row.ids[0], *row.ids[2:]] and cut.cut == 1
    shortest = AnswerReader(tokenizer, 4).read(prompt, [answer])[0]
    assert tokenizer.decode(shortest.ids, skip_special_tokens=False).startswith("[CLS]") and len(shortest) == 4


def record(chosen, rejected, prompt="count", **more):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


def test_records_become_pairs_and_wrong_ones_are_named(tokenizer):
    objective = PairwiseReward(tokenizer)
    (pair,), _ = objective.prepare([record("now", "the apples", margin=2)])
    assert pair.margin == 2 and pair.chosen.ids != pair.rejected.ids
    with pytest.raises(InputError) as caught:
        objective.prepare([record("a", "b", margin="much"), {"prompt": []}, record("a", "b", margin=float("nan"))])
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="center_rewards_coefficient"):
        PairwiseReward(tokenizer, center_rewards_coefficient=-1)
    with pytest.raises(InputError, match="has one, its score"):
        objective.loss(reward_model(tokenizer, labels=("a", "b")), objective.collate([pair]))


def test_calibration_by_hand():
    report = calibration([0.1, -0.1, 4.0, 0.0])
    low, high = report["bins"]
    assert (low["count"], high["count"]) == (3, 1) and (low["from"], high["to"]) == (0.5, 1.0)
    confidence = 1 / (1 + math.exp(-0.1))
    assert low["confidence"] == pytest.approx((2 * confidence + 0.5) / 3)
    assert low["accuracy"] == pytest.approx(0.5) and high["accuracy"] == 1
    expected = 0.75 * abs(low["confidence"] - 0.5) + 0.25 * (1 - 1 / (1 + math.exp(-4)))
    assert report["ece"] == pytest.approx(expected)
    assert calibration([50.0] * 3)["ece"] == pytest.approx(0)


def test_baselines_by_length(tokenizer):
    rows = [Row(f"f:{n}", record(*answers)) for n, answers in enumerate([("a", "bb"), ("ccc", "d"), ("e", "f")])]
    assert length_baselines(rows) == {"the shorter answer wins": 0.5, "the longer answer wins": 0.5}
    task = RewardTask(PairwiseReward(tokenizer))
    assert [task.parse(text) for text in task.baseline(rows)] == [1, -1, 0]
    assert [task.parse(text) for text in task.baseline(rows[1:])] == [1, 0]
    again = Row("f:9", record("other", "answers"))
    assert task.group(again) == task.group(rows[0]) != task.group(Row("f:8", record("a", "b", prompt="else")))
    assert task.objective.scores([1, -1, 0], [1, 1, 1]) == {"accuracy": 0.5}


def test_classifiers_as_rewards(tmp_path):
    folder = make_folder(tmp_path / "causal")
    tokenizer = Tokenizer.load(folder)
    labels = {"head": "sequence_classification", "labels": ("negative", "positive"), "problem_type": "single_label"}
    place = tmp_path / "classifier"
    save_random(llama(vocab_size=tokenizer.vocab_size, **labels), place, 4)
    tokenizer.save(place)
    examples, completions = ["It was ", "I am ", "x" * 80], ["good", "not so sure", "long"]
    model = model_folder.load(place)
    logits = torch.stack(
        [
            model(torch.tensor([tokenizer.encode(example + text)[-64:]]))[0][0].detach()
            for example, text in zip(examples, completions, strict=True)
        ]
    )
    odds = (logits[:, 1] - logits[:, 0]).tolist()
    assert ModelReward(str(place))(examples, completions) == pytest.approx(odds, abs=1e-4)
    flipped = ModelRewardSettings(folder=str(place), label="positive", flip=True).build(RewardContext())
    assert flipped(examples, completions) == pytest.approx([-odd for odd in odds], abs=1e-4)
    kinds = ["positive", "negative", "neutral"]
    asked = ModelRewardSettings(folder=str(place), label_field="want", undecided="neutral").build(RewardContext())
    wants = [{"prompt": each, "want": want} for each, want in zip(examples, kinds, strict=True)]
    assert asked(wants, completions) == pytest.approx([odds[0], -odds[1], -abs(odds[2])], abs=1e-4)
    with pytest.raises(InputError, match="needs label_field"):
        parse(ModelRewardSettings, {"folder": "m", "undecided": "neutral"})
    shares = ModelReward(str(place), label=0, output="probability")(examples, completions)
    assert shares == pytest.approx(logits.softmax(1)[:, 0].tolist(), abs=1e-5)
    logs = ModelReward(str(place), label="negative", output="log_probability")(examples, completions)
    assert logs == pytest.approx(logits.log_softmax(1)[:, 0].tolist(), abs=1e-4)
    alone = ModelReward(str(place), reads="completion")(["ignored", "also"], ["good", "bad"])
    assert alone == pytest.approx(ModelReward(str(place))(["", ""], ["good", "bad"]), abs=1e-5)
    asked = [
        {"prompt": text, "control": name}
        for text, name in zip(examples, ("negative", "positive", "negative"), strict=True)
    ]
    by_field = ModelRewardSettings(folder=str(place), label_field="control").build(RewardContext())
    assert by_field(asked, completions) == pytest.approx([-odds[0], odds[1], -odds[2]], abs=1e-4)
    assert ModelReward(str(place))([], []) == []
    with pytest.raises(InputError, match="neutral"):
        ModelReward(str(place), label="neutral")
    with pytest.raises(InputError, match="head causal"):
        ModelReward(str(folder))
