"""What rounding weights to 8 and 4 bits costs: ours beside llama.cpp's Q8_0 and Q4_0, on a trained model.

The float32 model draws texts at temperature 1. The mean of log p(token) under it less that under a rounded model is the
divergence KL(float32 | rounded) in nats per token, what rounding adds to the cross-entropy. Ours runs in native code,
with inputs rounded as when it generates; llama.cpp through llama-cpp-python in a child process.

    python benchmarks/quantized_error.py MODEL [--llama PYTHON] [--texts 32] [--length 128]

MODEL is a folder of a Llama whose widths are multiples of 32, such as a run's model. The ratio is int8's divergence
over that of Q8_0 (int4's is in the line too).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import child_environment, finish, parser
from engine import SHAPE, write_gguf

LLAMA = ("F16", "Q8_0", "Q4_0")


def score_llama(folder: str, shape: str, texts: str) -> None:
    """Prints the log-probabilities of each text's tokens after the first, in every format; without torch."""
    import llama_cpp
    import numpy as np

    sizes, found = json.loads(shape), {}
    for form in LLAMA:
        path = write_gguf(Path(folder), sizes, form)
        model = llama_cpp.Llama(
            str(path), n_ctx=sizes["max_position_embeddings"], n_threads=1, logits_all=True, verbose=False
        )  # fmt: skip
        path.unlink()
        found[form] = []
        for ids in json.loads(Path(texts).read_text()):
            model.reset()
            model.eval(ids)
            logits = np.array(model.scores[: len(ids) - 1], dtype=np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = logits[np.arange(len(ids) - 1), ids[1:]]
            found[form].append((chosen - np.log(np.exp(logits).sum(axis=1))).tolist())
    print(json.dumps({"version": llama_cpp.__version__, "scores": found}))


def our_scores(model: Any, texts: list[list[int]], native: bool) -> list[list[float]]:
    """The log-probabilities of each text's tokens after the first, read one by one."""
    import torch

    from quatrain.generation.runner import ModelRunner

    runner = ModelRunner(model.eval(), len(texts), native=native)
    runner.refresh()
    if native and runner.native.decoder is None:
        raise SystemExit(f"native code does not run this model: {runner.native.reason}")
    columns = []
    for place in range(len(texts[0]) - 1):
        logits = runner.read(0, [[ids[place]] for ids in texts], adapters=[None] * len(texts), decoding=True)
        following = torch.tensor([[ids[place + 1]] for ids in texts])
        columns.append(logits.double().log_softmax(-1).gather(1, following)[:, 0])
    scores: list[list[float]] = torch.stack(columns, 1).tolist()
    return scores


def llama_scores(python: str, model: Any, texts: list[list[int]], folder: Path) -> dict[str, Any]:
    """The same of llama.cpp, from a child process; empty without llama-cpp-python."""
    import numpy as np

    config = model.config
    shape = {name: getattr(config, name) for name in SHAPE}
    if config.family != "llama" or config.num_key_value_heads != config.num_attention_heads:
        print("llama.cpp is left out: the comparison writes Llamas without grouped keys")
        return {}
    for name, parameter in model.named_parameters():
        np.save(folder / f"{name}.npy", parameter.detach().float().numpy())
    (folder / "texts.json").write_text(json.dumps(texts))
    command = [python, __file__, "score-llama", str(folder), json.dumps(shape), str(folder / "texts.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if done.returncode:
        print(f"llama.cpp is left out: {done.stderr.strip().splitlines()[-1:]}")
        return {}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("model", nargs="?", help="a model folder; without one, a tiny model of random weights")
    arguments.add_argument("--llama", default=sys.executable, help="a Python that has llama-cpp-python and gguf")
    arguments.add_argument("--texts", type=int, default=32)
    arguments.add_argument("--length", type=int, default=128)
    chosen = arguments.parse_args()
    if chosen.quick:
        chosen.texts, chosen.length = 2, 8
    import torch

    from quatrain.compression import methods
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.loading.model import ResolvedModel, load_model
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model

    def load() -> Any:
        if chosen.model is not None:
            return load_model(ResolvedModel.of(chosen.model), dtype=torch.float32)[0]
        tiny = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}  # fmt: skip
        return Model(ModelConfig(family="llama", **tiny)).initialize(seed=0)

    exact, start = load(), [0]
    params = SamplingParams(chosen.length - 1, temperature=1.0, ignore_eos=True, seed=0)
    drawn = Engine(exact, native=False).generate([start] * chosen.texts, params)
    texts = [[*start, *completion.ids] for completion in drawn]
    expected = torch.tensor(our_scores(exact, texts, native=False))
    scores: dict[str, Any] = {}
    for form in ("bfloat16", "int8", "int4"):
        model = load()
        if form == "bfloat16":
            model = model.to(torch.bfloat16)
        else:
            methods.quantize(model, form)
        scores[form] = our_scores(model, texts, native=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs = llama_scores(chosen.llama, exact, texts, Path(folder))
    scores |= theirs.get("scores", {})
    results = {}
    print(f"{chosen.texts} texts of {chosen.length} tokens; float32: {-float(expected.mean()):.4f} nats per token")
    for form, values in scores.items():
        difference = expected - torch.tensor(values)
        results[form] = {"divergence": float(difference.mean()),
                         "error": float(difference.mean(1).std() / len(values) ** 0.5)}  # fmt: skip
        print(f"  {form:<10} {results[form]['divergence']:+.5f} ± {results[form]['error']:.5f}")
    ratio = results["int8"]["divergence"] / results["Q8_0"]["divergence"] if "Q8_0" in results else 1.0
    finish(
        "quantized_error",
        ratio,
        "divergence of int8 / of Q8_0",
        quick=chosen.quick,
        float32=-float(expected.mean()),
        results=results,
        llama_cpp=theirs.get("version"),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["score-llama"]:
        score_llama(*sys.argv[2:])
    else:
        main()
