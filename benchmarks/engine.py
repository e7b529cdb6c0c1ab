"""Tokens per second of the engine, beside transformers and llama.cpp: one stream, several streams, prompts, arrivals.

The model is a Llama of 134 M parameters with random weights (768 wide, 12 layers, 12 heads, 2,048 inner, vocabulary
32,000), the same in every format. Decoding is greedy and end tokens are ignored, so that each completion has the full
length; every turn has new prompts, so that no prefix cache helps. llama.cpp runs through llama-cpp-python in a child
process: of this interpreter or, with `--llama`, of another one that has llama-cpp-python and gguf. All take turns.

    python benchmarks/engine.py [--llama PYTHON] [--repeat 5] [--streams 16] [--prompt 32] [--new-tokens 64]
    python benchmarks/engine.py --only single --formats int8 Q8_0 --repeat 3     # a quick look

Ratios: one stream, ours over llama.cpp's at 16, 8 and 4 bits; several streams and prompts, our best over transformers'
best; arrivals, the throughput of requests that arrive at random over that of the same requests one by one.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import child_environment, finish, geometric_mean, in_turns, parser, spread

SHAPE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 1024,
}  # fmt: skip
TINY = SHAPE | {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
OURS = ("float32", "bfloat16", "float16", "int8", "int4")
PEERS = ("transformers float32", "transformers bfloat16", "transformers float16")
LLAMA = ("F16", "Q8_0", "Q4_0")
SAME_BITS = {"F16": ("bfloat16", "float16"), "Q8_0": ("int8",), "Q4_0": ("int4",)}
MEASURES = ("single", "streams", "prefill", "arrivals")
PREFILL = 256

Generate = Callable[[list[list[int]], int], list[list[int]]]


# llama.cpp, in a process that imports neither torch nor quatrain.


def write_gguf(folder: Path, shape: dict[str, int], form: str) -> Path:
    """The weights of `folder`, one file for each tensor, in llama.cpp's format."""
    import gguf
    import numpy as np

    path = folder / f"{form}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(shape["hidden_size"] // shape["num_attention_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape["vocab_size"])
    add_tokens(writer, folder / "model" / "tokenizer.json", shape["vocab_size"])
    kind = getattr(gguf.GGMLQuantizationType, form)
    for file in sorted(folder.glob("*.npy")):
        weight = np.load(file)
        name = gguf_name(file.stem)
        if name.endswith(("attn_q.weight", "attn_k.weight")):  # llama.cpp turns neighbouring channels.
            weight = weight.reshape(shape["num_attention_heads"], 2, -1, weight.shape[1]).swapaxes(1, 2)
            weight = np.ascontiguousarray(weight.reshape(-1, weight.shape[-1]))
        if weight.ndim == 1:
            writer.add_tensor(name, weight.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokens(writer: Any, path: Path, size: int) -> None:
    """The byte-level tokenizer of a file, or names without meaning if there is none."""
    if not path.exists():
        writer.add_tokenizer_model("llama")
        writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"<{i}>".encode() for i in range(3, size))])
        writer.add_token_scores([0.0] * size)
        writer.add_token_types([2, 3, 3, *[1] * (size - 3)])
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {token["id"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types([3 if token in special else 1 for token in range(size)])
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in content["model"]["merges"]])
    writer.add_bos_token_id(min(special))
    writer.add_eos_token_id(min(special))
    writer.add_add_bos_token(False)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of a Llama."""
    if not name.startswith("layers."):
        whole = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
        return f"{whole[name.removesuffix('.weight')]}.weight"
    _, layer, *rest = name.split(".")
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
        "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }  # fmt: skip
    return f"blk.{layer}.{parts[rest[-2]]}.weight"


def serve_llama(folder: str, shape: str, threads: str) -> None:
    """Answers lines of JSON: {"format", "prompt", "count"} with {"seconds", "ids"}."""
    import ctypes

    import llama_cpp
    import numpy as np

    sizes, models = json.loads(shape), {}
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        form = asked["format"]
        if form not in models:
            path = write_gguf(Path(folder), sizes, form)
            models[form] = llama_cpp.Llama(
                str(path), n_ctx=sizes["max_position_embeddings"], n_threads=int(threads),
                n_threads_batch=int(threads), n_batch=512, verbose=False,
            )  # fmt: skip
            path.unlink()
        model = models[form]
        vocabulary, ids = sizes["vocab_size"], []
        start = time.perf_counter()
        model.reset()
        if hasattr(model, "_ctx") and hasattr(model._ctx, "kv_cache_clear"):
            model._ctx.kv_cache_clear()
        new = asked["prompt"]
        for _ in range(asked["count"]):
            model.eval(new)
            logits = ctypes.cast(llama_cpp.llama_get_logits_ith(model.ctx, -1), ctypes.POINTER(ctypes.c_float))
            new = [int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())]
            ids += new
        print(json.dumps({"seconds": time.perf_counter() - start, "ids": ids}), flush=True)


class Llama:
    """llama.cpp in its own process."""

    def __init__(self, python: str, folder: Path, shape: dict[str, int], threads: int):
        command = [python, __file__, "serve-llama", str(folder), json.dumps(shape), str(threads)]
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        )
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        self.version: str | None = json.loads(line)["version"] if line else None

    def ask(self, form: str, prompt: list[int], count: int) -> dict[str, Any]:
        """The seconds and ids of one greedy completion."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the child was started without pipes")
        self.process.stdin.write(json.dumps({"format": form, "prompt": prompt, "count": count}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of llama.cpp ended with {self.process.wait()}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


# Ours and transformers, in this process.


def write_model(folder: Path, shape: dict[str, int], *, unlikely: int | None = None) -> None:
    """A model folder with random weights, and one file for each tensor for llama.cpp.

    The head's row of the token `unlikely` is zero: with random weights, another one is always likelier.
    """
    import numpy as np
    import torch

    from quatrain.models.io import model_folder
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model

    model = Model(ModelConfig(family="llama", **shape))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = 1.0 if name.startswith("embed") else parameter.shape[1] ** -0.5
                # float16 and bfloat16 hold these without rounding, so that all formats start from the same weights.
                parameter.copy_((torch.randn(parameter.shape, generator=generator) * scale).bfloat16())
                if name == "lm_head.weight" and unlikely is not None:
                    parameter[unlikely] = 0
            else:
                parameter.fill_(1.0)
            np.save(folder / f"{name}.npy", parameter.numpy())
    model_folder.save(model, folder / "model")


def our_engine(folder: Path, form: str) -> Any:
    """The engine in a format."""
    import torch

    from quatrain.generation.engine import Engine

    quantize = form if form in ("int8", "int4") else None
    dtype = torch.bfloat16 if quantize else getattr(torch, form)
    return Engine.load(folder / "model", dtype=dtype, quantize=quantize)


def ours(engine: Any) -> Generate:
    """Generates with the engine."""
    from quatrain.generation.engine import SamplingParams

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=count, ignore_eos=True)
        return [completion.ids for completion in engine.generate(prompts, params, batch_size=len(prompts))]

    return generate


def theirs(folder: Path, dtype: str) -> Generate:
    """Generates with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count,
                pad_token_id=0,
            )  # fmt: skip
        return found[:, ids.shape[1] :].tolist()

    return generate


def arrivals(engine: Any, prompts: list[list[int]], count: int, seconds: float) -> float:
    """Tokens per second of requests that arrive at random, all of them within about so many seconds."""
    from quatrain.generation.engine import SamplingParams

    params = SamplingParams(max_new_tokens=count, ignore_eos=True)
    times = sorted(random.Random(len(prompts)).uniform(0, seconds) for _ in prompts)
    start, requests = time.perf_counter(), []
    while len(requests) < len(prompts) or not engine.scheduler.is_idle:
        while len(requests) < len(prompts) and time.perf_counter() - start >= times[len(requests)]:
            requests.append(engine.submit(prompts[len(requests)], params))
        engine.step()
    return len(prompts) * count / (time.perf_counter() - start)


class Bench:
    """All sides, and new prompts for every turn."""

    def __init__(self, folder: Path, shape: dict[str, int], chosen: Any):
        import torch

        self.shape, self.chosen, self.draw = shape, chosen, random.Random(0)
        self.engines = {form: our_engine(folder, form) for form in OURS if form in chosen.formats}
        self.sides: dict[str, Generate] = {form: ours(engine) for form, engine in self.engines.items()}
        for name in PEERS:
            if name in chosen.formats:
                self.sides[name] = theirs(folder, name.split()[1])
        self.llama: Llama | None = None
        self.llama_forms = [form for form in LLAMA if form in chosen.formats]
        if self.llama_forms:
            self.llama = Llama(chosen.llama, folder, shape, torch.get_num_threads())
            if self.llama.version is None:
                print(f"{chosen.llama} cannot import llama_cpp and gguf, so llama.cpp is left out")
                self.llama_forms = []

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Random prompts that no turn has had before."""
        return [[self.draw.randrange(3, self.shape["vocab_size"]) for _ in range(length)] for _ in range(count)]

    def rate(self, name: str, streams: int, length: int, new: int, counted: int) -> float:
        """Tokens per second of one call, of which `counted` tokens count."""
        prompts = self.prompts(streams, length)
        if name in self.llama_forms and self.llama is not None:
            return counted / self.llama.ask(name, prompts[0], new)["seconds"]
        start = time.perf_counter()
        found = self.sides[name](prompts, new)
        seconds = time.perf_counter() - start
        if any(len(ids) != new for ids in found):
            raise SystemExit(f"{name}: did not generate {new} tokens for each prompt")
        return counted / seconds

    def measure(self, what: str) -> dict[str, dict[str, Any]]:
        """One measure of every side, in turns; prints a line each."""
        chosen = self.chosen
        new, length, streams = chosen.new_tokens, chosen.prompt, chosen.streams
        sizes = {"single": (1, length, new, new), "streams": (streams, length, new, streams * new),
                 "prefill": (1, PREFILL, 1, PREFILL)}[what]  # fmt: skip
        names = [*self.sides, *(self.llama_forms if what != "streams" else [])]
        for name in names:
            self.rate(name, *sizes)  # warms up, and chooses kernels
        calls = {name: lambda name=name: self.rate(name, *sizes) for name in names}
        rates = {name: spread(values) for name, values in in_turns(calls, chosen.repeat).items()}
        print(f"\n{what}: {sizes[0]} x {sizes[1]} tokens read, {sizes[2]} generated")
        for name, rate in rates.items():
            print(
                f"  {name:<24} {rate['median']:>9,.0f} tokens/s ({rate['min']:,.0f} to {rate['max']:,.0f})", flush=True
            )
        return rates

    def arrive(self) -> dict[str, dict[str, Any]]:
        """Requests that arrive at random, and one by one; for each of our formats."""
        found = {}
        for form, engine in self.engines.items():
            count, new = 2 * self.chosen.streams, self.chosen.new_tokens
            alone = [self.rate(form, 1, self.chosen.prompt, new, new) for _ in range(3)]
            repeat = max(self.chosen.repeat // 2, 1)
            together = [arrivals(engine, self.prompts(count, self.chosen.prompt), new, 0.2) for _ in range(repeat)]
            found[form] = {"one_by_one": spread(alone), "at_random": spread(together),
                           "ratio": max(together) / max(alone)}  # fmt: skip
            print(f"  arrivals {form:<15} {max(together):>9,.0f} tokens/s, {max(alone):,.0f} one by one", flush=True)
        return found

    def agreement(self) -> dict[str, float]:
        """The share of greedy ids that are transformers' in float32, or else our float32's."""
        reference = next((name for name in ("transformers float32", "float32") if name in self.sides), None)
        if reference is None:
            return {}
        prompts, new = self.prompts(8, self.chosen.prompt), 8
        expected = self.sides[reference](prompts, new)
        texts = {name: side(prompts, new) for name, side in self.sides.items()}
        for form in self.llama_forms:
            if self.llama is not None:
                texts[form] = [self.llama.ask(form, prompt, new)["ids"] for prompt in prompts]
        total = len(prompts) * new
        return {
            name: sum(a == b for left, right in zip(ids, expected, strict=True) for a, b in zip(left, right)) / total
            for name, ids in texts.items()
        }


def ratios_of(rates: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """What the docstring promises, as far as it was measured; of the best turns, the least disturbed ones."""
    found = {}
    single = rates.get("single", {})
    for form, own in SAME_BITS.items():
        if form in single and any(name in single for name in own):
            found[f"single_{form}"] = max(single[name]["max"] for name in own if name in single) / single[form]["max"]
    for what in ("single", "streams", "prefill"):
        values = rates.get(what, {})
        best = [max((values[name]["max"] for name in names if name in values), default=0) for names in (OURS, PEERS)]
        if all(best):
            found[f"{what}_transformers"] = best[0] / best[1]
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--llama", default=sys.executable, help="a Python that has llama-cpp-python and gguf")
    arguments.add_argument("--formats", nargs="+", default=[*OURS, *PEERS, *LLAMA], help="which sides take part")
    arguments.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    arguments.add_argument("--streams", type=int, default=16)
    arguments.add_argument("--prompt", type=int, default=32)
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--repeat", type=int, default=5)
    chosen = arguments.parse_args()
    if chosen.quick:
        chosen.formats = ["float32", "int8", "transformers float32"]
        chosen.streams, chosen.prompt, chosen.new_tokens, chosen.repeat = 2, 4, 4, 1
    from quatrain.models.kernels.decode import memory_bandwidth

    with tempfile.TemporaryDirectory() as name:
        shape = TINY if chosen.quick else SHAPE
        write_model(Path(name), shape)
        bench = Bench(Path(name), shape, chosen)
        rates = {what: bench.measure(what) for what in ("single", "streams", "prefill") if what in chosen.only}
        came = bench.arrive() if "arrivals" in chosen.only else {}
        agreement = bench.agreement()
    bandwidth = memory_bandwidth()
    decoders = {}
    for form, engine in bench.engines.items():
        native = engine.scheduler.runner.native
        read = 0 if native.decoder is None else native.decoder.step_bytes
        best = rates.get("single", {}).get(form, {}).get("max", 0.0)
        decoders[form] = {"decoder": engine.statistics.decoder, "reason": native.reason, "step_bytes": read,
                          "bandwidth_fraction": read * best / bandwidth, "measured": native.measured}  # fmt: skip
        print(f"  {form}: {decoders[form]}")
    ratios = ratios_of(rates) | {f"arrivals_{form}": row["ratio"] for form, row in came.items()}
    print(f"\nmemory: {bandwidth / 1e9:.1f} GB/s; ratios: {ratios}; the same ids: {agreement}")
    singles = [ratio for key, ratio in ratios.items() if key.startswith("single_") and "transformers" not in key]
    finish(
        "engine",
        geometric_mean(singles) if singles else ratios.get("single_transformers", 1.0),
        "one stream, tokens/s of the engine / of llama.cpp, the mean of 16, 8 and 4 bits (of transformers without it)",
        quick=chosen.quick,
        ratios=ratios,
        rates=rates,
        arrivals=came,
        agreement=agreement,
        decoders=decoders,
        memory_bandwidth=bandwidth,
        llama_cpp=None if bench.llama is None else bench.llama.version,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve-llama"]:
        serve_llama(*sys.argv[2:])
    elif sys.argv[1:2] == ["write-gguf"]:
        write_gguf(Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])
    else:
        main()
