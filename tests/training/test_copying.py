"""The copying stream: random tokens said twice; taking turns with another stream; cursors."""

import numpy as np
import torch
from tiny_models import llama

from quatrain.data.batches import IGNORE_INDEX
from quatrain.models.transformer.stack import Model
from quatrain.training.objectives import Causal
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import AlternatingStream, CopyStream, WindowStream
from quatrain.training.trainer import Trainer


def stream(seed=0, rows=4):
    return CopyStream(range(2, 20), 1, length=32, rows=rows, seed=seed)


def test_every_learned_token_was_said_before_and_nothing_else_is_learned():
    for batch in (stream().next() for _ in range(5)):
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            text = [*ids, labels[-1] if labels[-1] != IGNORE_INDEX else 0]
            parts, part = [], []
            for place, token in enumerate(text):
                part.append(place)
                if token == 1:
                    parts.append(part)
                    part = []
            for first, second in zip(parts[::2], parts[1::2], strict=False):
                assert [text[i] for i in first] == [text[i] for i in second]
                assert all(labels[i - 1] == text[i] for i in second)
                assert all(labels[i - 1] == IGNORE_INDEX for i in first if i)


def test_batches_follow_from_seed_and_number():
    one, other = stream(), stream()
    seen = [one.next() for _ in range(3)]
    other.load_state({"index": 2})
    assert torch.equal(other.next().input_ids, seen[2].input_ids)
    assert not torch.equal(stream(seed=1).next().input_ids, seen[0].input_ids)


def test_turns_come_first_and_then_now_and_again():
    windows = WindowStream(np.arange(1000) % 50 + 100, length=32, rows=4, seed=0)
    turns = AlternatingStream(stream(), 3, windows, every=4)
    kinds = "".join("c" if turns.next().input_ids.max() < 100 else "w" for _ in range(12))
    assert kinds == "cccwwwcwwwcw"
    again = AlternatingStream(stream(), 3, WindowStream(np.arange(1000) % 50 + 100, length=32, rows=4, seed=0), every=4)
    again.load_state(turns.state())
    for _ in range(6):
        assert torch.equal(again.next().input_ids, turns.next().input_ids)


def test_a_small_model_learns_to_copy_what_it_never_saw():
    config = llama(vocab_size=20, hidden_size=48, intermediate_size=96, num_attention_heads=2, tie_word_embeddings=True)
    model = Model(config).initialize(0)
    settings = TrainSettings(steps=200, batch_tokens=512, learning_rate=6e-3, optimizer="muon", precision="float32")
    Trainer(model, Causal(), stream(rows=16), settings, steps=200).train()
    batch = stream(seed=99, rows=64).next()
    with torch.no_grad():
        logits, _ = model(batch.input_ids)
    learned = batch.labels != IGNORE_INDEX
    accuracy = (logits.argmax(-1)[learned] == batch.labels[learned]).float().mean()
    assert accuracy > 0.4  # the commonest guess would be right about once in ten times
