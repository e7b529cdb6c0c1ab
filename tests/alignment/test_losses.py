"""Invariants of the preference objectives: first losses, masks, padding, end tokens, micro-batches, references."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from tiny_models import gpt2, llama, random_model

from quatrain.adapters.apply import adapters_disabled, apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.alignment import held_out
from quatrain.alignment.dpo import DPO, PreferenceExample, answer_logprobs, reference_logprobs
from quatrain.alignment.kto import KTO, RatedExample, balanced_weights, rated_references, with_unrelated
from quatrain.alignment.losses import LOSSES, NAMES
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.training.chunked_loss import chunking
from quatrain.training.objectives.metrics import MetricSums

PAIRS = [
    PreferenceExample([1, 5, 9], [20, 21, 2], [30, 2]),
    PreferenceExample([1, 6], [22, 2], [31, 32, 33, 34, 2]),
    PreferenceExample([1, 7, 8, 9, 10], [23, 24, 25, 2], [2]),
]
RATED = [
    RatedExample([1, 5, 9], [20, 21, 2], True),
    RatedExample([1, 6], [31, 32, 33, 2], False),
    RatedExample([1, 7, 8], [23, 2], True),
]


def options(name):
    return {"label_smoothing": 0.2} if "label_smoothing" in LOSSES[name].reads else {}


def objective_and_examples(name, model, **more):
    """The objective of any loss with its examples, whose references are the model's own."""
    if name == "kto":
        return KTO(**more), rated_references(model, with_unrelated(RATED), pad_id=more.get("pad_id", 0))
    return DPO(loss=name, **options(name), **more), reference_logprobs(model, PAIRS, pad_id=more.get("pad_id", 0))


@pytest.mark.parametrize("name", ["sigmoid", "cdpo", "robust", "ipo", "hinge", "kto"])
def test_first_losses_are_exact(name):
    """One batch gives references and policy, so the float32 values are the same to the last bit."""
    model = random_model(llama())
    objective, examples = objective_and_examples(name, model)
    batch = objective.collate(examples)
    with torch.no_grad():
        total, weight, metrics = objective.loss(model, batch)
    ln2 = float(torch.tensor(2.0).log())
    exact = {"sigmoid": ln2, "cdpo": ln2, "robust": ln2, "ipo": 25.0, "hinge": 1.0, "kto": 0.5}[name]
    if name == "sigmoid":
        assert float(total) / weight == exact == float(torch.tensor(math.log(2)))
    assert float(total) / weight == pytest.approx(exact, rel=1e-6)
    sums = MetricSums()
    sums.add(metrics)
    assert sums.means(weight)["rewards/chosen"] == sums.means(weight)["rewards/rejected"] == 0.0
    objective.check_start(model, examples)
    with pytest.raises(InputError, match="must equal its reference"):
        objective.check_start(random_model(llama(), 5), examples)


@pytest.mark.parametrize("ratings", [(True, False, False, False), (True, True, True, False), (True, True, True, True)])
def test_log_probabilities_of_kto_are_means_over_the_answers_they_name(ratings):
    model = random_model(llama())
    rated = [replace(RATED[number % len(RATED)], desirable=good) for number, good in enumerate(ratings)]
    objective = KTO()
    examples = objective.add_references(random_model(llama(), 1), with_unrelated(rated))
    by_hand = {True: [], False: []}
    for example in examples:
        batch = objective.collate([example])
        logprob = answer_logprobs(model, batch.input_ids, batch.labels).detach()
        by_hand[example.desirable].append(float(logprob))
    measured = held_out.measure(model, objective, examples, batch_tokens=16)  # several micro-batches
    assert measured["logps/chosen"] == pytest.approx(fmean(by_hand[True]), rel=1e-5)
    if by_hand[False]:
        assert measured["logps/rejected"] == pytest.approx(fmean(by_hand[False]), rel=1e-5)
    else:
        assert "logps/rejected" not in measured and "rewards/rejected" not in measured


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    """Other padding tokens, and hidden states of 100 and NaN at padding, give the same loss and gradients."""

    def run(pad_id=0, poison=None):
        model = random_model(llama())
        objective, examples = objective_and_examples(name, random_model(llama(), 1), pad_id=pad_id)
        if poison is not None:
            whole = model.hidden_states

            def poisoned(input_ids, **inputs):
                hidden = whole(input_ids, **inputs)
                padding = torch.ones_like(input_ids, dtype=torch.bool)
                for row, length in zip(padding, lengths[input_ids.data_ptr()], strict=True):
                    row[:length] = False
                return hidden.masked_fill(padding[..., None], poison)

            model.hidden_states = poisoned
        batch = objective.collate(examples)
        lengths = {}
        for ids, labels in (
            (batch.input_ids, batch.labels),
            *[(b.unrelated_ids, b.unrelated_labels) for b in [batch] if name == "kto"],
        ):
            lengths[ids.data_ptr()] = [int((row != IGNORE_INDEX).nonzero().max()) + 1 for row in labels]
        total, _, _ = objective.loss(model, batch)
        total.backward()
        return float(total.detach()), model.layers[0].mlp.up_proj.weight.grad

    loss, gradient = run()
    for more in ({"pad_id": 59}, {"poison": 100.0}, {"poison": math.nan}):
        other, same = run(**more)
        assert other == loss
        assert torch.equal(same, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_masked_and_the_end_token_is_learned_where_it_is_the_padding_too(name):
    model = random_model(llama())
    objective, examples = objective_and_examples(name, model, pad_id=2)  # 2 ends every answer
    batch = objective.collate(examples)
    if name == "kto":
        expected = [list(each.answer) for each in examples]
    else:
        expected = [list(each.chosen) for each in examples] + [list(each.rejected) for each in examples]
    assert [row[row != IGNORE_INDEX].tolist() for row in batch.labels] == expected
    assert all(row[-1] == 2 for row in expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kto"])
def test_micro_batches_do_not_change_loss_and_gradients(name):
    results = []
    for size in (3, 2, 1):
        model = random_model(llama())
        objective, examples = objective_and_examples(name, random_model(llama(), 1))
        total, weight = 0.0, 0
        for start in range(0, 3, size):
            loss, count, _ = objective.loss(model, objective.collate(examples[start : start + size]))
            loss.backward()
            total, weight = total + float(loss.detach()), weight + count
        results.append((total / weight, model.layers[0].mlp.up_proj.weight.grad / weight))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "kto"])
def test_the_base_under_the_adapter_is_the_reference(name):
    """With reference="base" nothing is precomputed, and no second model is needed."""
    model = random_model(llama())
    apply_adapter(model, AdapterSettings(method="lora", rank=2))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    precomputed, examples = objective_and_examples(name, model)
    with adapters_disabled(model):
        again = objective_and_examples(name, model)[1]
    assert examples == again, "references are those of the base, whether or not the caller disabled the adapter"
    online = KTO(reference="base") if name == "kto" else DPO(loss=name, reference="base")
    bare = with_unrelated(RATED) if name == "kto" else PAIRS
    losses, gradients = [], []
    for objective, rows in ((precomputed, examples), (online, bare)):
        model.zero_grad()
        total, _, metrics = objective.loss(model.train(), objective.collate(rows))
        total.backward()
        losses.append(float(total.detach()))
        gradients.append([each.grad.clone() for each in model.parameters() if each.grad is not None])
        sums = MetricSums()
        sums.add(metrics)
        assert abs(sums.total("rewards/chosen")) > 0.01 and model.training
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "orpo"])
def test_chunks_of_logits_change_nothing(name):
    results = []
    for mode in (False, True):
        model = random_model(llama())
        objective, examples = objective_and_examples(name, random_model(llama(), 1))
        with chunking(mode):
            total, _, _ = objective.loss(model, objective.collate(examples))
            total.backward()
        results.append((total.detach(), model.lm_head.weight.grad, model.layers[0].mlp.up_proj.weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


LONG = [
    PreferenceExample(list(range(1, 30)), [20, 21, 2], [30, 2]),
    PreferenceExample(list(range(5, 25)), [22, 2], [31, 32, 33, 34, 2]),
    PreferenceExample([7], [23, 24, 2], [2]),
]


@pytest.mark.parametrize("position", ["rotary", "learned"])
@pytest.mark.parametrize("training", [False, True])
def test_answers_that_share_their_prompt_have_the_same_loss_and_gradients(position, training):
    config = llama(max_position_embeddings=40) if position == "rotary" else gpt2(max_position_embeddings=40)
    results = []
    for share in (False, True):
        model = random_model(config).train(training)
        examples = reference_logprobs(random_model(config, 1), LONG, share_prompts=share)
        objective = DPO(share_prompts=share, sft_weight=0.5)
        batch = objective.collate(examples)
        assert (batch.branches is not None) == share and batch.shape == ((3, 40) if share else (6, 32))
        total, weight, metrics = objective.loss(model, batch)
        total.backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        results.append((total.detach(), gradients, [float(value) for value in metrics.values()]))
        assert weight == 3
        same = objective_and_first(model, share)
        assert same == float(torch.tensor(2.0).log())
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def objective_and_first(model, share):
    """The first loss, where the references are of the same layout: exactly ln 2."""
    objective = DPO(share_prompts=share)
    batch = objective.collate(reference_logprobs(model, LONG, share_prompts=share))
    with torch.no_grad():
        total, weight, _ = objective.loss(model.eval(), batch)
    return float(total) / weight


def test_prompts_are_shared_only_where_it_pays_and_where_the_model_can():
    assert DPO(share_prompts=True).collate(reference_logprobs(random_model(llama()), PAIRS)).branches is None
    sliding = llama(max_position_embeddings=40).replace(sliding_window=4, layer_types=("sliding", "full"))
    assert llama().supports_branches and not sliding.supports_branches
    model = random_model(sliding)
    with pytest.raises(InputError, match="cannot read texts that share their beginning"):
        reference_logprobs(model, LONG, share_prompts=True)
    with pytest.raises(InputError, match="no positions are given"):
        model = random_model(llama())
        model.hidden_states(torch.tensor([[1, 2, 3]]), branches=torch.tensor([[0, 1, 2]]))


def test_a_name_is_never_ignored():
    with pytest.raises(InputError, match=r"loss: 'sigmod' is unknown.*did you mean sigmoid"):
        DPO(loss="sigmod")
    with pytest.raises(InputError, match="single rated answers"):
        DPO(loss="kto")
    totals = {}
    for name in NAMES:
        objective, examples = objective_and_examples(name, random_model(llama(), 1))
        totals[name] = float(objective.loss(random_model(llama()), objective.collate(examples))[0].detach())
    assert len({round(total, 5) for total in totals.values()}) == len(NAMES), "each name has a loss of its own"


def test_settings_that_a_loss_does_not_read_are_refused():
    for arguments, words in (
        ({"label_smoothing": 0.1}, "does not read it, only 'cdpo' and 'robust'"),
        ({"simpo_gamma": 0.1}, "only 'simpo'"),
        ({"loss": "cdpo"}, "needs a share above 0"),
        ({"loss": "robust", "label_smoothing": 0.5}, "below 0.5"),
        ({"loss": "orpo", "sft_weight": 1.0}, "already has the chosen answers' loss"),
        ({"reference": "copy"}, 'must be "precomputed" or "base"'),
    ):
        with pytest.raises(InputError) as caught:
            DPO(**arguments)
        assert len(caught.value.problems) == 1 and words in caught.value.problems[0]
    with pytest.raises(InputError) as caught:
        KTO(beta=0, desirable_weight=-1, undesirable_weight=-1, reference="")
    assert len(caught.value.problems) == 4


def test_usual_beta_of_each_loss():
    assert DPO().beta == 0.1 and DPO(loss="simpo").beta == 2.0 and DPO(loss="simpo", beta=0.3).beta == 0.3


def test_unrelated_answers_are_of_other_prompts():
    same = [
        RatedExample([1], [3], True),
        RatedExample([1], [4], False),
        RatedExample([2], [5], True),
        RatedExample([1], [6], True),
    ]
    paired = with_unrelated(same)
    assert [each.unrelated for each in paired] == [[5], [5], [4], [5]]
    for example in paired:
        owner = next(each for each in same if each.answer == example.unrelated)
        assert owner.prompt != example.prompt
    with pytest.raises(InputError, match="at least two different prompts"):
        with_unrelated(same[:2])
    with pytest.raises(ValueError, match="with_unrelated"):
        KTO().collate(same)
    with pytest.raises(ValueError, match="reference_logprobs"):
        KTO().collate(paired)
    assert balanced_weights(30, 10) == (1.0, 3.0) and balanced_weights(10, 30) == (3.0, 1.0)
    assert balanced_weights(0, 3) == (1.0, 1.0)
