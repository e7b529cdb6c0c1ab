"""Trains tiny models, one case after another, by the processes that torchrun started; the first writes what came out.

    torchrun --nproc-per-node 2 together.py CASES.json FOLDER

A case: name, mode, steps, stop (kill here), adapter, and changes of the settings. Alone it trains as one process.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_training import CONFIG, hooks_of, ragged, settings

from quatrain.adaptation import lora
from quatrain.adaptation.settings import AdapterSettings
from quatrain.models.stack import Model
from quatrain.text.batches import pad
from quatrain.training.objectives import Causal
from quatrain.training.parallel import make_parallel
from quatrain.training.parallel.group import leave
from quatrain.training.streams import ExampleStream
from quatrain.training.trainer import Trainer


class Stopped(Exception):
    """A run that ends in its midst."""


def train(case, folder):
    """One case; returns the model's weights, or None where it was stopped."""
    os.environ["LOCAL_WORLD_SIZE"] = str(case.get("local", os.environ.get("WORLD_SIZE", 1)))
    model = Model(CONFIG.with_(dropout=case.get("dropout", 0.0))).initialize(0)
    if case.get("adapter"):
        lora.apply(model, AdapterSettings(rank=2, alpha=4.0))
    examples = ragged(count=48, seed=5)
    changes = {"steps": 6, "accumulation": 2, "batch_tokens": 160, "warmup": 1} | case.get("settings", {})
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
        model, Causal(), stream, wanted, steps=wanted.steps, seed=3, folder=checkpoints, hooks=hooks,
        parallel=make_parallel(case.get("mode", "auto")),
    )  # fmt: skip
    if case.get("stop"):
        step = trainer._one_step

        def ending():
            if trainer.step == case["stop"]:
                raise Stopped
            step()

        trainer._one_step = ending
    try:
        result = trainer.train()
    except Stopped:
        return None, {}
    about = {
        "losses": [entry["loss"] for entry in logged if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in logged if "loss" in entry],
        "validations": [entry["validation_loss"] for entry in logged if "validation_loss" in entry],
        "tokens": result.tokens,
        "best": result.best_step,
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
