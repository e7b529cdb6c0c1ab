"""Replaced-token detection: what is replaced and by what, its loss, the same draws from one seed."""

import objective_setup as setup
import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer.stack import Model
from quatrain.training import objectives as o

WORDPIECE = setup.wordpiece()
SIZES = {"vocab_size": WORDPIECE.vocab_size, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 48, "pad_token_id": WORDPIECE.pad_id}  # fmt: skip
ROWS = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [9, 9, 8, 7, 12]]


def network(head: str, seed: int = 0) -> Model:
    return Model(fresh_config("electra", SIZES, head=head)).initialize(seed)


def detection(**options):
    return o.ReplacedTokens(WORDPIECE, network("masked"), mask_ratio=0.4, max_length=48, **options)


def test_replaced_tokens_are_the_generators_and_labelled():
    objective = detection()
    batch = objective.collate(ROWS, seed=3)
    original, _ = batch.labels
    corrupted, labels = objective.corrupted(batch)
    masked = original != IGNORE_INDEX
    assert masked.sum() == 6  # 0.4 of 10 and of 5 tokens
    assert (batch.input_ids[masked] == WORDPIECE.mask_id).all() and torch.equal(
        corrupted.input_ids[~masked], batch.input_ids[~masked]
    )
    assert torch.equal(labels == 1, masked & (corrupted.input_ids != original))
    assert torch.equal(labels == IGNORE_INDEX, batch.segments == 0)
    again, _ = objective.corrupted(objective.collate(ROWS, seed=3))
    other, _ = objective.corrupted(objective.collate(ROWS, seed=4))
    assert torch.equal(corrupted.input_ids, again.input_ids) and not torch.equal(corrupted.input_ids, other.input_ids)


def test_draws_follow_the_generators_distribution():
    objective = detection(temperature=0.7)
    many = objective.collate([ROWS[0]] * 400, seed=0)
    ids, original, segments = (part[:1].expand(400, -1) for part in (many.input_ids, many.labels[0], many.segments))
    batch = TokenBatch.of(ids.clone(), (original, many.labels[1]), segments=segments)
    place = int((original[0] != IGNORE_INDEX).nonzero()[0])
    drawn = objective.corrupted(batch)[0].input_ids[:, place]
    with torch.no_grad():
        hidden = objective.generator.hidden_states(batch.input_ids[:1], segments=batch.segments[:1])
        expected = (objective.generator.lm_logits(hidden)[0, place] / 0.7).softmax(-1)
    shares = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert (shares - expected).abs().max() < 5 * (0.25 / len(drawn)) ** 0.5


def test_the_loss_is_the_binary_cross_entropy_of_every_token():
    objective, model = detection(), network("replaced_tokens", 1)
    batch = objective.collate(ROWS, seed=3)
    total, weight, metrics = objective.loss(model, batch)
    corrupted, labels = objective.corrupted(batch)
    logits, _ = model(corrupted.input_ids, segments=corrupted.segments)
    known = labels != IGNORE_INDEX
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known].float())
    torch.testing.assert_close(total / weight, expected)
    assert weight == int(known.sum()) and metrics["replaced"] == (labels == 1).sum()
    total.backward()
    assert all(parameter.grad is None for parameter in objective.generator.parameters())
    assert model.embed_tokens.weight.grad is not None


def test_a_generator_that_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="trains masked"):
        o.ReplacedTokens(WORDPIECE, network("replaced_tokens"))
    small = Model(fresh_config("electra", SIZES | {"vocab_size": 12}, head="masked"))
    with pytest.raises(InputError, match="vocabulary"):
        o.ReplacedTokens(WORDPIECE, small)
    with pytest.raises(InputError, match="trains replaced_tokens"):
        detection().loss(network("masked"), detection().collate(ROWS))
