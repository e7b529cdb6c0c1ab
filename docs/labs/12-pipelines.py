# ---
# jupyter:
#   quatrain:
#     data: ["tatoeba-paraphrases-train", "tatoeba-paraphrases-test", "spam-train", "spam-test"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 12: pipelines and embeddings
#
# **You learn** to use a model for a task in one line; what is behind the line; to turn a sentence into a vector that means something; the loss that teaches it; and to search, group and judge with such vectors. Before this:
# [text as numbers](01-text-as-numbers.md).

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import quatrain
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.data.corpus import Corpus
from quatrain.runs.recipe import loads

# %% [markdown]
# ## A classifier in one line
#
# The recipe `spam` trains a small ModernBERT on messages. `quatrain.pipeline` then is tokenizer, model and answer in one object; tasks and outputs are named as in Hugging Face's pipelines.

# %%
steps = at_size(
    ["stage.finetune.train.epochs=none", "stage.finetune.train.steps=60"],
    [
        "stage.finetune.train.epochs=none",
        "stage.finetune.train.steps=2",
        "stage.finetune.train.warmup_steps=0",
        "stage.finetune.train.batch_tokens=512",
        "tokenizer.vocab_size=400",
        "model.hidden_size=32",
        "evaluate.examples=8",
    ],
)
run = quatrain.run("spam", steps, reporter=SilentReporter())
for name, scores in run.results[-1]["scores"].items():
    print(name, {key: round(value, 3) for key, value in scores.items()})

classify = quatrain.pipeline("spam-detection", "runs/spam/model")
for message in ("Are you coming to the meeting at ten?", "You have WON a free phone! Call now to claim your prize"):
    print(classify(message), message)

# %% [markdown]
# ### Exercise 1
#
# What is behind a score? The model gives a logit for each label; a softmax makes probabilities. The logits are 2.0 (ham) and 0.5 (spam). What is the score of spam?

# %%
score = None
check(1, score, 1 / (1 + math.exp(1.5)), tolerance=1e-3, hint="e^0.5 / (e^2 + e^0.5)")

# %% tags=["solution"]
score = math.exp(0.5) / (math.exp(2.0) + math.exp(0.5))
check(1, score, 1 / (1 + math.exp(1.5)), tolerance=1e-3, hint="e^0.5 / (e^2 + e^0.5)")

# %% [markdown]
# ## Sentences as vectors
#
# A transformer gives a vector for each token. For a sentence take their **mean** (or the first token's), and divide by its length: the dot product of two sentences is then their cosine. An untrained mean says little; it must be **taught** what is
# alike. Pairs of one meaning are enough: each sentence shall find its partner among all others of the batch ([van den Oord et al. 2018](https://arxiv.org/abs/1807.03748)):
#
# $$\mathcal L = -\frac1B \sum_i \log \frac{e^{s_{ii} / \tau}}{\sum_j e^{s_{ij} / \tau}}$$
#
# with $s_{ij}$ the cosine of sentence i and partner j. The other partners are the wrong answers, for free.
#
# ### Exercise 2
#
# Write this loss for vectors a, b (B, D) of length 1.


# %%
def info_nce(a, b, temperature):
    return None


torch.manual_seed(0)
a, b = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
wanted = torch.nn.functional.cross_entropy(a @ b.T / 0.05, torch.arange(4))
check(
    2,
    info_nce(a, b, 0.05),
    wanted,
    tolerance=1e-3,
    hint="cross_entropy of a @ b.T / temperature; the right class of row i is i",
)


# %% tags=["solution"]
def info_nce(a, b, temperature):
    return torch.nn.functional.cross_entropy(a @ b.T / temperature, torch.arange(len(a)))


check(2, info_nce(a, b, 0.05), wanted, tolerance=1e-3, hint="cross_entropy of a @ b.T / temperature")

# %%
recipe = f"""
name = "sentences"
[data]
source = "tatoeba-paraphrases-train"
test = "tatoeba-paraphrases-test"
validation = 0.05
[tokenizer]
kind = "wordpiece"
vocab_size = {at_size(4096, 400)}
lowercase = true
[model]
family = "bert"
hidden_size = {at_size(128, 32)}
num_hidden_layers = {at_size(2, 1)}
num_attention_heads = {at_size(4, 2)}
max_position_embeddings = 64
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "finetune"
objective = "embed"
train = {{ steps = {at_size(150, 2)}, batch_tokens = {at_size(8192, 512)}, learning_rate = 0.001, schedule = "linear", warmup_steps = {at_size(10, 0)} }}
[evaluate]
examples = {at_size(1000, 8)}
"""
run = quatrain.run(loads(recipe), reporter=SilentReporter())
for name, scores in run.results[-1]["scores"].items():
    print(name, {key: round(value, 3) for key, value in scores.items()})

# %% [markdown]
# ## Search and similarity

# %%
embed = quatrain.pipeline("sentence-embeddings", "runs/sentences/model")
pairs = [(record.source, record.target) for record in Corpus("tatoeba-paraphrases-test")][: at_size(300, 10)]
sources, targets = (np.array(embed([pair[side] for pair in pairs])) for side in (0, 1))
print("vectors:", sources.shape)
cosines = sources @ targets.T
places = (cosines > np.diag(cosines)[:, None]).sum(1) + 1
print(
    f"the partner is first of {len(pairs)}: {np.mean(places == 1):.0%}; among the first five: {np.mean(places <= 5):.0%}"
)
for row in range(3):
    best = int(cosines[row].argmax())
    print(f"  {pairs[row][0]!r} -> {pairs[best][1]!r} ({cosines[row, best]:.2f})")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6))
size = min(25, len(pairs))
left.imshow(cosines[:size, :size], cmap="Blues", vmin=0, vmax=1)
left.set(title="Cosines: the diagonal are the partners", xticks=[], yticks=[])
others = cosines[~np.eye(len(pairs), dtype=bool)]
right.hist(others, 40, density=True, color="#c8ccd2", label="two sentences")
right.hist(np.diag(cosines), 20, density=True, color="#2f6fbf", alpha=0.7, label="one meaning")
right.set(title="How alike", xlabel="cosine", yticks=[])
right.legend(fontsize=7)
plt.show()

# %% [markdown]
# ### Exercise 3
#
# Where is the threshold between *one meaning* and not? Write a function that gives the share of right decisions at a threshold t, for partners (the diagonal) and as many others, `others[: len(pairs)]`, counted alike.


# %%
def right_share(partners, strangers, t):
    return None


partners, strangers = np.diag(cosines), others[: len(pairs)]
wanted = (np.mean(partners >= 0.6) + np.mean(strangers < 0.6)) / 2
check(
    3,
    right_share(partners, strangers, 0.6),
    wanted,
    hint="partners at or above t are right, strangers below it; the mean of both shares",
)


# %% tags=["solution"]
def right_share(partners, strangers, t):
    return (np.mean(partners >= t) + np.mean(strangers < t)) / 2


check(3, right_share(partners, strangers, 0.6), wanted, hint="the mean of both shares")
best = max(np.linspace(0, 1, 101), key=lambda t: right_share(partners, strangers, t))
print(f"best threshold {best:.2f}: {right_share(partners, strangers, best):.0%} right")

# %% [markdown]
# ## A map

# %%
topics = {
    "food": ["I like apples.", "She is eating bread.", "He drinks a cup of coffee.", "We had fish for dinner."],
    "weather": ["It is raining.", "It will be sunny tomorrow.", "The wind is cold.", "It snowed last night."],
    "travel": ["The train leaves at six.", "He went to London by plane.", "Where is the station?", "She took a taxi."],
}
sentences = [sentence for group in topics.values() for sentence in group]
vectors = np.array(embed(sentences))
vectors = vectors - vectors.mean(0)
plane = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:2].T
figure, ax = plt.subplots(figsize=(6.4, 3))
for number, (group, color) in enumerate(zip(topics, ("#2f6fbf", "#e08a1e", "#3c8d5a"))):
    for (x, y), sentence in zip(plane[4 * number : 4 * number + 4], topics[group]):
        ax.text(x, y, sentence, color=color, fontsize=7, ha="center")
ax.set(title="Sentences that it was not trained on", xticks=[], yticks=[],
       xlim=(plane[:, 0].min() - 0.4, plane[:, 0].max() + 0.4), ylim=(plane[:, 1].min() - 0.1, plane[:, 1].max() + 0.1))  # fmt: skip
plt.show()

# %% [markdown]
# A model from scratch that has read a few thousand pairs knows words, and little of what they have to do with each other. What it lacks is reading: the recipe `embed` pre-trains first.
#
# ## At size
#
# In another folder, since the short runs of this lab have the same names:
#
# ```sh
# quatrain run embed                                                 # pre-training, then pairs; recall among 2,000
# quatrain run spam
# quatrain predict runs/spam/model "You have won a prize"            # lines of a file too: quatrain predict runs/spam/model messages.txt
# quatrain run topic
# quatrain index notes --dense runs/embed/model                      # search your documents with it
# ```
#
# A larger model is a name: `quatrain.pipeline("sentence-embeddings", "sentence-transformers/all-MiniLM-L6-v2")`. [Use a model](../pipelines.md) lists every task, its inputs and outputs.
