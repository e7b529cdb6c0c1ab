"""The trainer knows nothing of texts: a small image classifier and a skip-gram model train on it, resume bit for bit,
report their speed in examples, and are explained by the same guards."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from tiny_training import settings
from torch import nn
from torch.nn import functional as F

from quatrain.core.errors import QuatrainError
from quatrain.data.batches import Batch
from quatrain.training.objectives.base import generators
from quatrain.training.streams import ShuffledStream
from quatrain.training.trainer import Hooks, Trainer


class Convolutions(nn.Module):
    """Two convolutions and a linear layer, with dropout, over images (B, 1, 8, 8)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, pixels):
        for layer in self.layers:
            pixels = F.dropout(F.relu(layer(pixels)), 0.1, self.training)
        return self.head(F.max_pool2d(pixels, 2).flatten(1))


class Digits:
    """Cross-entropy of scikit-learn's digits; the weight is the number of images."""

    def collate(self, examples):
        pixels, labels = zip(*examples, strict=True)
        return Batch({"pixels": torch.stack(pixels)}, torch.tensor(labels))

    def loss(self, model, batch):
        logits = model(**batch.inputs)
        right = (logits.detach().argmax(-1) == batch.labels).sum()
        return F.cross_entropy(logits, batch.labels, reduction="sum"), len(batch.labels), {"accuracy": right}


class SkipGram(nn.Module):
    """Two tables of word vectors (Mikolov et al. 2013, arXiv 1310.4546)."""

    def __init__(self, words, size=16):
        super().__init__()
        torch.manual_seed(1)
        self.inputs, self.outputs = nn.Embedding(words, size), nn.Embedding(words, size)

    def forward(self, center, others):
        return (self.inputs(center)[:, None] * self.outputs(others)).sum(-1)


class NegativeSampling:
    """A pair of words that stand together against five drawn words."""

    draws = True

    def __init__(self, words):
        self.words = words

    def collate(self, examples, seed=0):
        centers, contexts = zip(*examples, strict=True)
        drawn = [generator.integers(0, self.words, 5) for generator in generators(seed, len(examples))]
        others = torch.from_numpy(np.column_stack([contexts, np.stack(drawn)]))
        labels = torch.zeros(len(examples), 6)
        labels[:, 0] = 1
        return Batch({"center": torch.tensor(centers), "others": others}, labels)

    def loss(self, model, batch):
        scores = model(**batch.inputs)
        return F.binary_cross_entropy_with_logits(scores, batch.labels, reduction="sum"), len(scores), {}


def digits():
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    return list(zip(images, data.target.tolist(), strict=True))


def pairs(count=4000, words=30):
    """Words stand beside their neighbours in a circle."""
    generator = np.random.default_rng(2)
    centers = generator.integers(0, words, count)
    return list(zip(centers.tolist(), ((centers + generator.choice([-1, 1], count)) % words).tolist(), strict=True))


KINDS = {
    "images": lambda: (Convolutions(), Digits(), ShuffledStream(digits()[:1400], rows=32, seed=0)),
    "words": lambda: (SkipGram(30), NegativeSampling(30), ShuffledStream(pairs(), rows=32, seed=0)),
}


def files(model):
    def load(folder):
        model.load_state_dict(load_file(folder / "model.safetensors"))

    def save(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")

    return {"save": save, "load": load}


def run(kind, steps, folder=None, stop=None, **changes):
    model, objective, stream = KINDS[kind]()
    entries = []

    def progress(step, **metrics):
        if step == stop:
            raise KeyboardInterrupt

    wanted = settings(steps=steps, weight_decay=0.0, learning_rate=0.02, checkpoint_every=4, accumulation=2, **changes)
    hooks = Hooks(log=entries.append, progress=progress, **(files(model) if folder else {}))
    trainer = Trainer(model, objective, stream, wanted, steps=steps, folder=folder, hooks=hooks)
    result = trainer.train()
    return model, result, entries


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_speaks_of_examples(kind):
    _, result, entries = run(kind, 60)
    assert entries[-1]["loss"] < 0.6 * entries[0]["loss"]
    assert result.size == entries[-1]["examples"] == pytest.approx(60 * 2 * 32, rel=0.05)
    assert entries[-1]["examples_per_second"] > 0 and not any("token" in key for entry in entries for key in entry)
    assert result.memory["weights"] and result.memory["optimizer"] and result.memory["activations"]


def test_images_that_were_not_learned_are_told_apart():
    model = run("images", 120)[0]
    pixels, labels = zip(*digits()[1400:], strict=True)
    with torch.no_grad():
        right = (model(torch.stack(pixels)).argmax(-1) == torch.tensor(labels)).float().mean()
    assert right > 0.85  # one class has 10 %


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_bit_for_bit(kind, tmp_path):
    whole = run(kind, 12, tmp_path / "whole")[0].state_dict()
    for stop in (6, 10):
        with pytest.raises(KeyboardInterrupt):
            run(kind, 12, tmp_path / "stopped", stop=stop)
    resumed = run(kind, 12, tmp_path / "stopped")[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_steps_are_named_and_kept(kind, tmp_path):
    model, objective, stream = KINDS[kind]()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    trainer = Trainer(model, objective, stream, settings(), steps=2, faults=tmp_path, hooks=Hooks())
    with pytest.raises(QuatrainError, match="Step 1"):
        trainer.train()
    kept = load_file(tmp_path / "step-00000001" / "batch.safetensors")
    assert set(kept) == {f"0.{name}" for name in (*KINDS[kind]()[1].collate(stream.next()).inputs, "labels")}


def test_memory_that_does_not_suffice_is_explained():
    class Greedy(Digits):
        def loss(self, model, batch):
            raise MemoryError

    model, _, stream = KINDS["images"]()
    with pytest.raises(QuatrainError, match=r"needs more memory.*largest part"):
        Trainer(model, Greedy(), stream, settings(), steps=2).train()
