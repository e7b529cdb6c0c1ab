# ---
# jupyter:
#   quatrain:
#     data: ["gutenberg:1661"]
#     extras: [plot, constrain]
# ---

# %% [markdown]
# # Lab 5: a Sherlock generator, and how to choose the next token
#
# **You learn** to train a text generator on a book, and what every way of choosing a token does to its text: greedy, temperature, top-k, top-p, min-p, penalties, beams,
# and rules that the text must follow. Before this: [GPT-2 from scratch](04-gpt2.md).
#
# The model gives a distribution. Choosing from it is another matter: the likeliest token each time gives dull loops, a plain draw gives nonsense from the tail. All of it happens after the model,
# so one model is enough for the lab.

# %%
import math

import matplotlib.pyplot as plt
import torch

import quatrain
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.runs.recipe import loads

recipe = f"""
name = "book"
[data]
source = "gutenberg:1661"
validation = 0.1
[tokenizer]
kind = "bpe"
vocab_size = {at_size(1024, 400)}
[model]
family = "llama"
hidden_size = {at_size(160, 32)}
num_hidden_layers = {at_size(3, 1)}
num_attention_heads = {at_size(4, 2)}
intermediate_size = {at_size(480, 64)}
max_position_embeddings = 256
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = {{ steps = {at_size(400, 2)}, batch_tokens = {at_size(2048, 256)}, learning_rate = 0.006, optimizer = "muon", schedule = "wsd", decay_ratio = 0.6, warmup_steps = {at_size(20, 0)} }}
"""
run = quatrain.run(loads(recipe), reporter=SilentReporter())
engine = Engine.load("runs/book/model")
tokenizer, model = engine.tokenizer, engine.model.eval()
print(f"validation loss {run.results[-1]['validation_loss']:.2f} nats a token of {tokenizer.vocab_size:,}")

# %% [markdown]
# ## The distribution
#
# What may follow *It was a dark night, and*? The engine's model gives logits; a softmax makes probabilities.

# %%
prompt = "It was a dark night, and"
ids = torch.tensor([tokenizer.encode(prompt)])
with torch.no_grad():
    logits = model(ids)[0][0, -1]
probabilities = logits.softmax(-1)
best = probabilities.topk(12)
words = [tokenizer.decode([token]).replace("\n", "⏎") for token in best.indices.tolist()]


def bars(ax, values, title, before=best.values):
    ax.bar(range(len(words)), before.tolist(), color="#c8ccd2", width=0.86)
    ax.bar(range(len(words)), values.tolist(), color="#2f6fbf", width=0.5)
    ax.set_xticks(range(len(words)), words, rotation=45, ha="right", fontsize=7)
    ax.set_title(title)


figure, axes = plt.subplots(1, 3, figsize=(8, 2.2), sharey=True)
for ax, temperature in zip(axes, (0.5, 1.0, 2.0)):
    bars(ax, (logits / temperature).softmax(-1)[best.indices], f"temperature {temperature:g}")
plt.show()

# %% [markdown]
# **Temperature** divides the logits: $p_i \propto e^{z_i / T}$. Below 1 the likely become likelier; at 0 only the likeliest is left (greedy).
#
# ### Exercise 1
#
# A token has probability 0.6, another 0.3, at temperature 1. What is the ratio of their probabilities at temperature 0.5?

# %%
ratio = None
check(1, ratio, 4, tolerance=0.01, hint="at T the ratio is (0.6 / 0.3) to the power of 1 / T")

# %% tags=["solution"]
ratio = (0.6 / 0.3) ** (1 / 0.5)
check(1, ratio, 4, tolerance=0.01, hint="(0.6 / 0.3) to the power of 1 / T")

# %% [markdown]
# ## Cutting the tail
#
# The tail holds hundreds of tokens with a little probability each, and together they are drawn often. **top-k** keeps the k likeliest. **top-p**
# ([Holtzman et al. 2020](https://arxiv.org/abs/1904.09751)) keeps the fewest that have p together: many where the model is unsure, few where it is sure. **min-p** keeps what has at least
# a share of the likeliest.
#
# ### Exercise 2
#
# Write top-p: which tokens stay?


# %%
def top_p(probabilities, p):
    """True (V) for the fewest likeliest tokens with at least p together."""
    return None


def reference(probabilities, p):
    ordered, places = probabilities.sort(descending=True)
    stay = ordered.cumsum(0) - ordered < p
    return torch.zeros(len(probabilities), dtype=torch.bool).scatter(0, places, stay)


hint = "sort down, add up; a token stays if the sum before it is below p; scatter back to the places"
check(2, top_p(probabilities, 0.8), reference(probabilities, 0.8), hint=hint)


# %% tags=["solution"]
def top_p(probabilities, p):
    ordered, places = probabilities.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    stays = torch.zeros(len(probabilities), dtype=torch.bool)
    stays[places[before < p]] = True
    return stays


check(2, top_p(probabilities, 0.8), reference(probabilities, 0.8), hint=hint)

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.2), sharey=True)
kept = {
    "top_k = 4": probabilities >= probabilities.topk(4).values[-1],
    "top_p = 0.5": reference(probabilities, 0.5),
    "min_p = 0.3": probabilities >= 0.3 * probabilities.max(),
}
for ax, (title, mask) in zip(axes, kept.items()):
    left = probabilities * mask
    bars(ax, (left / left.sum())[best.indices], f"{title}: {int(mask.sum())} tokens")
plt.show()

# %% [markdown]
# ## What it does to the text

# %%
count = at_size(50, 5)
ways = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 1.5": {"temperature": 1.5},
    "temperature 0.9, top_p 0.9": {"temperature": 0.9, "top_p": 0.9},
    "greedy, repetition_penalty 1.3": {"repetition_penalty": 1.3},
    "4 beams": {"num_beams": 4},
}
for name, options in ways.items():
    completion = engine.generate([prompt], SamplingParams(max_new_tokens=count, seed=1, **options))[0]
    print(
        f"--- {name}: {-sum(completion.logprobs) / len(completion.logprobs):.2f} nats a token\n{completion.text.strip()}"
    )

# %% [markdown]
# The number is how surprised the model is by its own text. **Beams** look for the likeliest sentence, and find it: dull. People write at about the loss of the validation text; a text far
# below it repeats, far above it makes no sense. Let us measure both ends over many samples:

# %%
prompts = [prompt] * at_size(16, 2)
temperatures = at_size([0.01, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.6], [0.5, 1.0])
surprise, repeats = [], []
for temperature in temperatures:
    completions = engine.generate(
        prompts, SamplingParams(max_new_tokens=at_size(60, 8), temperature=temperature, seed=3)
    )
    logprobs = [value for each in completions for value in each.logprobs]
    surprise.append(-sum(logprobs) / len(logprobs))
    triples = [tuple(each.ids[at : at + 3]) for each in completions for at in range(len(each.ids) - 2)]
    own = [
        len(each.ids) - 2 - len({tuple(each.ids[at : at + 3]) for at in range(len(each.ids) - 2)})
        for each in completions
    ]
    repeats.append(sum(own) / len(triples))
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.2))
left.plot(temperatures, surprise, "o-", color="#2f6fbf", markersize=3)
left.axhline(run.results[-1]["validation_loss"], color="#e08a1e", linestyle="--", label="held-out text of the book")
left.set(title="Surprise of the model by its text", xlabel="temperature", ylabel="nats a token")
left.legend(fontsize=7)
right.plot(temperatures, repeats, "o-", color="#2f6fbf", markersize=3)
right.set(title="Three tokens that the text had before", xlabel="temperature", ylabel="share", ylim=0)
plt.show()

# %% [markdown]
# ### Exercise 3
#
# Beam search ranks hypotheses by their log-probability divided by length^length_penalty. Hypothesis A has 4 tokens and log-probability -4.8; B has 8 tokens and -8.0. Which wins with a
# penalty of 0, and which with 1?

# %%
without, with_penalty = None, None
check(3, without and [without, with_penalty], ["A", "B"], hint="-4.8 and -8.0; then -4.8 / 4 and -8.0 / 8")

# %% tags=["solution"]
without = "A" if -4.8 > -8.0 else "B"
with_penalty = "A" if -4.8 / 4 > -8.0 / 8 else "B"
check(3, [without, with_penalty], ["A", "B"], hint="-4.8 and -8.0; then -1.2 and -1.0")

# %% [markdown]
# ## Rules
#
# A program that reads the text needs a form. A **constraint** gives every token that would break it the probability 0: a choice, a regular expression, a JSON schema. Even a model of a
# million parameters then writes valid text; that it is *true* is another matter.

# %%
for options in ({"choice": ("guilty", "innocent")}, {"regex": r"(January|May|June) \d{1,2}, 18\d\d"}):
    completion = engine.generate(
        ["The trial was on"], SamplingParams(max_new_tokens=20, temperature=1.0, seed=2, **options)
    )[0]
    print(options, "->", completion.text)

# %% [markdown]
# ### Exercise 4
#
# With $k$ draws at temperature 1, the chance that at least one of them is the token with probability $p$ is $1 - (1 - p)^k$. How many draws find a token of probability 0.1 with a chance of at least 90 %?

# %%
draws = None
check(4, draws, 22, tolerance=0, hint="the smallest k with (1 - 0.1)^k <= 0.1")

# %% tags=["solution"]
draws = math.ceil(math.log(0.1) / math.log(0.9))
check(4, draws, 22, tolerance=0, hint="log(0.1) / log(0.9), rounded up")

# %% [markdown]
# ## At size
#
# ```sh
# quatrain run sherlock                                                            # a larger generator of the same book
# quatrain generate runs/sherlock "It was a dark night" --temperature 0.8 --top-p 0.9
# quatrain generate runs/sherlock "It was a dark night" --num-beams 4
# quatrain serve runs/sherlock                                                     # a page with every control, and the alternatives of each token
# quatrain run sherlock name=mine data.source=my.txt                               # your own text
# ```
#
# Each option is the same for a model of any size: `quatrain generate gpt2 "It was a dark night" --temperature 0.8`. Large models need less help: top-p or min-p with a temperature near 1 is enough, and
# greedy decoding loops less. [Generation](../generation.md) has a picture of every option.
