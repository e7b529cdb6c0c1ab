"""Policy-gradient losses: golden values by a float64 loop, TRL's losses and gradients, and the faults of the peers."""

import math

import pytest
import torch
from tiny_models import llama, save_random

from quatrain.alignment.grpo import PolicyTokens, group_advantages, overlong_penalty, policy_loss
from quatrain.alignment.variants import VARIANTS, PolicyVariant, variant
from quatrain.core.errors import InputError
from quatrain.models.io import model_folder

LIMIT = 7
LENGTHS = [3, 7, 1, 5, 2, 4]
ADVANTAGES = [1.2, -0.7, 0.3, 0.0, -1.5, 0.8]


def made_up(seed=0, **more):
    """Tokens of six completions, with ratios on both sides of every clip."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.tensor([row for row, length in enumerate(LENGTHS) for _ in range(length)])
    count = len(owners)

    def near(values, spread):
        return values + spread * torch.randn(count, generator=generator)

    logprobs = -2 * torch.rand(count, generator=generator) - 0.1
    old = near(logprobs, 0.3)
    return PolicyTokens(
        logprobs.requires_grad_(),
        old.detach(),
        owners,
        torch.tensor(ADVANTAGES),
        sampler=near(old.detach(), 0.4),
        reference=near(logprobs.detach(), 0.5),
        limit=LIMIT,
        **more,
    )


def by_hand(knobs, tokens):
    """The mean loss of a step, in plain Python floats."""
    rows = [[place for place, owner in enumerate(tokens.owners.tolist()) if owner == row] for row in range(tokens.rows)]
    new, old, sampler, reference = (
        each.detach().double().tolist() for each in (tokens.logprobs, tokens.old, tokens.sampler, tokens.reference)
    )
    sums, count = [], 0
    for row, places in enumerate(rows):
        advantage = float(tokens.advantages[row])
        differences = {place: new[place] - old[place] for place in places}
        total = sum(differences.values())
        losses = []
        for place in places:
            log_ratio = {"token": differences[place], "sequence": total, "sequence_mean": total / len(places)}
            ratio = math.exp(log_ratio[knobs.ratio])
            if knobs.surrogate == "clip":
                bounded = min(max(ratio, 1 - knobs.clip_low), 1 + knobs.clip_high)
                loss = -min(ratio * advantage, bounded * advantage)
            elif knobs.surrogate == "truncate":
                loss = -min(ratio, 1 + knobs.clip_high) * advantage * new[place]
            else:
                loss = -advantage * new[place]
            if knobs.correction != "none":
                level, action = knobs.correction.split("_")
                whole = sum(old[each] - sampler[each] for each in places)
                weight = math.exp(whole if level == "sequence" else old[place] - sampler[place])
                cut = 0.0 if action == "mask" else knobs.correction_limit
                loss *= weight if weight <= knobs.correction_limit else cut
            if knobs.kl_coef and knobs.kl_in == "loss":
                difference = reference[place] - new[place]
                weight = math.exp(log_ratio[knobs.ratio]) if knobs.kl_weighted else 1.0
                loss += knobs.kl_coef * (math.exp(difference) - difference - 1) * weight
            losses.append(loss)
        count += len(places)
        if knobs.aggregation == "sequence_mean":
            sums.append(sum(losses) / len(losses))
        else:
            sums.append(sum(losses) / (tokens.limit if knobs.aggregation == "constant" else 1))
    return sum(sums) / (count if knobs.aggregation == "token_mean" else len(rows))


KNOBS = [
    {},
    {"kl_coef": 0.3},
    {"kl_coef": 0.3, "kl_weighted": False},
    {"correction": "token_truncate", "correction_limit": 1.2},
    {"correction": "token_mask", "correction_limit": 1.2},
    {"correction": "sequence_truncate", "correction_limit": 1.2},
    {"correction": "sequence_mask", "correction_limit": 1.2},
]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(map(str, knobs.values())) or "plain")
def test_the_loss_equals_a_plain_loop(name, knobs):
    settings, tokens = variant(name, **knobs), made_up()
    total, weight, metrics = policy_loss(settings, tokens)
    assert float(total.detach()) / weight == pytest.approx(by_hand(settings, tokens), rel=1e-5)
    assert 0 <= float(metrics["clip_fraction"]) <= weight
    assert float(metrics["kl"]) > 0


GOLDEN = {
    "grpo": 0.0848720,
    "bnpo": 0.1155078,
    "dapo": 0.1151838,
    "dr_grpo": 0.0605041,
    "gspo": 0.0623823,
    "cispo": -0.2327251,
    "rloo": 0.1358805,
    "reinforce": -0.4699421,
    "reinforce_baseline": -0.4699421,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_losses(name):
    """What each variant gives must not drift: numbers of this file's tokens, checked against the plain loop above."""
    total, weight, _ = policy_loss(VARIANTS[name], made_up())
    assert float(total.detach()) / weight == pytest.approx(GOLDEN[name], abs=2e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_do_not_change_the_mean(name):
    settings = variant(name, kl_coef=0.1, correction="sequence_truncate")
    whole = made_up()
    total, weight, _ = policy_loss(settings, whole)
    (total / weight).backward()
    expected = whole.logprobs.grad.clone()
    parts, weights, gradient = 0.0, 0, torch.zeros_like(expected)
    for rows in ([0], [1, 2, 3], [4, 5]):
        kept = torch.isin(whole.owners, torch.tensor(rows))
        part = PolicyTokens(
            whole.logprobs.detach()[kept].requires_grad_(),
            whole.old[kept],
            whole.owners[kept] - rows[0],
            whole.advantages[rows],
            sampler=whole.sampler[kept],
            reference=whole.reference[kept],
            limit=LIMIT,
        )
        part_total, part_weight, _ = policy_loss(settings, part)
        part_total.backward()
        gradient[kept] = part.logprobs.grad
        parts, weights = parts + float(part_total.detach()), weights + part_weight
    assert weights == weight
    assert parts / weights == pytest.approx(float(total.detach()) / weight, rel=1e-5)
    torch.testing.assert_close(gradient / weights, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_step_has_ratio_1_and_kl_0_exactly(name):
    tokens = made_up()
    same = tokens.logprobs.detach().clone()
    tokens = PolicyTokens(
        same.requires_grad_(), same.detach(), tokens.owners, tokens.advantages, reference=same.detach()
    )
    _, weight, metrics = policy_loss(variant(name, kl_coef=0.1), tokens)
    assert float(metrics["ratio"]) == pytest.approx(weight, rel=1e-6)
    assert float(metrics["kl"]) == float(metrics["clip_fraction"]) == 0


def test_the_divergence_is_minimised():
    """A step against the gradient of the KL term brings the policy nearer to the reference, never further away."""
    tokens = made_up()
    level = PolicyTokens(
        tokens.logprobs,
        tokens.logprobs.detach(),
        tokens.owners,
        torch.zeros(6),
        reference=tokens.reference,
        limit=LIMIT,
    )
    total, _, _ = policy_loss(variant("grpo", kl_coef=1.0), level)
    total.backward()
    moved = tokens.logprobs.detach() - 0.1 * tokens.logprobs.grad
    distance = (tokens.reference - tokens.logprobs.detach()).abs().sum()
    assert (tokens.reference - moved).abs().sum() < distance


def test_advantages_of_groups():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, math.nan, 2.0, math.nan, math.nan])
    groups = torch.tensor([3, 3, 3, 3, 7, 7, 7, 8, 8, 8])
    result = group_advantages(rewards, groups, variant("grpo"))
    spread = float(torch.tensor([1.0, 0.0, 0.0, 1.0]).std()) + 1e-4
    assert result.groups == 3
    assert result.without_spread == 2
    assert result.values[:4].tolist() == pytest.approx([0.5 / spread, -0.5 / spread, -0.5 / spread, 0.5 / spread])
    assert result.values[4:].tolist() == [0.0] * 6
    rloo = group_advantages(rewards, groups, variant("rloo")).values
    assert rloo[:4].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert rloo[4:].tolist() == [0.0] * 6
    plain = group_advantages(rewards, groups, variant("dr_grpo")).values
    assert plain[:4].tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5])
    bare = group_advantages(rewards, groups, variant("reinforce")).values
    assert bare[4:].tolist() == [0.5, 0.5, 0.0, 2.0, 0.0, 0.0]
    mean = (1 + 1 + 0.5 + 0.5 + 2) / 7
    batch = group_advantages(rewards, groups, variant("reinforce_baseline")).values
    assert batch.tolist() == pytest.approx([r - mean if r == r else 0.0 for r in rewards.tolist()], abs=1e-6)


def test_a_baseline_is_not_that_of_the_first_rollout():
    """Groups in any order have baselines of their own: the second group's differs from the first one's."""
    rewards, groups = torch.tensor([0.0, 10.0, 1.0, 12.0]), torch.tensor([0, 1, 0, 1])
    values = group_advantages(rewards, groups, variant("dr_grpo")).values
    assert values.tolist() == [-0.5, -1.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_groups_without_spread_have_zero_gradient(name):
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7])
    result = group_advantages(rewards, torch.tensor([0, 0, 0, 1, 1, 1]), variant(name))
    assert result.without_spread == 2
    tokens = made_up()
    tokens = PolicyTokens(tokens.logprobs, tokens.old, tokens.owners, result.values, limit=LIMIT)
    policy_loss(variant(name), tokens)[0].backward()
    assert not tokens.logprobs.grad.any()


def test_the_overlong_penalty_falls_to_minus_one():
    lengths = torch.tensor([10, 80, 90, 100])
    assert overlong_penalty(lengths, 100, 0.2).tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0])
    assert not overlong_penalty(lengths, 100, 0.0).any()


def test_names_and_values_are_checked():
    with pytest.raises(InputError, match="must be one of grpo, bnpo, dapo, dr_grpo, gspo, cispo, rloo, reinforce"):
        variant("gpro")
    with pytest.raises(InputError, match="beta: not a setting of the loss"):
        variant("grpo", beta=0.1)
    with pytest.raises(InputError) as caught:
        PolicyVariant(baseline="first", clip_low=-1, kl_coef=math.nan, mask_truncated=1)
    assert len(caught.value.problems) == 4
    with pytest.raises(InputError, match="clip_low"):
        PolicyVariant(clip_low=1.5)
    for needs in ({"kl_coef": 0.1}, {"correction": "token_mask"}):
        tokens = made_up()
        bare = PolicyTokens(tokens.logprobs, tokens.old, tokens.owners, tokens.advantages)
        with pytest.raises(ValueError, match="log-probabilities"):
            policy_loss(variant("grpo", **needs), bare)


def test_no_two_variants_are_the_same():
    """A variant's name is never ignored: each differs from every other in its knobs, and most in this loss."""
    assert len({repr(knobs) for knobs in VARIANTS.values()}) == len(VARIANTS)


# TRL's trainers on the same batch and weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("trl")
    from quatrain.tokenizers.tokenizer import Tokenizer

    place = tmp_path_factory.mktemp("trl")
    Tokenizer.train(["count the apples in the basket now"] * 3, vocab_size=300).save(place / "policy")
    save_random(llama(vocab_size=300), place / "policy", 0)
    return place


def trainer_of(folder, kind):
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = getattr(trl, f"{kind}Config")(
        str(folder / "out"),
        report_to=[],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=6,
        num_generations=3,
        max_completion_length=LIMIT,
        beta=0.0,
    )
    return getattr(trl, f"{kind}Trainer")(
        AutoModelForCausalLM.from_pretrained(folder / "policy"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["count the"]}),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )


@pytest.fixture(scope="module")
def grpo_trainer(folder):
    return trainer_of(folder, "GRPO")


@pytest.fixture(scope="module")
def rloo_trainer(folder):
    return trainer_of(folder, "RLOO")


def batch_of_six(seed=0):
    """Six prompts of four tokens with completions of `LENGTHS`, in TRL's form."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(6, LIMIT, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    prompts = torch.randint(1, 300, (6, 4), generator=generator)
    completions = torch.randint(1, 300, (6, LIMIT), generator=generator) * mask
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": mask.sum(),
    }


def flat_logprobs(model, inputs):
    """The log-probabilities (N,) of the completion tokens, in the order of the rows."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    logits = model(ids)[0][:, 3:-1].log_softmax(-1)
    kept = inputs["completion_mask"].bool()
    return logits[kept].gather(-1, inputs["completion_ids"][kept][:, None])[:, 0], kept


def ours_of(folder, settings, inputs, old, reference, correction=None):
    model = model_folder.load(folder / "policy").train()
    logprobs, kept = flat_logprobs(model, inputs)
    tokens = PolicyTokens(
        logprobs,
        old[kept],
        kept.nonzero()[:, 0],
        inputs["advantages"],
        sampler=None if correction is None else correction[kept],
        reference=reference[kept],
        limit=LIMIT,
    )
    total, weight, _ = policy_loss(settings, tokens)
    (total / weight).backward()
    return float(total.detach()) / weight, {name: each.grad for name, each in model.named_parameters()}


def same_gradients(trainer, gradients):
    theirs = {name.removeprefix("model."): each.grad for name, each in trainer.model.named_parameters()}
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=3e-6)


def shifted(folder, inputs, spread, seed):
    """Log-probabilities (6, LIMIT) near those of the policy."""
    with torch.no_grad():
        logprobs, kept = flat_logprobs(model_folder.load(folder / "policy"), inputs)
    generator = torch.Generator().manual_seed(seed)
    result = torch.zeros(kept.shape)
    result[kept] = logprobs + spread * torch.randn(len(logprobs), generator=generator)
    return result


TRL_NAMES = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}


@pytest.mark.parametrize(("kl_coef", "weighted"), [(0.0, True), (0.2, True), (0.2, False)])
@pytest.mark.parametrize("name", TRL_NAMES)
def test_equals_trl(folder, grpo_trainer, name, kl_coef, weighted):
    usual = {"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2}
    for key, value in {**usual, **TRL_NAMES[name], "beta": kl_coef}.items():
        setattr(grpo_trainer, key, value)
    inputs = batch_of_six()
    old, reference = shifted(folder, inputs, 0.3, 1), shifted(folder, inputs, 0.5, 2)
    grpo_trainer.current_gradient_accumulation_steps = 1
    grpo_trainer.args.steps_per_generation = 1
    grpo_trainer.args.use_bias_correction_kl = weighted
    grpo_trainer.model.train().zero_grad()
    theirs = grpo_trainer._compute_loss(
        grpo_trainer.model, {**inputs, "old_per_token_logps": old, "ref_per_token_logps": reference}
    )
    theirs.backward()
    loss, gradients = ours_of(folder, variant(name, kl_coef=kl_coef, kl_weighted=weighted), inputs, old, reference)
    assert loss == pytest.approx(float(theirs.detach()), abs=1e-6, rel=1e-5)
    same_gradients(grpo_trainer, gradients)


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate", "token_mask", "sequence_mask"])
def test_the_sampler_correction_equals_trl(folder, grpo_trainer, mode):
    inputs = batch_of_six()
    old, sampler = shifted(folder, inputs, 0.3, 1), shifted(folder, inputs, 0.6, 3)
    difference = (old - sampler) * inputs["completion_mask"]
    ratio = (difference.sum(-1, keepdim=True) if "sequence" in mode else difference).exp()
    ratio = ratio.clamp(max=1.5) if "truncate" in mode else ratio.masked_fill(ratio > 1.5, 0.0)
    for key, value in {"loss_type": "grpo", "importance_sampling_level": "token", "epsilon_low": 0.2}.items():
        setattr(grpo_trainer, key, value)
    grpo_trainer.epsilon_high, grpo_trainer.beta, grpo_trainer.use_vllm = 0.2, 0.0, True
    grpo_trainer.vllm_importance_sampling_correction = True
    grpo_trainer.current_gradient_accumulation_steps = 1
    try:
        grpo_trainer.model.train().zero_grad()
        theirs = grpo_trainer._compute_loss(
            grpo_trainer.model, {**inputs, "old_per_token_logps": old, "importance_sampling_ratio": ratio}
        )
    finally:
        grpo_trainer.use_vllm = False
    theirs.backward()
    settings = variant("grpo", correction=mode, correction_limit=1.5)
    loss, gradients = ours_of(folder, settings, inputs, old, torch.zeros_like(old), sampler)
    assert loss == pytest.approx(float(theirs.detach()), abs=1e-6, rel=1e-5)
    same_gradients(grpo_trainer, gradients)


def test_rloo_equals_trl(folder, rloo_trainer):
    inputs = batch_of_six()
    old = shifted(folder, inputs, 0.1, 1)
    rloo_trainer.model.train().zero_grad()
    theirs = rloo_trainer._compute_loss(rloo_trainer.model, {**inputs, "old_logps": old.sum(-1)})
    theirs.backward()
    loss, gradients = ours_of(folder, variant("rloo"), inputs, old, torch.zeros_like(old))
    assert loss == pytest.approx(float(theirs.detach()), abs=1e-6, rel=1e-5)
    same_gradients(rloo_trainer, gradients)
