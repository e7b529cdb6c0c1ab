"""Losses and gradients of every variant equal TRL's on the same batch and the same weights."""

import math

import pytest
import torch
from tiny_models import llama, save_random

from quatrain.alignment.dpo import DPO, PreferenceExample, reference_logprobs
from quatrain.alignment.kto import KTO, RatedExample, rated_references
from quatrain.alignment.losses import LOSSES, NAMES
from quatrain.models.io import model_folder
from quatrain.tokenizers.tokenizer import Tokenizer

trl = pytest.importorskip("trl")

ROWS = {
    "prompt": ["count the", "now in", "a", "basket"],
    "chosen": [" apples", " the basket now", " b", " in the"],
    "rejected": [" count count", " it", " the basket", " apples now in"],
}
RATED = {"prompt": ROWS["prompt"], "completion": ROWS["chosen"], "label": [True, False, True, False]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A policy and a reference, in folders that both sides read."""
    folder = tmp_path_factory.mktemp("trl")
    tokenizer = Tokenizer.train(["count the apples in the basket now"] * 3, vocab_size=300)
    for name, seed in (("policy", 0), ("reference", 1)):
        tokenizer.save(folder / name)
        save_random(llama(vocab_size=300), folder / name, seed)
    return folder


def theirs(place, name="policy"):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place / name)


def options(place, **more):
    return {"output_dir": str(place / "out"), "report_to": [], "use_cpu": True, "bf16": False,
            "per_device_train_batch_size": 4, **more}  # fmt: skip


def tokens(place):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place / "policy")


def compare(place, objective, examples, trainer_model, loss, *, parts=2):
    """Our loss and gradients, over one or several micro-batches, against theirs."""
    loss.backward()
    expected = {name: weight.grad for name, weight in trainer_model.named_parameters() if weight.grad is not None}
    for size in {len(examples), parts}:
        model = model_folder.load(place / "policy")
        total, weight = 0.0, 0
        for start in range(0, len(examples), size):
            part, count, _ = objective.loss(model, objective.collate(examples[start : start + size]))
            part.backward()
            total, weight = total + float(part), weight + count
        assert total / weight == pytest.approx(float(loss), rel=1e-5, abs=1e-6)
        ours = {name: each.grad / weight for name, each in model.named_parameters() if each.grad is not None}
        for name, gradient in ours.items():
            names = [f"model.{name}", name]
            other = next(expected[each] for each in names if each in expected)
            torch.testing.assert_close(gradient, other, atol=2e-6, rtol=1e-4)
        assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-4


def dpo_trainer(place, rows=ROWS, **more):
    from datasets import Dataset

    trainer = trl.DPOTrainer(
        theirs(place),
        theirs(place, "reference"),
        args=trl.DPOConfig(**options(place, **more)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokens(place),
    )
    return trainer, [trainer.train_dataset[index] for index in range(len(rows["prompt"]))]


def as_pairs(place, read):
    pairs = [PreferenceExample(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in read]
    return reference_logprobs(model_folder.load(place / "reference"), pairs)


@pytest.mark.parametrize(
    ("loss", "more"),
    [("sigmoid", {}), ("hinge", {}), ("ipo", {}), ("robust", {"label_smoothing": 0.2})],
)
def test_pairs_with_a_reference(place, loss, more):
    trainer, read = dpo_trainer(place, loss_type=loss, beta=0.3, **more)
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(read))
    compare(place, DPO(loss=loss, beta=0.3, **more), as_pairs(place, read), trainer.model, expected)


def test_conservative_smoothing(place):
    """TRL has this formula as `aot`, which for a single pair is conservative DPO."""
    rows = {name: texts[:1] for name, texts in ROWS.items()}
    trainer, read = dpo_trainer(place, rows, loss_type="aot", beta=0.3, label_smoothing=0.2)
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(read))
    objective = DPO(loss="cdpo", beta=0.3, label_smoothing=0.2)
    compare(place, objective, as_pairs(place, read), trainer.model, expected, parts=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_kto(place, weights):
    from datasets import Dataset

    trainer = trl.KTOTrainer(
        theirs(place),
        theirs(place, "reference"),
        args=trl.KTOConfig(**options(place, beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])),
        train_dataset=Dataset.from_dict(RATED),
        processing_class=tokens(place),
    )
    read = [trainer.train_dataset[index] for index in range(4)]
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(read))
    examples = [
        RatedExample(row["prompt_ids"], row["completion_ids"], row["label"], row["KL_completion_ids"]) for row in read
    ]
    examples = rated_references(model_folder.load(place / "reference"), examples)
    objective = KTO(beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    compare(place, objective, examples, trainer.model, expected, parts=4)


def test_kto_with_a_positive_divergence(place):
    """The KL term matters: with policy and reference swapped its sign changes, and one of the two is above 0."""
    examples = [RatedExample([1, 2], [3, 4], True, [5]), RatedExample([6], [7], False, [8, 9, 10])]
    estimates = []
    for policy, reference in (("policy", "reference"), ("reference", "policy")):
        rated = rated_references(model_folder.load(place / reference), examples)
        model = model_folder.load(place / policy)
        objective = KTO(beta=0.3)
        total, _, metrics = objective.loss(model, objective.collate(rated))
        kl = float(metrics["kl"]) / 2
        estimates.append(kl)
        gains = [float(metrics[f"rewards/{part}"].total) / 0.3 for part in ("chosen", "rejected")]
        by_hand = [1 - 1 / (1 + math.exp(-0.3 * (gains[0] - kl))), 1 - 1 / (1 + math.exp(-0.3 * (kl - gains[1])))]
        assert float(total) == pytest.approx(sum(by_hand), rel=1e-5)
    assert min(estimates) == 0 < max(estimates)


def unreferenced(place, kind, config):
    """A trainer of TRL without a reference, and the batch of ROWS. Chosen answers are equally long, prompts one token.

    TRL averages the likelihood of ORPO over all tokens of the batch, prompts included. Both means are equal then.
    """
    from datasets import Dataset

    trainer = kind(theirs(place), args=config, train_dataset=Dataset.from_dict(ROWS), processing_class=tokens(place))
    pairs = [
        PreferenceExample([5], [10, 11, 2], [12, 2]),
        PreferenceExample([6], [13, 14, 2], [15, 16, 17, 2]),
        PreferenceExample([7], [20, 21, 2], [2]),
        PreferenceExample([8], [22, 23, 2], [24, 25, 2]),
    ]
    batch = {}
    for side in ("chosen", "rejected"):
        rows = [[*pair.prompt, *getattr(pair, side)] for pair in pairs]
        width = max(map(len, rows))
        for key, fill, values in (
            ("input_ids", 0, rows),
            ("attention_mask", 0, [[1] * len(row) for row in rows]),
            ("labels", -100, [[-100, *row[1:]] for row in rows]),
        ):
            batch[f"{side}_{key}"] = torch.tensor([row + [fill] * (width - len(row)) for row in values])
    return trainer, pairs, batch


def test_orpo(place):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config = ORPOConfig(**options(place, beta=0.3))
    trainer, pairs, batch = unreferenced(place, ORPOTrainer, config)
    expected, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    compare(place, DPO(loss="orpo", beta=0.3), pairs, trainer.model, expected)


def test_simpo(place):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(**options(place, beta=2.0, loss_type="simpo", simpo_gamma=0.7, cpo_alpha=0.0))
    trainer, pairs, batch = unreferenced(place, CPOTrainer, config)
    expected, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    compare(place, DPO(loss="simpo", simpo_gamma=0.7), pairs, trainer.model, expected)


def test_every_variant_is_compared():
    compared = {"sigmoid", "hinge", "ipo", "robust", "cdpo", "kto", "orpo", "simpo"}
    assert set(NAMES) == compared == {*LOSSES, "kto"}
