"""lm-eval's tasks on our engine beside its Hugging Face backend: the same folder, the same scores, the seconds of each.

The model is a small Llama with random weights (256 wide, 6 layers) and a byte-level tokenizer of 2,000 tokens. The
tasks are local files: four choices after five worked examples and without any, whole texts, and greedy answers. Both
backends are loaded once; each turn is a whole `simple_evaluate`, lm-eval's own work included. Seconds are those of the
processor. Scores must agree, or the benchmark ends.

    python benchmarks/lm_eval_speed.py [--repeat 3] [--batch-sizes 1 16] [--tasks shots choice rolling writing]

`ratio` is the geometric mean over the tasks of the Hugging Face backend's seconds, at its best batch size, over ours.
"""

from __future__ import annotations

import json
import logging
import math
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import finish, geometric_mean, in_turns, parser, require, spread

WORDS = ("the a one two three river house green light water old new stone wind tree road bird night day hand long "
         "small runs falls holds turns grows sings waits under over near with from into").split()  # fmt: skip
QUESTIONS = 48
HEAD = """task: speed_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
training_split: test
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "Question: {{question}}\\n1. {{choices[0]}}\\n2. {{choices[1]}}\\n3. {{choices[2]}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TASKS: dict[str, tuple[str, int]] = {
    "shots": (CHOICE, 5),
    "choice": (CHOICE, 0),
    "rolling": ("""output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""", 0),
    "writing": ("""output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 48, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""", 0),
}  # fmt: skip
"""Each task and its worked examples."""


def write_all(folder: Path, questions: int, shape: dict[str, int]) -> None:
    """The model, the questions and the tasks."""
    import torch

    from quatrain.models.io import model_folder
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    rows = [{"question": text(30) + "?", "choices": [text(draw.randrange(2, 9)) for _ in range(4)],
             "answer": draw.randrange(4), "text": text(600)} for _ in range(questions)]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (task, _) in TASKS.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name, folder=folder) + task)
    tokenizer = Tokenizer.train([row["text"] for row in rows], vocab_size=2000, eos="<|endoftext|>")
    tokenizer.save(folder / "model")
    torch.manual_seed(0)
    config = ModelConfig(family="llama", vocab_size=tokenizer.vocab_size, max_position_embeddings=2048,
                         bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id, **shape)  # fmt: skip
    model_folder.save(Model(config).initialize(seed=0), folder / "model")


def backends(folder: Path, batch_sizes: list[int]) -> dict[str, Any]:
    """Ours, and the Hugging Face backend at each batch size."""
    from lm_eval.models.huggingface import HFLM

    from quatrain.evaluation.lm_eval_model import EngineLM
    from quatrain.evaluation.subject import LocalSubject

    model = str(folder / "model")
    found: dict[str, Any] = {"ours": EngineLM(LocalSubject(model))}
    for size in batch_sizes:
        found[f"hf, batch {size}"] = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=size)
    return found


def turn(backend: Any, folder: Path, name: str, scores: list[float]) -> Callable[[], float]:
    """A whole evaluation of a task; its score is added to `scores`."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def once() -> float:
        start = time.process_time()
        found = lm_eval.simple_evaluate(
            model=backend, tasks=[f"speed_{name}"], task_manager=manager, num_fewshot=TASKS[name][1], bootstrap_iters=0,
            log_samples=False,
        )  # fmt: skip
        seconds = time.process_time() - start
        values = found["results"][f"speed_{name}"]
        scores.append(next(value for key, value in values.items() if "," in key and isinstance(value, float)))
        return seconds

    return once


def main() -> None:
    """Reads the command line, measures, and prints one JSON line."""
    asked = parser(__doc__)
    asked.add_argument("--repeat", type=int, default=3)
    asked.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    asked.add_argument("--questions", type=int, default=QUESTIONS)
    asked.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = asked.parse_args()
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4,
             "num_key_value_heads": 4}  # fmt: skip
    questions = arguments.questions
    if arguments.quick:
        arguments.repeat, arguments.batch_sizes, questions = 1, [4], 8
        shape = shape | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    require("transformers")
    require("lm_eval", "eval")
    logging.disable(logging.WARNING)
    tasks = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_all(folder, questions, shape)
        models = backends(folder, arguments.batch_sizes)
        for name in arguments.tasks:
            scores: dict[str, list[float]] = {key: [] for key in models}
            calls = {key: turn(model, folder, name, scores[key]) for key, model in models.items()}
            if not arguments.quick:
                in_turns(calls, 1)  # the first round reads files and chooses kernels
            seconds = in_turns(calls, arguments.repeat)
            values = {key: own[0] for key, own in scores.items()}
            if any(not math.isclose(value, values["ours"], rel_tol=1e-4, abs_tol=1e-9) for value in values.values()):
                raise SystemExit(f"{name}: the backends disagree: {values}")
            medians = {key: spread(own)["median"] for key, own in seconds.items()}
            best = min(value for key, value in medians.items() if key != "ours")
            tasks[name] = {"seconds": medians, "ratio": best / medians["ours"], "score": values["ours"]}
            print(f"{name}: ours {medians['ours']:.2f} s, Hugging Face {best:.2f} s: {tasks[name]['ratio']:.2f} times")
    ratio = geometric_mean(each["ratio"] for each in tasks.values())
    finish("lm_eval_speed", ratio, "seconds of lm-eval's Hugging Face backend over those of our engine",
           quick=arguments.quick, tasks=tasks)  # fmt: skip


if __name__ == "__main__":
    main()
