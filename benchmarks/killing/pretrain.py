"""A trainer on a shuffled stream with dropout, evaluation, early stopping, best weights kept, many checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from killing import Note, Work


class Pretraining(Work):
    """Each variant is an optimizer and a precision."""

    name = "pretrain"
    after_kill = "resumes"
    variants = ("adamw:float32", "muon:bfloat16", "muon:float32")

    steps = 20

    def make(self, place: Path) -> None:
        import quatrain.training.trainer  # noqa: F401

    def run(self, folder: Path, variant: str, note: Note) -> None:
        import torch

        from quatrain.models.io import model_folder
        from quatrain.models.transformer.config import ModelConfig
        from quatrain.models.transformer.stack import Model
        from quatrain.training.objectives import Causal
        from quatrain.training.settings import TrainSettings
        from quatrain.training.streams import StreamedExamples
        from quatrain.training.trainer import Hooks, Trainer

        optimizer, precision = variant.split(":")
        config = ModelConfig(
            family="llama", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
            dropout=0.1,
        )  # fmt: skip
        settings = TrainSettings(
            steps=self.steps, batch_tokens=256, accumulation=2, learning_rate=1e-2, warmup_steps=5,
            optimizer=optimizer, precision=precision, dropout=0.1,  # type: ignore[arg-type]
            evaluate_every=3, checkpoint_every=2, keep="best", patience=8,
        )  # fmt: skip
        model = Model(config).initialize(0)
        held_out = torch.tensor([example.ids for example in _examples(40, seed=9, length=24)])

        def save(place: Path) -> None:
            note("checkpoint")
            model_folder.save(model, place)

        def validate(current: Model) -> dict[str, float]:
            note("evaluation")
            _, loss = current(held_out[:, :-1], held_out[:, 1:])
            return {"validation_loss": loss.mean().item()}

        hooks = Hooks(
            save=save,
            load=lambda place: model.load_state_dict(model_folder.load(place).state_dict()),
            validate=validate,
            progress=lambda step, **metrics: note("step"),
        )
        stream = StreamedExamples(
            lambda start: iter(_examples(300, seed=1)[start:]), batch_tokens=128, seed=3, buffer=64
        )
        trainer = Trainer(model, Causal(), stream, settings, steps=self.steps, seed=5, folder=folder, hooks=hooks)
        note("step")
        result = trainer.train()
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        self.found = {
            "sha256": digest.hexdigest(), "steps": result.steps, "best_step": result.best_step, "tokens": result.size,
            "metrics": result.metrics,
        }  # fmt: skip

    def outcome(self, folder: Path, variant: str) -> Any:
        """The SHA-256 of the weights, the steps and the metrics."""
        return self.found


def _examples(count: int, *, seed: int, length: int | None = None) -> list[Any]:
    """Noisy cycles of ragged lengths with ragged masks."""
    import numpy as np

    from quatrain.data.batches import TokenExample

    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size = length or int(generator.integers(6, 40))
        ids = (np.arange(size) * 7 + generator.integers(0, 64) + generator.integers(0, 3, size)) % 64
        found.append(TokenExample(ids.tolist(), [bool(b) for b in generator.integers(0, 4, size)]))
    return found


WORK = Pretraining()
