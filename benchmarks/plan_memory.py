"""What `quatrain plan MODEL --method …` says a training holds, beside what one holds: the growth of a process.

The plan reads a configuration alone. The training is a process of its own, which reads the model, puts the adapter on
it and takes some steps; its memory is counted from when everything is imported. The ratio is the tolerance of 15 % over
the largest error: at 1 and above every case is within it.

    python benchmarks/plan_memory.py [--cases llama-qlora-bfloat16 …]
"""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from common import Worker, finish, parser, serve
from predictions import quatrain
from trainer import COMMON, windows

MEMORY = 0.15
"""How far a plan may be off, as a share of what is measured."""
STEPS = 3
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
                        "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 1024}),
    "wide": ("llama", {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6,
                       "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1024}),
    "gpt2": ("gpt2", {"vocab_size": 50257, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                      "num_attention_heads": 12, "max_position_embeddings": 1024}),
    "qwen2": ("qwen2", {"vocab_size": 50000, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 8,
                        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 2048,
                        "tie_word_embeddings": True}),
    "tiny": ("llama", {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}),
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "tiny-lora": {"shape": "tiny", "method": "lora", "precision": "float32", "rows": 2, "length": 16},
    "llama-full-float32": {"shape": "llama", "method": "full", "precision": "float32", "rows": 2, "length": 512},
    "llama-full-bfloat16": {"shape": "llama", "method": "full", "precision": "bfloat16", "rows": 4, "length": 512},
    "llama-full-8bit": {"shape": "llama", "method": "full", "precision": "bfloat16", "rows": 2, "length": 512,
                        "optimizer": "adamw8bit"},
    "llama-full-muon": {"shape": "llama", "method": "full", "precision": "float32", "rows": 2, "length": 256,
                        "optimizer": "muon"},
    "llama-lora-float32": {"shape": "llama", "method": "lora", "precision": "float32", "rows": 2, "length": 512},
    "llama-lora-bfloat16": {"shape": "llama", "method": "lora", "precision": "bfloat16", "rows": 4, "length": 512},
    "llama-qlora-float32": {"shape": "llama", "method": "qlora", "precision": "float32", "rows": 2, "length": 512},
    "llama-qlora-bfloat16": {"shape": "llama", "method": "qlora", "precision": "bfloat16", "rows": 4, "length": 512},
    "wide-qlora-bfloat16": {"shape": "wide", "method": "qlora", "precision": "bfloat16", "rows": 1, "length": 512},
    "llama-qlora-special": {"shape": "llama", "method": "qlora", "precision": "bfloat16", "rows": 2, "length": 256,
                            "tokens": "special"},
    "wide-qlora-float32": {"shape": "wide", "method": "qlora", "precision": "float32", "rows": 1, "length": 1024},
    "wide-lora-stored": {"shape": "wide", "method": "lora", "precision": "bfloat16", "rows": 2, "length": 256,
                         "stored": "bfloat16"},
    "wide-lora-bfloat16": {"shape": "wide", "method": "lora", "precision": "bfloat16", "rows": 2, "length": 256},
    "gpt2-lora-float32": {"shape": "gpt2", "method": "lora", "precision": "float32", "rows": 4, "length": 256},
    "gpt2-qlora-bfloat16": {"shape": "gpt2", "method": "qlora", "precision": "bfloat16", "rows": 2, "length": 1024},
    "gpt2-full-bfloat16": {"shape": "gpt2", "method": "full", "precision": "bfloat16", "rows": 4, "length": 512},
    "qwen2-qlora-bfloat16": {"shape": "qwen2", "method": "qlora", "precision": "bfloat16", "rows": 4, "length": 512},
    "qwen2-qlora-8bit": {"shape": "qwen2", "method": "qlora", "precision": "float32", "rows": 1, "length": 2048,
                         "optimizer": "adamw8bit", "rank": 64},
    "qwen2-dora-bfloat16": {"shape": "qwen2", "method": "dora", "precision": "bfloat16", "rows": 2, "length": 512},
    "qwen2-ia3-float32": {"shape": "qwen2", "method": "ia3", "precision": "float32", "rows": 2, "length": 512},
    "qwen2-prefix-bfloat16": {"shape": "qwen2", "method": "prefix", "precision": "bfloat16", "rows": 4, "length": 256},
}  # fmt: skip
QUICK = ("tiny-lora",)


def write(name: str, folder: Path, stored: str = "float32") -> None:
    """A model folder with weights of a shape, drawn at random, in the dtype of its files."""
    import torch

    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model

    model, generator = Model(fresh_config(*SHAPES[name])).initialize(0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # fresh ones are zero in places, over which DoRA divides
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model_folder.save(model.to(getattr(torch, stored)), folder)


def steps(model: Any, settings: Any, rows: int, length: int) -> None:
    """A training of a model that is there already."""
    from quatrain.training.objectives import Causal
    from quatrain.training.trainer import Trainer

    stream = windows(model.config.vocab_size, rows, length)
    Trainer(model, Causal(), stream, settings, steps=settings.steps).train()


def train(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The bytes by which this process grows while it reads a model and trains it."""
    from quatrain.adapters.apply import apply_adapter
    from quatrain.adapters.settings import AdapterSettings
    from quatrain.adapters.trainable_tokens import train_tokens
    from quatrain.core.process_memory import peak_memory, reset_peak_memory, resident_memory
    from quatrain.loading.model import load_model
    from quatrain.training.settings import TrainSettings

    # Once through, so that everything is imported, bitsandbytes' kernel too.
    tiny, _ = load_model(folder.parent / "tiny", quantize="nf4" if case["method"] == "qlora" else None)
    if case["method"] == "qlora":
        apply_adapter(tiny, AdapterSettings.model_validate({"method": "lora", "quantize_base": "nf4"}))
    settings = TrainSettings.model_validate(
        {"steps": 1, "warmup_steps": 0, "schedule": "constant", "batch_tokens": 32, "device": "cpu"}
    )
    steps(tiny, settings, 2, 16)
    del tiny
    gc.collect()
    tokens = case["rows"] * case["length"]
    settings = TrainSettings.model_validate(
        {
            **COMMON,
            "steps": STEPS,
            "warmup_steps": 1,
            "batch_tokens": tokens,
            "precision": case["precision"],
            "device": "cpu",
        }
        | {"optimizer": case.get("optimizer", "adamw")}
    )
    before = resident_memory()
    reset_peak_memory()
    method = case["method"]
    model, _ = load_model(folder, quantize="nf4" if method == "qlora" else None)
    if method != "full":
        given = {"method": "lora", "quantize_base": "nf4"} if method == "qlora" else {"method": method}
        apply_adapter(model, AdapterSettings.model_validate(given | ({"rank": case["rank"]} if "rank" in case else {})))
        if case.get("tokens") == "special":
            train_tokens(model, [0, 1])
    loaded = peak_memory() - before
    steps(model, settings, case["rows"], case["length"])
    return {"peak_bytes": peak_memory() - before, "loaded_bytes": loaded}


def compare(name: str, folder: Path) -> dict[str, Any]:
    """One case, planned and measured; prints a line."""
    case = CASES[name]
    stored = case.get("stored", "float32")
    place = folder / f"{case['shape']}-{stored}"
    if not (folder / "tiny").exists():
        write("tiny", folder / "tiny")
    if not place.exists():
        write(case["shape"], place, stored)
    words = ["--method", case["method"], "--batch-tokens", str(case["rows"] * case["length"])]
    words += ["--context", str(case["length"]), "--precision", case["precision"]]
    words += ["--optimizer", case.get("optimizer", "adamw"), *(["--rank", str(case["rank"])] if "rank" in case else [])]
    words += [] if case["method"] == "full" else ["--trainable-tokens", case.get("tokens", "none")]
    said = json.loads(quatrain("plan", str(place), *words, "--json").splitlines()[-1])["method"]
    worker = Worker(__file__, "--worker", name, str(place))
    found = worker.turn()
    worker.close()
    peaks = said["memory"]["peak"], found["peak_bytes"]
    error = peaks[0] / peaks[1] - 1
    trains = f"{said['trainable']:,} of {said['all']:,}"
    print(f"{name:<24}{trains:>28}{peaks[0] / 1e6:9,.0f}{peaks[1] / 1e6:9,.0f} {error:>+7.1%}", flush=True)
    return {"error": error, "peaks": peaks, "loaded": found["loaded_bytes"], "said": said}


def main() -> None:
    """Reads the arguments and writes the JSON line."""
    options = parser(__doc__)
    usual = [name for name in CASES if name not in QUICK]
    options.add_argument("--cases", nargs="+", choices=list(CASES), default=usual)
    options.add_argument("--worker", nargs=2, metavar=("CASE", "FOLDER"))
    chosen = options.parse_args()
    if chosen.worker:
        return serve(lambda: train(Path(chosen.worker[1]), CASES[chosen.worker[0]]))
    print(f"{'':<24}{'':>28}{'memory, MB':^18} {'error':>7}\n{'case':<24}{'trains':>28}{'said':>9}{'found':>9}")
    with tempfile.TemporaryDirectory() as folder:
        results = {name: compare(name, Path(folder)) for name in (QUICK if chosen.quick else chosen.cases)}
    worst = max(abs(result["error"]) for result in results.values())
    print(f"largest error: {worst:.1%}")
    ratio = MEMORY / max(1e-9, worst)
    finish("plan_memory", ratio, "tolerance of 15 % / largest error", quick=chosen.quick, results=results)
    return None


if __name__ == "__main__":
    main()
