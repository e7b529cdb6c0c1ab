"""Forward and backward, and decoding, of every family beside transformers: the same weights and batch, float32 and
bfloat16.

Each side has a process of its own for each family; they take turns. A turn is a forward and backward pass with the
loss, a forward pass alone, and a greedy completion of one prompt where the model generates text. It says the time, the
peak memory beyond what the process held before, and the share of a limit that is reached: of the measured rate of
matrix products (operations by PyTorch's counter over transformers' eager model), and in decoding of the measured rate
of reading memory (the bytes of all weights but the embedding, once for each token). transformers runs as it comes, with
PyTorch's attention; its completion is a plain loop without what `generate` adds, ours the engine's. The ratio is
transformers' time over ours for forward and backward, the geometric mean over all families and dtypes.

    python benchmarks/families.py [--families llama gpt2 ...] [--dtypes float32 bfloat16] [--repeat 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    Worker,
    clock_of,
    continue_greedily,
    finish,
    geometric_mean,
    in_turns,
    our_decoder,
    parser,
    product_rate,
    reading_rate,
    require,
    serve,
    spread,
)

SIDES = ("quatrain", "transformers")
ROWS, LENGTH = 8, 256
PROMPT, NEW = 16, 32
SIZE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8,
        "max_position_embeddings": 512, "vocab_size": 8192}  # fmt: skip
GROUPED = SIZE | {"num_key_value_heads": 4}
PLAIN = SIZE | {"intermediate_size": 2048}
BOTH = {"d_model": 512, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "vocab_size": 8192,
        "max_position_embeddings": 512, "pad_token_id": 0, "decoder_start_token_id": 0}  # fmt: skip
T5 = {"d_model": 512, "d_kv": 64, "d_ff": 1536, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 8,
      "vocab_size": 8192, "decoder_start_token_id": 0}  # fmt: skip
WINDOWED = {"head_dim": 64, "sliding_window": 128}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", GROUPED | {"sliding_window": 128}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", GROUPED | {"head_dim": 64}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", GROUPED | WINDOWED),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", GROUPED | WINDOWED),
    "phi": ("PhiConfig", "PhiForCausalLM", PLAIN),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", GROUPED | {"pad_token_id": 0}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 512,
                                               "vocab_size": 8192}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"hidden_size": 512, "ffn_dim": 2048, "num_hidden_layers": 4,
                                            "num_attention_heads": 8, "max_position_embeddings": 512,
                                            "vocab_size": 8192, "word_embed_proj_dim": 512}),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 512, "n_layer": 4, "n_head": 8, "vocab_size": 8192}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", PLAIN),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", GROUPED),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", GROUPED | {"sliding_window": 128}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", GROUPED | {"pad_token_id": 0}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", GROUPED | {"attention_multiplier": 0.015625}),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", GROUPED | {"sliding_window": 128}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", PLAIN | {"num_key_value_heads": 4}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", GROUPED),
    "falcon": ("FalconConfig", "FalconForCausalLM", {"hidden_size": 512, "num_hidden_layers": 4,
                                                     "num_attention_heads": 8, "vocab_size": 8192}),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", GROUPED | {"head_dim": 64, "pad_token_id": 0}),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", {"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 512,
                                               "vocab_size": 8192, "rotary_dim": 16}),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM", {"hidden_size": 512, "num_layers": 4, "num_heads": 8,
                                                      "max_position_embeddings": 512, "vocab_size": 8192,
                                                      "window_size": 128,
                                                      "attention_types": [[["global", "local"], 2]]}),
    "openai-gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel", {"n_embd": 512, "n_layer": 4, "n_head": 8,
                                                               "n_positions": 512, "vocab_size": 8192}),
    "nanochat": ("NanoChatConfig", "NanoChatForCausalLM", PLAIN),
    "ministral3": ("Ministral3Config", "Ministral3ForCausalLM", GROUPED | {"head_dim": 64, "pad_token_id": 0}),
    "bert": ("BertConfig", "BertForMaskedLM", PLAIN),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", PLAIN),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", PLAIN | {"embedding_size": 128}),
    "mpnet": ("MPNetConfig", "MPNetForMaskedLM", PLAIN | {"max_position_embeddings": 514}),
    "nomic_bert": ("NomicBertConfig", "NomicBertForMaskedLM", SIZE),
    "deberta-v2": ("DebertaV2Config", "DebertaV2ForMaskedLM", PLAIN | {
        "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", PLAIN | {"max_position_embeddings": 514}),
    "distilbert": ("DistilBertConfig", "DistilBertForMaskedLM", {"dim": 512, "hidden_dim": 2048, "n_layers": 4,
                                                                 "n_heads": 8, "vocab_size": 8192}),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", SIZE | {"intermediate_size": 768, "pad_token_id": 0}),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "bart": ("BartConfig", "BartForConditionalGeneration", BOTH | {"pad_token_id": 1}),
    "marian": ("MarianConfig", "MarianMTModel", BOTH),
}  # fmt: skip
TINY = {"hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "d_kv": 8, "vocab_size": 64, "head_dim": 8,
        "word_embed_proj_dim": 32}  # fmt: skip
WITHOUT_DECODING = "Masked", "OpenAIGPT"
"""Heads that generate no text, and a model that transformers runs without a cache."""
NO_DROPOUT = ("dropout", "attention_dropout", "activation_dropout", "dropout_rate", "hidden_dropout_prob",
              "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout",
              "classifier_dropout_prob", "residual_dropout", "resid_dropout", "embed_dropout",
              "embedding_dropout")  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}


def write(name: str, folder: Path, quick: bool) -> None:
    """A folder with a random transformers model of this family."""
    import torch

    transformers = require("transformers")
    config_class, model_class, settings = MODELS[name]
    settings = settings | {key: value for key, value in TINY.items() if quick and key in settings}
    config = getattr(transformers, config_class)(**{**TOKENS, **settings})
    for rate in NO_DROPOUT:
        if hasattr(config, rate):
            setattr(config, rate, 0.0)
    torch.manual_seed(0)
    getattr(transformers, model_class)(config).save_pretrained(folder)


def batch(vocabulary: int, device: str, quick: bool) -> tuple[Any, Any]:
    """Ids and labels (ROWS, LENGTH)."""
    import torch

    rows, length = (2, 16) if quick else (ROWS, LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(3, vocabulary, (rows, length), generator=generator) for _ in range(2))
    return ids.to(device), labels.to(device)


def ours(folder: Path, dtype: Any, device: str) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Our model, and its mean loss on ids and labels."""
    from quatrain.models.io import model_folder

    model = model_folder.load(folder, dtype=dtype, device=device)
    return model, lambda ids, labels: model(ids, labels)[1].mean()


def theirs(name: str, folder: Path, dtype: Any, device: str) -> tuple[Any, Callable[[Any, Any], Any]]:
    """transformers' model, and its mean loss: of the logits, so that both sides score the same labels."""
    from torch.nn.functional import cross_entropy

    transformers = require("transformers")
    model = getattr(transformers, MODELS[name][1]).from_pretrained(folder, dtype=dtype).to(device).eval()
    without_cache = "Masked" in MODELS[name][1] or name == "openai-gpt"
    extra: dict[str, Any] = {} if without_cache else {"use_cache": False}

    def loss(ids: Any, labels: Any) -> Any:
        if model.config.is_encoder_decoder:
            start = labels.new_full((labels.shape[0], 1), model.config.decoder_start_token_id)
            given = {"decoder_input_ids": _shift(start, labels), "use_cache": False}
        else:
            given = extra
        logits = model(input_ids=ids, **given).logits
        return cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    return model, loss


def _shift(start: Any, labels: Any) -> Any:
    import torch

    return torch.cat((start, labels[:, :-1]), dim=1)


def work(name: str, side: str, folder: Path, given: argparse.Namespace) -> None:
    """A worker's side: memory of a forward and backward pass at each turn, its time, and that of a forward pass."""
    import gc

    import torch

    from quatrain.core.process_memory import peak_memory, reset_peak_memory

    dtype, device, quick, clock = (
        getattr(torch, given.dtypes[0]),
        given.device,
        given.quick,
        clock_of(given.processor_time),
    )
    model, loss_of = ours(folder, dtype, device) if side == "quatrain" else theirs(name, folder, dtype, device)
    ids, labels = batch(model.config.vocab_size, device, quick)
    decode, new = None, 3 if quick else NEW
    if not any(kind in MODELS[name][1] for kind in WITHOUT_DECODING):
        decode = our_decoder(model) if side == "quatrain" else partial(continue_greedily, model)

    def both() -> float:
        loss = loss_of(ids, labels)
        loss.backward()
        return float(loss.detach())

    def forward() -> None:
        with torch.inference_mode():
            loss_of(ids, labels)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(call: Callable[[], Any], seconds: float) -> float:
        wait()
        start, times = clock(), 0
        while times < 1 or clock() - start < seconds:
            call()
            times += 1
        wait()
        return (clock() - start) / times

    def measure() -> dict[str, Any]:
        model.zero_grad(set_to_none=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            reset_peak_memory()
            before = peak_memory()
        loss = both()
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
        span = 0.0 if quick else 0.6
        found = {"loss": loss, "peak_bytes": peak, "passes_bytes": peak - before}
        if given.memory:
            return found
        found["both_seconds"] = timed(both, span)
        model.zero_grad(set_to_none=True)
        found["forward_seconds"] = timed(forward, span / 2)
        if device == "cpu":
            found["matmul_flops_per_second"] = product_rate(dtype, 256 if quick else 1024, clock)
        if decode is not None:
            found["token_seconds"] = timed(lambda: decode(ids[:1, :PROMPT], new), span) / new
            if device == "cpu" and side == "quatrain" and model.encoder is None:
                found["bytes_per_second"] = reading_rate(clock)
                found["weight_bytes"] = sum(weight.nbytes for weight in model.parameters()) - embedding_bytes(model)
        return found

    serve(measure)


def embedding_bytes(model: Any) -> int:
    """The bytes of the embedding, which a token reads one row of; 0 where the head reads it as a whole."""
    return 0 if model.config.tie_word_embeddings else int(model.embed_tokens.weight.nbytes)


def flops(name: str, folder: Path, quick: bool) -> float:
    """Operations of one forward and backward, by PyTorch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, loss_of = theirs(name, folder, torch.float32, "cpu")
    ids, labels = batch(model.config.vocab_size, "cpu", quick)
    with FlopCounterMode(display=False) as counter:
        loss_of(ids, labels).backward()
    return float(counter.get_total_flops())


def turns_of(name: str, folder: str, options: list[str], repeat: int) -> dict[str, list[dict[str, Any]]]:
    """What the two sides' workers measured, in turns, the first of each not counted."""
    changed = {"MALLOC_MMAP_THRESHOLD_": "65536"} if "--memory" in options else {}
    os.environ.update(changed)  # what is freed is given back at once, so that a peak is what was in use
    try:
        workers = {side: Worker(__file__, "--worker", name, side, folder, *options) for side in SIDES}
    finally:
        for variable in changed:
            del os.environ[variable]
    calls: dict[str, Any] = {side: worker.turn for side, worker in workers.items()}
    in_turns(calls, 1)
    runs: dict[str, Any] = in_turns(calls, repeat)
    for worker in workers.values():
        worker.close()
    return runs


def compare(name: str, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides for one family and dtype, in turns; prints a line."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(name, folder, given.quick)
        count, repeat = flops(name, folder, given.quick), 1 if given.quick else given.repeat
        options = ["--device", given.device, "--dtypes", dtype]
        options += [flag for flag in ("--quick", "--processor-time") if getattr(given, flag[2:].replace("-", "_"))]
        memory = turns_of(name, made, [*options, "--memory"], 1)
        runs = turns_of(name, made, options, repeat)
    found: dict[str, Any] = {"family": name, "dtype": dtype}
    for side, turns in runs.items():
        found[side] = {
            "both_seconds": spread(turn["both_seconds"] for turn in turns),
            "forward_seconds": spread(turn["forward_seconds"] for turn in turns),
            "passes_bytes": memory[side][0]["passes_bytes"],
            "peak_bytes": memory[side][0]["peak_bytes"],
            "loss": turns[0]["loss"],
        }
        if "token_seconds" in turns[0]:
            found[side]["token_seconds"] = spread(turn["token_seconds"] for turn in turns)
    mine, peer = found["quatrain"], found["transformers"]
    decoded = ""
    if "token_seconds" in mine:
        token = mine["token_seconds"]["median"]
        found["decode_ratio"] = peer["token_seconds"]["median"] / token
        decoded = f"a token {token * 1e3:.2f} ms against {token * found['decode_ratio'] * 1e3:.2f} "
        decoded += f"({found['decode_ratio']:.2f}x) "
        rate = max(turn.get("bytes_per_second", 0.0) for turn in runs["quatrain"])
        if rate:
            found["share_of_bandwidth"] = runs["quatrain"][0]["weight_bytes"] / token / rate
            decoded += f"{found['share_of_bandwidth']:.0%} of bandwidth "
    for what in ("both_seconds", "forward_seconds"):
        found[what.replace("seconds", "ratio")] = peer[what]["median"] / mine[what]["median"]
    found["memory_ratio"] = mine["passes_bytes"] / max(1, peer["passes_bytes"])
    best = max((turn.get("matmul_flops_per_second", 0.0) for turns in runs.values() for turn in turns), default=0.0)
    found["share_of_matmul_peak"] = count / mine["both_seconds"]["median"] / best if best else None
    share = f"{found['share_of_matmul_peak']:>4.0%} of peak" if best else ""
    print(
        f"{name:<12} {dtype:<9} both {mine['both_seconds']['median'] * 1e3:>7.1f} ms against "
        f"{peer['both_seconds']['median'] * 1e3:>7.1f} ({found['both_ratio']:.2f}x)  "
        f"forward {found['forward_ratio']:.2f}x  {decoded} "
        f"memory {mine['passes_bytes'] / 1e6:>6.0f} against {peer['passes_bytes'] / 1e6:>6.0f} MB "
        f"({found['memory_ratio']:.2f})  {share}  loss {mine['loss']:.4f} {peer['loss']:.4f}",
        flush=True,
    )
    return found


def main() -> None:
    """Runs the benchmark; the last line is JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--families", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments.add_argument("--repeat", type=int, default=5)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--processor-time", action="store_true", help="for a busy machine, with one thread")
    arguments.add_argument("--memory", action="store_true", help="for a worker: memory alone")
    arguments.add_argument("--worker", nargs=3, metavar=("FAMILY", "SIDE", "FOLDER"))
    given = arguments.parse_args()
    if given.worker:
        name, side, folder = given.worker
        work(name, side, Path(folder), given)
        return
    require("transformers")
    found = [compare(name, dtype, given) for name in given.families for dtype in given.dtypes]
    finish(
        "families",
        geometric_mean(result["both_ratio"] for result in found),
        "transformers' time over ours, forward and backward, geometric mean",
        quick=given.quick,
        processor_time=given.processor_time,
        decode_ratio=geometric_mean(result["decode_ratio"] for result in found if "decode_ratio" in result)
        if any("decode_ratio" in result for result in found)
        else None,
        results=found,
    )


if __name__ == "__main__":
    main()
