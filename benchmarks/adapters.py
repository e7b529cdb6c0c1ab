"""LoRA and QLoRA beside PEFT: the same weights, adapters, batches, optimizer, schedule and precision, by both Trainers.

Our adapter is written as a PEFT folder that theirs reads, so that both begin at the same numbers; QLoRA is our NF4
beside bitsandbytes'. Every turn is a process of its own, ours and theirs take turns, the first steps are not counted,
and the loss of every step is compared. The processor time of a step is that of all threads; on a
busy machine compare it with OMP_NUM_THREADS=1.

    python benchmarks/adapters.py [--methods lora qlora] [--precisions bfloat16 float32] [--repeat 3] [--steps 6]
        [--rows 4] [--length 512] [--shape llama]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import Worker, finish, geometric_mean, in_turns, parser, require, serve, spread
from trainer import WARM, beside, steps_of, train_ours, train_theirs

METHODS = ("lora", "qlora")
SIDES = ("quatrain", "peft")
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
              "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 1024},
    "wide": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6,
             "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 1024},
    "tiny": {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
}  # fmt: skip
"""A Llama that one can wait for on a CPU; one with the widths and the vocabulary of TinyLlama 1.1B (Zhang et al. 2024,
arXiv 2401.02385) and six of its 22 layers; and one for --quick.
"""
ADAPTER = {"rank": 16, "alpha": 32.0, "trainable_tokens": "none"}


def write(name: str, folder: Path) -> None:
    """`base` with fresh weights of a shape, and `adapter`, a LoRA over all its linear layers."""
    import torch

    from quatrain.adapters.apply import apply_adapter
    from quatrain.adapters.peft_files import save_adapter
    from quatrain.adapters.settings import AdapterSettings
    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model

    model, generator = Model(fresh_config("llama", SHAPES[name])), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(("norm" in key) + 0.02 * torch.randn(parameter.shape, generator=generator))
    model_folder.save(model, folder / "base")
    apply_adapter(model, AdapterSettings.model_validate(ADAPTER), seed=0)
    save_adapter(model, folder / "adapter", base_model=str(folder / "base"))


def ours(folder: Path, method: str) -> Any:
    """Our model under the adapter."""
    from quatrain.loading.model import load_model

    model, _ = load_model(folder / "adapter", quantize="nf4" if method == "qlora" else None)
    return model


def theirs(folder: Path, method: str, precision: str) -> Any:
    """transformers' model under PEFT's adapter, over bitsandbytes' layers for QLoRA."""
    import torch

    peft, transformers = require("peft"), require("transformers")
    more: dict[str, Any] = {}
    if method == "qlora":
        require("bitsandbytes", "test")
        more["device_map"] = "cpu"
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, precision),
        )  # fmt: skip
    config = transformers.AutoConfig.from_pretrained(folder / "base", use_cache=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "base", config=config, dtype=torch.float32, attn_implementation="sdpa", **more
    )
    if method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def work(side: str, folder: Path, chosen: Any) -> None:
    """A worker's side: one training."""
    method, precision = chosen.methods[0], chosen.precisions[0]

    def measure() -> dict[str, Any]:
        from quatrain.core.process_memory import peak_memory

        steps = WARM + chosen.steps
        if side == "quatrain":
            found = train_ours(ours(folder, method), precision, chosen.rows, chosen.length, steps)
        else:
            model = theirs(folder, method, precision)
            found = train_theirs(model, precision, chosen.rows, chosen.length, steps, "cpu")
        return found | {"peak_bytes": peak_memory()}

    serve(measure)


def compare(method: str, precision: str, chosen: Any, folder: Path) -> dict[str, Any]:
    """Turns of both sides for one method and precision; prints what they say."""
    words = ["--methods", method, "--precisions", precision, "--rows", str(chosen.rows), "--length", str(chosen.length)]
    words += ["--steps", str(chosen.steps)]

    def turn(side: str) -> Any:
        worker = Worker(__file__, "--worker", side, str(folder), *words)
        answer = worker.turn()
        worker.close()
        return answer

    tokens = chosen.rows * chosen.length
    print(f"\n{method}, {precision}: {chosen.rows} x {chosen.length} tokens a step, {chosen.steps} steps", flush=True)
    found: Any = in_turns({side: lambda side=side: turn(side) for side in SIDES}, chosen.repeat)
    sides = {}
    for side in SIDES:
        steps = [steps_of(run) for run in found[side]]
        rates, peak = spread(tokens / median(each) for each in steps), max(run["peak_bytes"] for run in found[side])
        processor = spread(median(steps_of(run, "processor_times")) for run in found[side])
        sides[side] = {"tokens_per_second": rates, "peak_bytes": peak, "losses": found[side][0]["losses"]}
        sides[side] |= {"processor_seconds": processor}
        speeds = f"{rates['median']:>8,.0f} tokens/s ({rates['min']:,.0f} to {rates['max']:,.0f})"
        cost = f"processor time {processor['median']:.2f} s a step"
        print(f"  {side:<10}{speeds}  peak {peak / 1e9:.2f} GB  {cost}", flush=True)
    result = beside(*(sides[side] for side in SIDES))
    left_seconds, right_seconds = (sides[side]["processor_seconds"]["median"] for side in SIDES)
    result["processor_time_ratio"] = right_seconds / left_seconds
    left, apart = sides[SIDES[0]], result["loss_differences"]
    print(
        f"  {result['tokens_per_second_ratio']:.2f}x their tokens/s ({result['processor_time_ratio']:.2f}x by "
        f"processor time), {result['memory_ratio']:.2f}x their memory\n"
        f"  losses {left['losses'][0]:.4f} to {left['losses'][-1]:.4f}; apart by {apart[0]:.1e} at the first step, "
        f"{max(apart):.1e} at most",
        flush=True,
    )
    return result | {"sides": sides}


def main() -> None:
    """Reads the arguments and writes the JSON line."""
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options.add_argument("--precisions", nargs="+", choices=("bfloat16", "float32"), default=("bfloat16", "float32"))
    options.add_argument("--shape", choices=("llama", "wide"), default="llama")
    options.add_argument("--rows", type=int, default=4)
    options.add_argument("--length", type=int, default=512)
    options.add_argument("--repeat", type=int, default=3, help="turns of each side")
    options.add_argument("--steps", type=int, default=6, help="measured steps of a turn")
    options.add_argument("--worker", nargs=2, metavar=("SIDE", "FOLDER"))
    chosen = options.parse_args()
    if chosen.worker:
        return work(chosen.worker[0], Path(chosen.worker[1]), chosen)
    if chosen.quick:
        chosen.rows, chosen.length, chosen.steps, chosen.repeat = 2, 16, 2, 1
        chosen.methods, chosen.precisions = METHODS[:1], ("float32",)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write("tiny" if chosen.quick else chosen.shape, folder)
        results = {
            f"{method}-{precision}": compare(method, precision, chosen, folder)
            for method in chosen.methods
            for precision in chosen.precisions
        }
    ratio = geometric_mean(each["tokens_per_second_ratio"] for each in results.values())
    finish("adapters", ratio, "our tokens/s / PEFT's, geometric mean", quick=chosen.quick, results=results)
    return None


if __name__ == "__main__":
    main()
