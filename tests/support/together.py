"""Trains tiny models, one case after another, by several processes; the first writes what came out.

    torchrun --nproc-per-node 2 together.py CASES.json FOLDER

A case: name, mode, stop (kill here), kind (a model and what it learns), rows (of the embedding that learn, beside an
adapter), and changes of the settings. Alone it trains as one process.
"""

import contextlib
import json
import math
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_training import CONFIG, hooks_of, ragged, settings
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.data.batches import pad
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer.stack import Model
from quatrain.training.distributed import make_parallel
from quatrain.training.distributed.group import leave
from quatrain.training.objectives import Causal
from quatrain.training.optimizers import is_sharded, local_shard
from quatrain.training.streams import ExampleStream
from quatrain.training.trainer import Trainer

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Stopped(Exception):
    """A run that ends in its midst."""


class Answering(Causal):
    """An encoder-decoder says the text that it reads."""

    def loss(self, model, batch):
        _, loss = model(batch.input_ids.clamp(min=1), batch.labels)
        return loss.sum(), batch.num_labels, {}


class Jumping(Causal):
    """Its loss is no number on some micro-batches, of one process or the other."""

    def loss(self, model, batch):
        loss, weight, metrics = super().loss(model, batch)
        return loss * (math.nan if int(batch.input_ids.sum()) % 5 == 0 else 1.0), weight, metrics


class Measured(Causal):
    """Notes the bytes of whole weights after a forward pass, as FSDP has gathered them."""

    def loss(self, model, batch):
        found = super().loss(model, batch)
        whole = [each for each in model.parameters() if not is_sharded(each)]
        self.gathered = sum(each.nbytes for each in whole)
        return found


@contextlib.contextmanager
def held_bytes(wanted=True):
    """Bytes of weights, gradients and optimizer states that this process holds when the optimizer steps."""
    held = {}
    if not wanted:
        yield held
        return

    def note(optimizer, *_):
        weights = [each for group in optimizer.param_groups for each in group["params"]]
        states = [each for state in optimizer.state.values() for each in state.values() if each.dim()]
        for name, tensors in (
            ("weights", weights), ("gradients", [each.grad for each in weights]), ("states", states)
        ):  # fmt: skip
            held[name] = sum(local_shard(each).nbytes for each in tensors)

    hook = register_optimizer_step_pre_hook(note)
    try:
        yield held
    finally:
        hook.remove()  # it is one of all optimizers of this process


class Spare(nn.Linear):
    """Weights beside the head that no loss reaches."""


def llama(case):
    """The model that most cases train, with an adapter or weights without a use where asked."""
    model = Model(CONFIG.replace(dropout=case.get("settings", {}).get("dropout", 0.0))).initialize(0)
    if case.get("adapter"):
        apply_adapter(model, AdapterSettings(rank=2, alpha=4.0))
    if case.get("rows"):
        train_tokens(model, case["rows"])
    if case.get("kind") == "spare":
        torch.manual_seed(0)
        model.spare = Spare(3, 3)
    return model


def t5(case):
    """An encoder-decoder whose layers share the bias that the first one has."""
    return Model(fresh_config("t5", SIZES, head="seq2seq")).initialize(0)


KINDS = {
    "plain": (llama, Causal),
    "bytes": (llama, Measured),
    "spare": (llama, Causal),
    "jumps": (llama, Jumping),
    "t5": (t5, Answering),
}


def train(case, folder):
    """One case; returns the model's weights, or None where it was stopped."""
    os.environ["LOCAL_WORLD_SIZE"] = str(case.get("local", os.environ.get("WORLD_SIZE", 1)))
    make, kind = KINDS[case.get("kind", "plain")]
    model, objective = make(case), kind()
    examples = ragged(count=48, seed=5)
    changes = {"steps": 6, "accumulation": 2, "batch_tokens": 160, "warmup_steps": 1} | case.get("settings", {})
    wanted = settings(**changes)
    stream = ExampleStream(examples, batch_tokens=wanted.batch_tokens // wanted.accumulation, seed=1)
    held_out = pad(examples[:6], 0)
    logged = []

    def validate(model):
        _, loss = model(held_out.input_ids, held_out.labels)
        return {"validation_loss": float(loss.sum() / held_out.num_labels)}

    checkpoints = folder / case.get("checkpoints", case["name"]) if "checkpoints" in case else None
    hooks = hooks_of(model, log=logged.append, validate=validate)
    trainer = Trainer(
        model, objective, stream, wanted, steps=wanted.steps, seed=3, folder=checkpoints, hooks=hooks,
        parallel=make_parallel(case.get("mode", "auto")),
    )  # fmt: skip
    if case.get("stop"):
        step = trainer.step

        def ending():
            if trainer.steps_done == case["stop"]:
                raise Stopped
            step()

        trainer.step = ending
    with held_bytes(case.get("kind") == "bytes") as held:
        try:
            result = trainer.train()
        except Stopped:
            return None, {}
    about = {
        "losses": [entry["loss"] for entry in logged if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in logged if "loss" in entry],
        "validations": [entry["validation_loss"] for entry in logged if "validation_loss" in entry],
        "tokens": result.size,
        "best": result.best_step,
        "skipped": result.skipped,
        "held": held | ({"gathered": objective.gathered} if held else {}),
    }
    return model, about


def main(cases, folder):
    """All cases; NAME.safetensors and NAME.json of each in the folder."""
    torch.set_num_threads(1)
    for case in json.loads(Path(cases).read_text()):
        model, about = train(case, Path(folder))
        if model is not None and int(os.environ.get("RANK", 0)) == 0:
            assert type(model) is Model and all(type(part).__name__[:4] != "FSDP" for part in model.modules())
            tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
            save_file(tensors, str(Path(folder) / f"{case['name']}.safetensors"))
            (Path(folder) / f"{case['name']}.json").write_text(json.dumps(about))
    leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
