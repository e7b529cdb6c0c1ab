"""Texts that go on from batch to batch: the stream's order, the carried state, and a killed run bit for bit."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_training import hooks_of, settings, tokens, weights

from quatrain.core.errors import InputError
from quatrain.models.classic.elmo import Elmo, ElmoConfig
from quatrain.models.classic.recurrent import RecurrentLM, RecurrentLMConfig
from quatrain.training.objectives import Bidirectional, CarriedCausal, collate
from quatrain.training.streams import CarriedStream, WindowStream
from quatrain.training.trainer import Trainer

CONFIG = RecurrentLMConfig(vocab_size=50, hidden_size=24, embedding_size=16, dropout=0.1, weight_drop=0.1)


def stream(seed=0, rows=4, length=16):
    return CarriedStream(tokens(), length=length, rows=rows, seed=seed)


def test_every_row_goes_on_where_it_ended_and_an_epoch_covers_the_text():
    read = stream()
    batches = [read.next() for _ in range(read.batches)]
    for before, after in pairwise(batches):
        assert torch.equal(before.labels[:, -1], after.input_ids[:, 0])
    text = torch.cat([batch.labels for batch in batches], 1)
    assert text.numel() == 4 * ((3000 - 1) // 4)
    assert read.epoch == 0 and read.next().carry.state is None and read.epoch == 1


def test_the_state_of_a_batch_is_that_of_the_text_before_it():
    model, read, objective = RecurrentLM(CONFIG).initialize(0), stream(), CarriedCausal()
    model.config = CONFIG.replace(dropout=0.0, weight_drop=0.0)
    for layer in model.stack.layers:
        layer.weight_drop = 0.0
    first, second = read.next(), read.next()
    objective.loss(model.train(), first)
    expected = model.carried(first.input_ids)[1]
    for layer, own in zip(first.carry.state, expected, strict=True):
        for part, other in zip(layer, own, strict=True):
            torch.testing.assert_close(part, other)
            assert not part.requires_grad
    loss = objective.loss(model, second)[0]
    whole = model(torch.cat((first.input_ids, second.input_ids), 1), torch.cat((first.labels, second.labels), 1))[1]
    assert float(loss.detach()) == pytest.approx(float(whole[:, 16:].sum().detach()), rel=1e-5)
    before = [part.clone() for layer in second.carry.state for part in layer]
    objective.loss(model.eval(), second)
    after = [part for layer in second.carry.state for part in layer]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_trainer_carries_the_state_from_step_to_step():
    model, read, entries = RecurrentLM(CONFIG.replace(dropout=0.0, weight_drop=0.0)).initialize(0), stream(), []
    run = Trainer(model, CarriedCausal(), read, settings(steps=3, learning_rate=1e-9, warmup_steps=0), steps=3)
    run.hooks.log = entries.append
    run.train()
    other = stream()
    batches = [other.next() for _ in range(3)]
    ids, labels = (torch.cat([getattr(batch, name) for batch in batches], 1) for name in ("input_ids", "labels"))
    whole = model(ids, labels)[1]
    for number, entry in enumerate(entries):
        assert entry["loss"] == pytest.approx(float(whole[:, 16 * number : 16 * (number + 1)].mean()), abs=1e-4)
    assert read.carry.state is not None


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    def trainer(folder):
        model = RecurrentLM(CONFIG).initialize(0)
        return Trainer(
            model, CarriedCausal(), stream(), settings(steps=9, checkpoint_every=4), steps=9, folder=folder,
            hooks=hooks_of(model),
        )  # fmt: skip

    whole = trainer(tmp_path / "whole")
    whole.train()
    killed = trainer(tmp_path / "killed")
    with killed.ready():
        for _ in range(4):
            killed.step()
        killed.save_checkpoint()
        killed.step()
    resumed = trainer(tmp_path / "killed")
    resumed.train()
    assert resumed.steps_done == 9
    for name, tensor in weights(whole.model).items():
        assert torch.equal(weights(resumed.model)[name], tensor), name


def test_a_text_too_short_for_its_rows_is_refused():
    with pytest.raises(InputError, match="too few for 8 rows"):
        CarriedStream(np.arange(10), length=4, rows=8, seed=0)


def test_both_directions_learn():
    model = Elmo(
        ElmoConfig(vocab_size=50, hidden_size=16, word_vocab_size=30, boundary_token_ids=[0, 7], num_filters=8)
    )
    model.initialize(0).learn_words([tokens().tolist()])
    read, entries = WindowStream(tokens(), length=64, rows=2, seed=0), []
    run = Trainer(model, Bidirectional(), read, settings(steps=30, learning_rate=0.01), steps=30)
    run.hooks.log = entries.append
    run.train()
    for name in ("next_word_loss", "previous_word_loss"):
        assert entries[-1][name] < 0.8 * entries[0][name]
    last = entries[-1]
    assert last["loss"] == pytest.approx((last["next_word_loss"] + last["previous_word_loss"]) / 2, rel=1e-4)
    objective = Bidirectional()
    assert objective.loss(model, collate(objective, read.next(), 0))[1] > 0
