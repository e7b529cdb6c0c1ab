"""The DPO objective: its formula, its first value, TRL's value, and that training by it prefers the chosen answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model, save_random

from quatrain.alignment.dpo import DPO, PreferenceExample, reference_logprobs
from quatrain.core.errors import InputError
from quatrain.models.io import model_folder


def examples(count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, 60, (length,), generator=generator).tolist()

    return [PreferenceExample(ids(1, 9), ids(1, 12), ids(1, 12)) for _ in range(count)]


def logprob_by_hand(network, prompt, answer):
    """One sequence alone, in float64, token by token."""
    with torch.no_grad():
        logits = network.double()(torch.tensor([[*prompt, *answer]]))[0][0].log_softmax(-1)
    network.float()
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))


@given(
    seed=st.integers(0, 50),
    beta=st.sampled_from([0.05, 0.1, 0.5]),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    sft=st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=12, deadline=None)
def test_loss_equals_the_formula_by_hand(seed, beta, smoothing, sft):
    policy, reference = random_model(llama(), seed), random_model(llama(), seed + 1)
    pairs = reference_logprobs(reference, examples(5, seed))
    objective = DPO(loss="cdpo" if smoothing else "sigmoid", beta=beta, label_smoothing=smoothing, sft_weight=sft)
    with torch.no_grad():
        total, weight, metrics = objective.loss(policy, objective.collate(pairs))
    expected = margins = correct = 0.0
    for pair in pairs:
        chosen, rejected = (logprob_by_hand(policy, pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
        first, second = (logprob_by_hand(reference, pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
        margin = beta * ((chosen - first) - (rejected - second))
        expected += -(1 - smoothing) * math.log(1 / (1 + math.exp(-margin)))
        expected += -smoothing * math.log(1 / (1 + math.exp(margin)))
        expected += sft * -chosen / len(pair.chosen)
        margins += margin
        correct += margin > 0
    assert weight == 5
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["margin"]) == pytest.approx(margins, abs=1e-3)
    assert float(metrics["accuracy"]) == correct
    difference = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    assert float(difference) == pytest.approx(float(metrics["margin"]), abs=1e-5)


def test_the_first_loss_is_ln_2():
    network = random_model(llama())
    pairs = reference_logprobs(network, examples(20), batch_tokens=100)
    objective = DPO()
    total, weight, metrics = objective.loss(network, objective.collate(pairs))
    assert float(total.detach()) / weight == pytest.approx(math.log(2), abs=1e-6)
    assert abs(float(metrics["margin"])) < 1e-4


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_references_do_not_depend_on_the_batch(batch_tokens):
    network = random_model(llama()).train()
    pairs = examples(13)
    found = reference_logprobs(network, pairs, batch_tokens=batch_tokens)
    assert network.training
    for pair, done in zip(pairs, found, strict=True):
        assert (done.prompt, done.chosen, done.rejected) == (pair.prompt, pair.chosen, pair.rejected)
        assert done.reference_chosen == pytest.approx(logprob_by_hand(network, pair.prompt, pair.chosen), abs=1e-3)
        assert done.reference_rejected == pytest.approx(logprob_by_hand(network, pair.prompt, pair.rejected), abs=1e-3)


def test_micro_batches_add_up():
    policy, reference = random_model(llama(), 0), random_model(llama(), 1)
    pairs = reference_logprobs(reference, examples(8))
    objective = DPO(sft_weight=0.3)

    def gradient(parts):
        policy.zero_grad()
        total = 0.0
        for start in range(0, 8, 8 // parts):
            loss, _, _ = objective.loss(policy, objective.collate(pairs[start : start + 8 // parts]))
            loss.backward()
            total += float(loss.detach())
        return total, policy.layers[0].mlp.up_proj.weight.grad.clone()

    whole, once = gradient(1)
    for parts in (2, 8):
        summed, added = gradient(parts)
        assert summed == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(added, once, atol=1e-5, rtol=1e-4)


def test_training_prefers_the_chosen():
    network = random_model(llama())
    pairs = reference_logprobs(network, examples(6))
    objective = DPO(beta=0.1)
    batch = objective.collate(pairs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        total, weight, metrics = objective.loss(network, batch)
        (total / weight).backward()
        optimizer.step()
    assert float(metrics["accuracy"]) == 6
    assert float(metrics["rewards/chosen"]) > float(metrics["rewards/rejected"])
    assert float(total.detach()) / weight < 0.5


def test_equals_trl(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from quatrain.tokenizers.tokenizer import Tokenizer

    Tokenizer.train(["count the apples in the basket now"] * 3, vocab_size=300).save(tmp_path / "policy")
    Tokenizer.load(tmp_path / "policy").save(tmp_path / "reference")
    for name, seed in (("policy", 0), ("reference", 1)):
        save_random(llama(vocab_size=300), tmp_path / name, seed)
    rows = {"prompt": ["count the", "now in", "a"], "chosen": [" apples", " the basket now", " b"],
            "rejected": [" count count", " it", " the basket"]}  # fmt: skip
    arguments = DPOConfig(
        str(tmp_path / "out"), beta=0.3, report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=3
    )
    trainer = DPOTrainer(
        *(AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("policy", "reference")),
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "policy"),
    )
    read = [trainer.train_dataset[index] for index in range(3)]
    expected = float(trainer.compute_loss(trainer.model, trainer.data_collator(read)).detach())
    pairs = [PreferenceExample(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in read]
    pairs = reference_logprobs(model_folder.load(tmp_path / "reference"), pairs)
    objective = DPO(beta=0.3)
    with torch.no_grad():
        total, weight, _ = objective.loss(model_folder.load(tmp_path / "policy"), objective.collate(pairs))
    assert abs(expected - math.log(2)) > 0.01
    assert float(total) / weight == pytest.approx(expected, abs=1e-5)


def test_bad_settings_and_missing_references():
    with pytest.raises(InputError) as caught:
        DPO(beta=0, label_smoothing=0.5, sft_weight=-1)
    assert len(caught.value.problems) == 3
    with pytest.raises(ValueError, match="reference_logprobs"):
        DPO().collate(examples(1))
