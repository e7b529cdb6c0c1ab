"""One input: a command line over files in a folder of its own, and the exit codes that are right for it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.materials import FITTING, Materials

DONE, WRONG, EITHER = frozenset({0}), frozenset({2}), frozenset({0, 2})
ANY = frozenset({0, 1, 2})


@dataclass
class Case:
    """What is asked, and which exit codes are right: WRONG for what cannot be valid, EITHER where nobody knows."""

    words: Sequence[str]
    about: str
    codes: frozenset[int] = EITHER
    stdin: bytes = b""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables to set, or, with None, to take away."""
    process: bool = False
    """Whether it takes an interpreter of its own, because it is about how one begins or ends."""
    before: Callable[[], None] | None = None
    """What is done in the process at the last moment: close a stream."""
    call: Callable[[], int] | None = None
    """What is called instead of the command line; its exit code."""


class Bench:
    """Where an input is made: its own generator, its folder, and the valid things."""

    def __init__(self, draw: random.Random, materials: Materials):
        self.draw, self.materials = draw, materials

    def chance(self, share: float) -> bool:
        """True for this share of the inputs."""
        return self.draw.random() < share

    def copy(self, *parts: str, to: str | None = None) -> Path:
        """A copy of a file or folder of the materials in the input's folder."""
        source, target = self.materials.path(*parts), Path(to or parts[-1])
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    def model(self, *heads: str, names: Sequence[str] = ()) -> tuple[Path, str]:
        """A copy of some model, of one of these heads where any are named, and its head."""
        every = [
            name
            for name, head in self.materials.models.items()
            if (not heads or head in heads) and (not names or name in names)
        ]
        name = self.draw.choice(every)
        return self.copy("models", name), self.materials.models[name]

    def adapter(self) -> tuple[Path, str]:
        """A copy of some adapter, and the head of its model."""
        name = self.draw.choice(list(self.materials.adapters))
        return self.copy("models", name), self.materials.adapters[name]

    def asked(self, model: str | Path, head: str, *, whole: bool = False) -> tuple[list[str], bytes]:
        """A command line about a model, and what is typed to it; `whole`: one that reads its weights and tokenizer."""
        model, draw = str(model), self.draw
        choices: list[list[str]] = []
        typed = b"the cat\n/reset\nno dog\n"
        if head in ("causal", "seq2seq"):
            choices += [["generate", model, "the cat", "--max-new-tokens", "3", *draw.choice(GENERATE)]] * 3
        if head == "causal":
            choices += [["chat", model, "--max-new-tokens", "3"]]
            choices += [["evaluate", model, self.data("chat")], ["evaluate", model, self.data("text")]]
        elif head in FITTING:
            choices += [["evaluate", model, self.data(FITTING[head]), "--max-new-tokens", "2"]] * 3
        if head in ("causal", "masked", "pretraining"):
            choices += [["inspect", model, "--text", "the cat", "--next"]]
        choices += [["inspect", model, "--neighbours", "#5"]]
        if not whole:
            choices += [["inspect", model], ["inspect", model, "--text", "the cat"], ["plan", model],
                        ["tokenize", model, "the cat"], ["plan", model, "--method", draw.choice(METHODS)]]  # fmt: skip
        words = draw.choice(choices)
        asks_json = self.chance(0.2) and words[0] != "chat" and "--json" not in words
        return [*words, *(["--json"] if asks_json else [])], typed

    def data(self, name: str) -> str:
        """The path of a valid file of data; reading does not change it."""
        return str(self.materials.path("data", f"{name}.jsonl"))


METHODS = (
    "full",
    "lora",
    "qlora",
    "dora",
    "ia3",
    "bitfit",
    "last-layers",
    "prompt",
    "prefix",
    "loha",
    "lokr",
    "p-tuning",
)
GENERATE = (
    [], ["--temperature", "1", "--seed", "1"], ["--num-beams", "2"], ["--no-stream"], ["--top-k", "3", "--temperature",
                                                                                       "1"],
    ["--top-p", "0.5", "--temperature", "2"], ["--json"], ["--stop", "a"],
)  # fmt: skip
