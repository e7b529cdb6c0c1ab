"""Draws the pictures of docs/generation.md: what each way of choosing does to one distribution.

    python tools/draw_choosing.py [FOLDER]      (default: docs/images)

Grey is the model's distribution, blue what the library leaves of it, and a cross marks tokens that are ruled out. For
searches, which compare whole texts, small examples are worked out here. matplotlib is in the extra `plot`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image
from torch import Tensor

from quatrain.generation.choosing import TokenChooser
from quatrain.generation.constraints import GenerationRules
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import SequenceState

matplotlib.use("Agg")
from matplotlib import pyplot

WORDS = ["mat", "sofa", "floor", "bed", "chair", "table", "roof", "grass", "moon", "dog", "of", "⏎"]
PROBABILITIES = torch.tensor([0.30, 0.19, 0.14, 0.10, 0.075, 0.055, 0.04, 0.03, 0.02, 0.012, 0.008, 0.03])
LOGITS = PROBABILITIES.log()[None]
END = len(WORDS) - 1
GREY, BLUE, ORANGE, RED = "#c8ccd2", "#2f6fbf", "#e08a1e", "#b3261e"


def after(params: SamplingParams, new: list[int] = [], prompt: tuple[int, ...] = (), **rules: Any) -> Tensor:  # noqa: B006
    """The distribution from which the next token is drawn, after the prompt and some new tokens."""
    state = SequenceState(list(prompt) or [0], params, 99, 0, (END,))
    for token in new:
        state.append(token, 0.0)
    return TokenChooser(GenerationRules(**rules)).process(LOGITS, [state]).softmax(dim=-1)[0]


def bars(axes: Any, result: Tensor, before: Tensor = PROBABILITIES, words: list[str] = WORDS) -> None:
    """Grey bars before, blue bars after, and a cross over each token that is ruled out."""
    places = range(len(words))
    axes.bar(places, before.tolist(), width=0.86, color=GREY)
    axes.bar(places, result.tolist(), width=0.5, color=BLUE)
    for place, value in enumerate(result.tolist()):
        if value < 1e-9:
            axes.text(place, float(before[place]) + 0.01, "×", ha="center", color=RED, fontsize=9)
    axes.set_ylim(top=1.15 * max(float(before.max()), float(result.max())))
    _words(axes, words)


def _words(axes: Any, words: list[str]) -> None:
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def several(axes: Any, results: dict[str, Tensor], words: list[str] = WORDS) -> None:
    """Bars side by side, with a legend."""
    width = 0.8 / len(results)
    colors = [GREY, BLUE, ORANGE]
    for number, (name, values) in enumerate(results.items()):
        places = [place - 0.4 + width * (number + 0.5) for place in range(len(words))]
        axes.bar(places, values.tolist(), width=width, color=colors[number], label=name)
    axes.legend(fontsize=8, frameon=False)
    _words(axes, words)


def temperature(axes: Any) -> None:
    results = {f"temperature {value:g}": after(SamplingParams(temperature=value)) for value in (1.0, 0.5, 2.0)}
    several(axes, results)


def filtered(**params: Any) -> Callable[[Any], None]:
    return lambda axes: bars(axes, after(SamplingParams(temperature=1.0, **params)))


def penalized(new: list[int], **params: Any) -> Callable[[Any], None]:
    return lambda axes: bars(axes, after(SamplingParams(temperature=1.0, **params), new))


def greedy(axes: Any) -> None:
    bars(axes, torch.nn.functional.one_hot(PROBABILITIES.argmax(), len(WORDS)).float())


def samples(axes: Any) -> None:
    params = SamplingParams(temperature=1.0)
    states = [SequenceState([0], params, 1, seed) for seed in range(40)]
    tokens = TokenChooser().choose(LOGITS.expand(len(states), -1), states).tokens
    shares = torch.bincount(torch.tensor(tokens), minlength=len(WORDS)) / len(states)
    several(axes, {"the distribution": PROBABILITIES, "40 samples": shares})


def beams(axes: Any) -> None:
    """Two steps of a tree in which the likeliest first word does not begin the likeliest sentence."""
    first = {"mat": 0.4, "sofa": 0.35, "bed": 0.25}
    second = {"mat": {"and": 0.3, "of": 0.3, "…": 0.4}, "sofa": {"again": 0.9, "…": 0.1}, "bed": {"now": 0.5, "…": 0.5}}
    sequences = {f"{a} {b}": first[a] * p for a in first for b, p in second[a].items() if b != "…"}
    sequences["mat …"], sequences["sofa …"] = 0.4 * 0.4, 0.35 * 0.1
    ordered = sorted(sequences.items(), key=lambda pair: -pair[1])
    greedy_path, best = "mat …", ordered[0][0]
    colors = {best: BLUE, greedy_path: ORANGE}
    for place, (name, value) in enumerate(ordered):
        axes.bar(place, value, width=0.7, color=colors.get(name, GREY))
    axes.bar(0, 0, color=BLUE, label="num_beams=2 finds")
    axes.bar(0, 0, color=ORANGE, label="greedy finds (“mat” first)")
    axes.legend(fontsize=8, frameon=False)
    _words(axes, [name for name, _ in ordered])


def diverse(axes: Any) -> None:
    second = PROBABILITIES.log()
    second = second - 1.5 * torch.tensor([1.0, 1.0, *[0.0] * (len(WORDS) - 2)])
    several(
        axes, {"scores of group 1 (as probabilities)": PROBABILITIES, "of group 2, after “mat”, “sofa”": second.exp()}
    )


def forced(axes: Any) -> None:
    """Two beams, one forced word: the best token, and the one that leads to the word."""
    bars(axes, PROBABILITIES * torch.tensor([1.0, *[0.0] * 7, 1.0, *[0.0] * 3]))


def contrastive(axes: Any) -> None:
    similarity = torch.tensor([0.95, 0.55, 0.5, 0.62])
    scores = 0.4 * PROBABILITIES[:4] - 0.6 * similarity
    places = range(4)
    axes.bar(
        [place - 0.27 for place in places], PROBABILITIES[:4].tolist(), width=0.27, color=GREY, label="probability"
    )
    axes.bar(places, similarity.tolist(), width=0.27, color=ORANGE, label="similarity to the text so far")
    shifted = (scores - scores.min() + 0.02).tolist()
    axes.bar([place + 0.27 for place in places], shifted, width=0.27, color=BLUE, label="score (shifted)")
    axes.legend(fontsize=8, frameon=False, ncols=3)
    axes.set_ylim(top=1.25)
    _words(axes, WORDS[:4])


def guidance(axes: Any) -> None:
    without = torch.tensor([0.10, 0.12, 0.10, 0.08, 0.08, 0.10, 0.06, 0.08, 0.04, 0.08, 0.10, 0.06])
    guided = (without.log() + 2 * (PROBABILITIES.log() - without.log())).softmax(dim=-1)
    several(axes, {"with the prompt": PROBABILITIES, "guidance_scale=2": guided, "without it": without})


def constrained(axes: Any) -> None:
    bars(axes, after(SamplingParams(temperature=1.0, logit_bias={}), suppress_tokens=(0, 1, 2, 4, 6, 8, 9, 10, 11)))


PICTURES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "greedy": ("temperature=0: the likeliest token", greedy),
    "temperature": ("temperature: sharper below 1, flatter above", temperature),
    "samples": ("num_return_sequences=40 with a temperature: independent draws", samples),
    "top_k": ("top_k=4: the four likeliest", filtered(top_k=4)),
    "top_p": ("top_p=0.8: the fewest that have 0.8 together", filtered(top_p=0.8)),
    "min_p": ("min_p=0.2: at least 0.2 times the likeliest", filtered(min_p=0.2)),
    "typical_p": (
        "typical_p=0.5: surprise nearest to the entropy; not even the likeliest is safe",
        filtered(typical_p=0.5),
    ),
    "epsilon_cutoff": ("epsilon_cutoff=0.05: at least this probability", filtered(epsilon_cutoff=0.05)),
    "eta_cutoff": ("eta_cutoff=0.3: a bound that falls with the entropy", filtered(eta_cutoff=0.3)),
    "top_h": ("top_h=0.6: the likeliest with 0.6 of the entropy", filtered(top_h=0.6)),
    "repetition_penalty": (
        "repetition_penalty=1.5 after “mat”, “bed”",
        penalized([0, 3], repetition_penalty=1.5),
    ),
    "frequency_penalty": (
        "frequency_penalty=0.5 after “mat”, “mat”, “mat”, “bed”",
        penalized([0, 0, 0, 3], frequency_penalty=0.5),
    ),
    "presence_penalty": (
        "presence_penalty=0.5 after “mat”, “mat”, “mat”, “bed”",
        penalized([0, 0, 0, 3], presence_penalty=0.5),
    ),
    "no_repeat_ngram_size": (
        "no_repeat_ngram_size=2 after “bed mat … bed”",
        penalized([3, 0, 6, 3], no_repeat_ngram_size=2),
    ),
    "logit_bias": ("logit_bias: +1.5 for “moon”, -100 for “mat”", penalized([], logit_bias={8: 1.5, 0: -100})),
    "bad_words": ("bad_words: “sofa”, and “grass” after “roof”", penalized([6], bad_words=[[1], [6, 7]])),
    "beams": ("num_beams=2: the likeliest sentence, not the likeliest next word", beams),
    "diverse_beams": ("num_beam_groups=2, diversity_penalty=1.5", diverse),
    "force_words": ("force_words=“moon”, two beams: the best, and what leads to the word", forced),
    "contrastive": ("penalty_alpha=0.6, top_k=4: “mat” is too much like what is there", contrastive),
    "guidance": ("guidance_scale=2: what the prompt adds, twice", guidance),
    "constrained": ("choice: “bed”, “table”, “grass”", constrained),
    "min_new_tokens": ("min_new_tokens=5 after two: no end token (⏎)", penalized([1, 2], min_new_tokens=5)),
}


def main(folder: Path) -> None:
    """Draws every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, draw) in PICTURES.items():
        figure, axes = pyplot.subplots(figsize=(5.2, 2.1), dpi=88, layout="constrained")
        draw(axes)
        axes.set_title(title, fontsize=9, loc="left")
        drawn = io.BytesIO()
        figure.savefig(drawn)
        pyplot.close(figure)
        picture = Image.open(drawn).convert("RGB").quantize(24, dither=Image.Dither.NONE)
        picture.save(folder / f"choosing-{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images")
