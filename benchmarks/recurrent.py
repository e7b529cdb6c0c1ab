"""Training a recurrent language model: our trainer beside the plain PyTorch loop over `nn.LSTM`.

Both have the same weights, batches, truncated back-propagation with carried state, AdamW and clipping; losses are
compared. Speed is by processor time, so that other work on the machine does not count. With --wikitext an LSTM learns
WikiText-2's validation text and is measured on the test text, beside modified Kneser-Ney n-grams and the mean of both
models' probabilities.

    python benchmarks/recurrent.py [--cells lstm gru] [--repeat 3] [--steps 60] [--rows 20] [--length 35]
    python benchmarks/recurrent.py --wikitext FOLDER [--epochs 24] [--checkpoints FOLDER]
"""

from __future__ import annotations

import gzip
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import finish, geometric_mean, in_turns, parser, spread

SIZES = {"vocab_size": 10_000, "hidden_size": 256, "num_hidden_layers": 1, "embedding_size": 256}
QUICK = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "embedding_size": 16}
WARM = 2
"""Steps of a turn that are not counted."""
RATE = {"learning_rate": 2e-3, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.95}


def text(vocabulary: int, count: int) -> Any:
    """Tokens of which each says much about the next one."""
    import numpy as np

    generator = np.random.default_rng(0)
    drawn = generator.zipf(1.3, count) % vocabulary
    return np.where(generator.random(count) < 0.5, (np.roll(drawn, 1) * 31 + 7) % vocabulary, drawn)


def ours(model: Any, tokens: Any, arguments: Any) -> tuple[float, float]:
    """Tokens in a second of processor time, without the first steps, and the last loss."""
    from quatrain.training.objectives import CarriedCausal
    from quatrain.training.settings import TrainSettings
    from quatrain.training.streams import CarriedStream
    from quatrain.training.trainer import Hooks, Trainer

    settings = TrainSettings(
        steps=arguments.steps, batch_tokens=arguments.rows * arguments.length, precision="float32",
        schedule="constant", warmup_steps=0, log_every=1, **RATE,
    )  # fmt: skip
    losses: list[float] = []
    times: list[float] = []
    stream = CarriedStream(tokens, length=arguments.length, rows=arguments.rows, seed=0)
    hooks = Hooks(
        log=lambda entry: losses.append(entry["loss"]),
        progress=lambda step, **metrics: times.append(time.process_time()),
    )
    Trainer(model, CarriedCausal(), stream, settings, steps=arguments.steps, hooks=hooks).train()
    return rate_of(times, arguments), losses[-1]


def rate_of(times: list[float], arguments: Any) -> float:
    """Tokens per second from the processor time at the end of each step; the first `WARM` steps do not count."""
    return (len(times) - WARM) * arguments.rows * arguments.length / (times[-1] - times[WARM - 1])


def theirs(model: Any, tokens: Any, arguments: Any) -> tuple[float, float]:
    """The same, written out: the loop of PyTorch's word language model example with AdamW."""
    import torch
    from torch import nn

    from quatrain.training.streams import CarriedStream

    config, cell = model.config, model.stack.layers[0].cell
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.cell]
    layers = kind(config.embedding_width, config.output_hidden_size, 1, batch_first=True)
    layers.load_state_dict(cell.state_dict())
    embedding, head = (
        nn.Embedding(config.vocab_size, config.embedding_width),
        nn.Linear(config.embedding_width, config.vocab_size),
    )
    embedding.weight.data.copy_(model.embed_tokens.weight)
    head.weight = embedding.weight
    head.bias.data.copy_(model.lm_head.bias)
    parameters = list(dict.fromkeys([*embedding.parameters(), *layers.parameters(), *head.parameters()]))
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": RATE["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE["learning_rate"], betas=(RATE["beta1"], RATE["beta2"]), fused=True)
    stream = CarriedStream(tokens, length=arguments.length, rows=arguments.rows, seed=0)
    state, loss, times = None, torch.zeros(()), []
    for _ in range(arguments.steps):
        batch = stream.next()
        optimizer.zero_grad()
        out, state = layers(embedding(batch.input_ids), state)
        logits = head(out)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        times.append(time.process_time())
    return rate_of(times, arguments), float(loss.detach())


def speed(arguments: Any) -> dict[str, Any]:
    """Tokens per second of both sides in turns, for each cell."""
    from quatrain.models.classic.recurrent import RecurrentLM, RecurrentLMConfig

    sizes = QUICK if arguments.quick else SIZES
    tokens = text(sizes["vocab_size"], 200_000 if not arguments.quick else 3_000)
    found: dict[str, Any] = {}
    for cell in arguments.cells:
        losses: dict[str, float] = {}

        def turn(side: Any, name: str, cell: str = cell, losses: dict[str, float] = losses) -> float:
            model = RecurrentLM(RecurrentLMConfig(cell=cell, **sizes)).initialize(0)
            rate, losses[name] = side(model, tokens, arguments)
            return rate

        rates = in_turns(
            {"quatrain": lambda: turn(ours, "quatrain"), "torch": lambda: turn(theirs, "torch")}, arguments.repeat
        )
        medians = {name: spread(values) for name, values in rates.items()}
        ratio = medians["quatrain"]["median"] / medians["torch"]["median"]
        own, other = (medians[name]["median"] for name in ("quatrain", "torch"))
        print(f"{cell}: ours {own:,.0f} tokens/s, plain PyTorch {other:,.0f}: {ratio:.2f} times")
        print(f"  last loss {losses['quatrain']:.4f} and {losses['torch']:.4f}")
        found[cell] = {"tokens_per_second": medians, "ratio": ratio, "last_loss": losses}
    return found


def wikitext(folder: Path, epochs: int, checkpoints: Path | None = None) -> dict[str, Any]:
    """Test perplexities of an LSTM, of n-grams and of both, learned from the validation text.

    A run that is stopped goes on from `checkpoints`; its seconds are those of the steps then, by the clock.
    """
    import numpy as np
    import torch

    from quatrain.models.classic.ngram import NgramModel
    from quatrain.models.classic.recurrent import RecurrentLM, RecurrentLMConfig
    from quatrain.models.io import model_folder
    from quatrain.runs.learning import load_weights
    from quatrain.training.objectives import CarriedCausal
    from quatrain.training.sampled_loss import SampledSoftmax
    from quatrain.training.settings import TrainSettings
    from quatrain.training.streams import CarriedStream
    from quatrain.training.trainer import Hooks, Trainer

    learned, vocabulary = read_words(folder / "valid.txt.gz", None)
    test, _ = read_words(folder / "test.txt.gz", vocabulary)
    config = RecurrentLMConfig(
        vocab_size=len(vocabulary), hidden_size=320, embedding_size=200, num_hidden_layers=2, dropout=0.5,
        weight_drop=0.4,
    )  # fmt: skip
    model = RecurrentLM(config).initialize(0)
    length, rows = 35, 16
    stream = CarriedStream(learned, length=length, rows=rows, seed=0)
    steps = epochs * stream.batches
    settings = TrainSettings(
        steps=steps, batch_tokens=rows * length, schedule="linear", warmup_steps=100,
        learning_rate=0.003, weight_decay=0.02, beta2=0.99, max_grad_norm=0.5, log_every=1, checkpoint_every=400,
    )  # fmt: skip
    objective = CarriedCausal()
    objective.sampler = SampledSoftmax(np.bincount(learned, minlength=len(vocabulary)), 2000)
    began = time.process_time()

    def progress(step: int, **metrics: float) -> None:
        spent = time.process_time() - began
        if step % 200 == 0:
            print(f"  step {step:,}/{steps:,}, loss {metrics['loss']:.3f}, {spent:.0f} s", flush=True)

    hooks = Hooks(progress=progress, save=partial(model_folder.save, model), load=partial(load_weights, model))
    trained = Trainer(model, objective, stream, settings, steps=steps, hooks=hooks, folder=checkpoints).train()
    seconds = trained.seconds if checkpoints else time.process_time() - began
    neural = token_log_probs(model, test)
    print(f"LSTM: perplexity {math.exp(-neural.mean()):.1f} after {seconds:.0f} s of processor time")
    found: dict[str, Any] = {"lstm": {"perplexity": math.exp(-neural.mean()), "seconds": seconds}}
    began = time.process_time()
    counted = NgramModel.fit(learned, len(vocabulary), 5, "modified_kneser_ney")
    ngram = token_log_probs(counted, test)
    both = torch.logaddexp(neural, ngram) - math.log(2)
    found["ngram"] = {"perplexity": math.exp(-ngram.mean()), "seconds": time.process_time() - began}
    found["both"] = {"perplexity": math.exp(-both.mean())}
    print(f"5-gram: {found['ngram']['perplexity']:.1f}; mean of both probabilities: {found['both']['perplexity']:.1f}")
    return found | {"epochs": epochs, "vocabulary": len(vocabulary), "tokens": len(test)}


def read_words(path: Path, vocabulary: dict[str, int] | None) -> tuple[Any, dict[str, int]]:
    """The words of a text between spaces, each line with words followed by </s>; unknown ones are <unk>."""
    import numpy as np

    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    words = [word for line in lines if line.strip() for word in (*line.split(), "</s>")]
    if vocabulary is None:
        vocabulary = {word: number for number, word in enumerate(dict.fromkeys(["<unk>", *words]))}
    return np.array([vocabulary.get(word, 0) for word in words], dtype=np.int64), vocabulary


def token_log_probs(model: Any, tokens: Any, part: int = 500) -> Any:
    """The log-probability of each token of a text but the first, read in one pass."""
    import torch

    states, parts = model.eval().start(1), []
    with torch.inference_mode():
        for start in range(0, len(tokens) - 1, part):
            ids = torch.from_numpy(tokens[start : start + part + 1])
            hidden, states = model.advance(states, [ids[:-1].tolist()])
            parts.append(-model.losses(hidden[0], ids[1:]).double())
    return torch.cat(parts)


def main() -> None:
    """Reads the command line, measures, and prints one JSON line."""
    asked = parser(__doc__)
    asked.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=["rnn", "lstm", "gru"])
    asked.add_argument("--repeat", type=int, default=3)
    asked.add_argument("--steps", type=int, default=60)
    asked.add_argument("--rows", type=int, default=20)
    asked.add_argument("--length", type=int, default=35)
    asked.add_argument("--wikitext", type=Path, help="folder with valid.txt.gz and test.txt.gz")
    asked.add_argument("--epochs", type=int, default=24)
    asked.add_argument("--checkpoints", type=Path, help="folder from which a stopped --wikitext goes on")
    arguments = asked.parse_args()
    if arguments.quick:
        arguments.repeat, arguments.steps, arguments.rows = 1, 3, 4
    if arguments.wikitext:
        found = wikitext(arguments.wikitext, arguments.epochs, arguments.checkpoints)
        ratio = found["ngram"]["perplexity"] / found["lstm"]["perplexity"]
        finish("recurrent", ratio, "perplexity of 5-grams over that of the LSTM", quick=False, wikitext=found)
        return
    found = speed(arguments)
    ratio = geometric_mean(each["ratio"] for each in found.values())
    finish("recurrent", ratio, "our tokens per second over plain PyTorch's", quick=arguments.quick, cells=found)


if __name__ == "__main__":
    main()
