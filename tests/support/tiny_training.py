"""A tiny model, a text that it can learn, and the settings of a run of seconds: what the tests of training share."""

import numpy as np
from tiny_models import llama

from quatrain.data.batches import TokenExample
from quatrain.models.io import model_folder
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import WindowStream
from quatrain.training.trainer import Hooks

CONFIG = llama(vocab_size=50, intermediate_size=64, tie_word_embeddings=True)


def tokens(count=3000, seed=0):
    # A noisy cycle: something that can be learned, and that is not learned at once.
    generator = np.random.default_rng(seed)
    return ((np.arange(count) * 7 + generator.integers(0, 3, count)) % 50).astype(np.uint16)


def settings(**changes):
    given = {
        "steps": 12,
        "batch_tokens": 128,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "precision": "float32",
        "log_every": 1,
    }
    return TrainSettings(**(given | changes))


def windows(seed=0, rows=4):
    return WindowStream(tokens(), length=32, rows=rows, seed=seed)


def hooks_of(model, **more):
    return Hooks(
        save=lambda place: model_folder.save(model, place),
        load=lambda place: model.load_state_dict(model_folder.load(place).state_dict()),
        **more,
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class FixedStream:
    """Hands out the micro-batches it was given, in order."""

    def __init__(self, parts):
        self.parts, self.index = parts, 0

    def next(self):
        self.index += 1
        return self.parts[self.index - 1]

    def state(self):
        return {"index": self.index}

    def load_state(self, state):
        self.index = state["index"]


def ragged(count=8, seed=3):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 30, count)
    return [
        TokenExample([int(t) for t in generator.integers(0, 50, n)], [bool(b) for b in generator.integers(0, 2, n)])
        for n in lengths
    ]
