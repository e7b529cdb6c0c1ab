"""`quatrain run` of a recipe of four stages: a tokenizer, a policy, a reward model, and PPO with a value model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from killing import Note, Work, command
from quatrain.core.reading import sha256_of

RECIPE = """
name = "tiny"
[data]
source = '{place}/text.txt'
validation = 0.2
[tokenizer]
vocab_size = 280
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 32
[evaluate]
examples = 2
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
evaluate = false
train = {{ steps = 6, batch_tokens = 128, warmup_steps = 0, checkpoint_every = 2, log_every = 1, {more} }}
[[stage]]
kind = "reward"
data = {{ source = '{place}/pairs.jsonl' }}
evaluate = false
train = {{ steps = 4, batch_tokens = 256, warmup_steps = 0, checkpoint_every = 2, log_every = 1, {more} }}
[[stage]]
kind = "ppo"
prompts = 4
samples = 2
minibatches = 2
passes = 2
max_new_tokens = 5
prompt_format = "text"
prompt_tokens = [2, 4]
value = "model"
rewards = [ {{ kind = "model", stage = "reward" }} ]
held_out = 4
evaluate = false
train = {{ steps = 8, learning_rate = 3e-3, warmup_steps = 0, checkpoint_every = 2, evaluate_every = 4, log_every = 1, {more} }}
"""  # noqa: E501
MORE = 'precision = "float32", device = "cpu"'
WORDS = "the cat sat on a mat and saw no dog at all in the old town by the sea".split()
MEASURED = ("second", "per_s", "memory", "energy", "joules", "watts", "time")
"""Metrics whose names hold one of these are of the clock and the machine."""


class PPO(Work):
    """The whole run is killed, in any of its stages, and while it writes its model and its report."""

    name = "ppo"
    after_kill = "resumes"
    phases = {
        r"/report": "report",
        r"tiny/\.?model": "final model",
        r"checkpoints": "checkpoint",
        r"01-tokenizer": "tokenizer",
        r"02-pretrain": "policy",
        r"03-reward": "reward",
        r"04-ppo": "ppo",
    }

    def make(self, place: Path) -> None:
        draw = random.Random(0)
        lines = (" ".join(draw.choices(WORDS, k=draw.randint(6, 12))) for _ in range(60))
        (place / "text.txt").write_text("\n".join(lines), encoding="utf-8")
        pairs = ({"prompt": f"say {word}", "chosen": word, "rejected": f"no {word}"} for word in WORDS * 2)
        (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        (place / "tiny.toml").write_text(RECIPE.format(place=place, more=MORE), encoding="utf-8")
        self.recipe = place / "tiny.toml"
        self.run(place / "warm", "", lambda phase: None)  # what is loaded at the first use is loaded for all children

    def run(self, folder: Path, variant: str, note: Note) -> None:
        command("run", str(self.recipe), "--runs-dir", str(folder), "--quiet")

    def outcome(self, folder: Path, variant: str) -> Any:
        """The SHA-256 of all weights, and the metrics of all steps."""
        weights = {
            path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))
        }
        lines = (json.loads(line) for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines())
        metrics = [{key: value for key, value in line.items() if not any(part in key for part in MEASURED)}
                   for line in lines]  # fmt: skip
        return {"weights": weights, "metrics": metrics}

    def read(self, folder: Path, variant: str) -> Any:
        """A model that is there can be loaded, and is the one of the whole run."""
        from quatrain.models.io import model_folder

        place = folder / "tiny" / "model"
        if not place.is_dir():
            return None
        model_folder.load(place)
        return sha256_of(place / "model.safetensors")


WORK = PPO()
