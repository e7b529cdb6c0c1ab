# ---
# jupyter:
#   quatrain:
#     data: ["tinyshakespeare"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 2: from n-grams to LSTMs
#
# **You learn** to build a language model by counting; why unseen n-grams need smoothing, and how far counting goes; what a network with a window and a network
# with a state can do that counts cannot; and to compare all of them by one number. The text is tiny Shakespeare, character by character. Before this:
# [text as numbers](01-text-as-numbers.md).
#
# A language model gives a probability to the next token. The chain rule makes that the probability of a whole text:
#
# $$p(t_1 \dots t_n) = \prod_i p(t_i \mid t_1 \dots t_{i-1})$$
#
# Its measure is the mean surprise on text that it has not seen, in nats a token ($-\ln p$) or in bits. The perplexity is $e^{\text{nats}}$.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from quatrain.core.labs import at_size, check
from quatrain.data.documents import read_documents
from quatrain.tokenizers.tokenizer import Tokenizer

text = "\n".join(read_documents("tinyshakespeare"))[: at_size(None, 60_000)]
tokenizer = Tokenizer.train([text], kind="char")
ids = np.array(tokenizer.encode(text))
train, held_out = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
V = tokenizer.vocab_size
print(f"{len(train):,} characters to learn from, {len(held_out):,} to measure with, {V} different tokens")

# %% [markdown]
# ## A bigram model by hand
#
# Count which character follows which; divide each row by its sum. That is the whole model.

# %%
counts = np.zeros((V, V))
np.add.at(counts, (train[:-1], train[1:]), 1)
print(f"{(counts > 0).sum():,} of {V * V:,} pairs occur")

letters = [tokenizer.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz "]
names = [*"abcdefghijklmnopqrstuvwxyz", "␣"]
shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
figure, ax = plt.subplots(figsize=(4.6, 4.2))
ax.imshow(np.sqrt(shares[np.ix_(letters, letters)]), cmap="Blues")
ax.set_xticks(range(27), names, fontsize=7)
ax.set_yticks(range(27), names, fontsize=7)
ax.set(title="What follows what: q is followed by u", xlabel="next", ylabel="character")
plt.show()

# %% [markdown]
# A pair that never occurred has probability 0, and one of them in the held-out text makes the loss infinite. **Add-k smoothing** adds k to every count:
#
# $$p(b \mid a) = \frac{c(ab) + k}{c(a) + k V}$$
#
# ### Exercise 1
#
# Write the mean loss, in nats, of the bigram model with add-k smoothing on a text of ids.


# %%
def bigram_loss(counts, k, ids):
    return None


answers = [bigram_loss(counts, k, held_out) for k in (0.1, 1.0)]
smoothed = [(counts + k) / (counts + k).sum(1, keepdims=True) for k in (0.1, 1.0)]
wanted = [-np.log(p[held_out[:-1], held_out[1:]]).mean() for p in smoothed]
check(
    1, answers[0] and answers, wanted, hint="p = (counts + k) / its row sums; then -log of p[ids[:-1], ids[1:]], mean"
)


# %% tags=["solution"]
def bigram_loss(counts, k, ids):
    p = (counts + k) / (counts + k).sum(1, keepdims=True)
    return -np.log(p[ids[:-1], ids[1:]]).mean()


check(1, [bigram_loss(counts, k, held_out) for k in (0.1, 1.0)], wanted, hint="-log of p[ids[:-1], ids[1:]]")
print(f"k = 0.1: {bigram_loss(counts, 0.1, held_out):.3f} nats; knowing nothing: ln {V} = {math.log(V):.3f}")

# %% [markdown]
# ## Longer contexts
#
# With n - 1 characters of context there are $V^n$ n-grams, and almost none occurs. What is stored are those that do. The training text looks ever more certain; the held-out text does not.

# %%
from quatrain.models.classic.ngram import NgramModel

orders = list(range(1, at_size(8, 4)))
losses = {"maximum likelihood, on its own text": [], "modified Kneser-Ney, held out": [], "add-k, held out": []}
for order in orders:
    own = NgramModel.fit(train, V, order, "mle")
    kneser_ney = NgramModel.fit(train, V, order, "modified_kneser_ney")
    add_k = NgramModel.fit(train, V, order, "add_k")
    sample = train[: len(held_out)]
    for name, model, tokens in zip(losses, (own, kneser_ney, add_k), (sample, held_out, held_out)):
        total, number = model.text_loss(tokens)
        losses[name].append(total / number)
figure, ax = plt.subplots(figsize=(5.2, 2.6))
for (name, values), color in zip(losses.items(), ("#c8ccd2", "#2f6fbf", "#e08a1e")):
    ax.plot(orders, values, "o-", label=name, color=color, markersize=3)
ax.set(title="Loss by order", xlabel="n", ylabel="nats a character", ylim=(0, 5))
ax.legend(fontsize=7)
plt.show()
best = int(np.argmin(losses["modified Kneser-Ney, held out"]))
print(f"best: order {orders[best]}, {losses['modified Kneser-Ney, held out'][best]:.3f} nats a character")

# %% [markdown]
# **Kneser-Ney** takes a discount from each count and gives it to the shorter context, where a character counts after how many different ones it occurs: *Francisco* is frequent, but only after *San*.
# It is the best of the counting models ([Chen & Goodman 1998](https://people.eecs.berkeley.edu/~klein/cs294-5/chen_goodman.pdf)).

# %%
from quatrain.generation.engine import Engine, SamplingParams

for order in at_size((1, 2, 4, 7), (1, 3)):
    model = NgramModel.fit(train, V, order)
    written = Engine(model, tokenizer).generate(
        ["ROMEO:\n"], SamplingParams(max_new_tokens=at_size(90, 10), temperature=0.8, seed=1)
    )
    print(f"--- order {order}\n{written[0].text}")

# %% [markdown]
# ### Exercise 2
#
# The best order here is 7 or so. How many different 7-grams could there be with 65 characters, and which share of them can a text of a million characters contain at most?

# %%
possible, share = None, None
check(
    2,
    possible and [possible / 1e12, share * 1e7],
    [4.902, 2.04],
    tolerance=0.01,
    hint="65 to the power of 7; a million divided by that",
)

# %% tags=["solution"]
possible = 65**7
share = 1e6 / possible
check(
    2,
    [possible / 1e12, share * 1e7],
    [4.902, 2.04],
    tolerance=0.01,
    hint="65 to the power of 7; a million divided by that",
)

# %% [markdown]
# ## Networks
#
# Counts know nothing of likeness: what they learned of *the cat* says nothing of *the dog*. A network shares: each token has a vector, and the layers work on vectors.
#
# - A **window** ([Bengio et al. 2003](https://www.jmlr.org/papers/v3/bengio03a.html)) reads the vectors of the last k tokens: as an n-gram, with likeness.
# - An **RNN** keeps a state, $h_t = \tanh(W x_t + U h_{t-1})$: no window, but its gradient fades over many steps.
# - An **LSTM** ([Hochreiter & Schmidhuber 1997](https://doi.org/10.1162/neco.1997.9.8.1735)) adds a cell that is changed by gates, $c_t = f_t \odot c_{t-1} + i_t \odot g_t$: what it
#   does not forget stays, and so does the gradient.
# - A **transformer** reads all earlier tokens at once ([the next lab](03-attention.md)).
#
# ### Exercise 3
#
# One step of an LSTM cell with one unit: $c = 0.5$, and the gates (after their sigmoids) are $f = 0.9$, $i = 0.2$, $o = 0.6$, the candidate is $g = -0.4$. What are the new cell and the output $h = o \tanh(c)$?

# %%
cell, h = None, None
check(3, cell and [cell, h], [0.37, 0.6 * math.tanh(0.37)], tolerance=1e-3, hint="c = f · c + i · g")

# %% tags=["solution"]
cell = 0.9 * 0.5 + 0.2 * -0.4
h = 0.6 * math.tanh(cell)
check(3, [cell, h], [0.37, 0.6 * math.tanh(0.37)], tolerance=1e-3, hint="c = f · c + i · g")

# %% [markdown]
# The gradient through T steps is a product of T factors. For an RNN they are below 1 almost always; for an LSTM each is the forget gate, which can stay near 1:

# %%
import torch

figure, ax = plt.subplots(figsize=(4.8, 2.1))
for name, kind, color in (("RNN", torch.nn.RNN, "#e08a1e"), ("LSTM, forget gates open", torch.nn.LSTM, "#2f6fbf")):
    torch.manual_seed(0)
    network = kind(16, 64, batch_first=True)
    if kind is torch.nn.LSTM:
        with torch.no_grad():
            network.bias_hh_l0[64:128].fill_(3.0)  # sigmoid(3) = 0.95
    x = torch.randn(32, 50, 16, requires_grad=True)
    network(x)[0][:, -1].sum().backward()
    size = x.grad.norm(dim=-1).mean(0).flip(0)
    ax.plot(size / size[0], color=color, label=name)
ax.set(title="How much an input n steps back changes the output", xlabel="steps back", yscale="log")
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## The ladder
#
# One recipe trains and measures all of them on the same text. Here with few steps; the recipe `ladder` has more.

# %%
import quatrain
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import loads

steps, rows = at_size(400, 2), at_size(2048, 256)
train_settings = (
    f'steps = {steps}, batch_tokens = {rows}, schedule = "linear", warmup_steps = {at_size(20, 0)}, weight_decay = 0.01'
)
width = at_size(256, 16)
recipe = f"""
name = "rungs"
[data]
source = "tinyshakespeare"
validation = 0.1
[tokenizer]
kind = "char"
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "ladder"
[[stage.rungs]]
name = "uniform"
kind = "uniform"
[[stage.rungs]]
name = "unigram"
kind = "unigram"
[[stage.rungs]]
name = "3-gram"
kind = "ngram"
order = 3
[[stage.rungs]]
name = "{at_size(7, 4)}-gram"
kind = "ngram"
order = {at_size(7, 4)}
[[stage.rungs]]
name = "window of 8"
model = {{ family = "window-lm", hidden_size = {width}, num_hidden_layers = 1, max_position_embeddings = 128, classic = {{ embedding_size = 64, window = 8 }} }}
train = {{ {train_settings}, learning_rate = 0.003 }}
[[stage.rungs]]
name = "RNN"
rows = "carried"
model = {{ family = "recurrent", hidden_size = {width}, num_hidden_layers = 1, tie_word_embeddings = false, max_position_embeddings = 64, classic = {{ cell = "rnn", embedding_size = 64 }} }}
train = {{ {train_settings}, learning_rate = 0.002 }}
[[stage.rungs]]
name = "LSTM"
rows = "carried"
model = {{ family = "recurrent", hidden_size = {width}, num_hidden_layers = 1, tie_word_embeddings = false, max_position_embeddings = 64, classic = {{ cell = "lstm", embedding_size = 64 }} }}
train = {{ {train_settings}, learning_rate = 0.006 }}
"""
run = quatrain.run(loads(recipe), reporter=SilentReporter())
rungs = {name: scores["bits_per_byte"] for name, scores in run.results[-1]["scores"].items()}
for name, bits in rungs.items():
    print(f"{name:12} {bits:.3f} bits a character, perplexity {2**bits:.2f}")

# %%
figure, ax = plt.subplots(figsize=(5.4, 2.1))
bars = ax.barh(list(rungs), list(rungs.values()), color=["#c8ccd2"] * 2 + ["#7aa6d8"] * 2 + ["#2f6fbf"] * 3)
ax.bar_label(bars, [f" {bits:.2f}" for bits in rungs.values()])
ax.invert_yaxis()
ax.set(title="Bits a character of held-out Shakespeare: fewer is better", xlim=(0, 7.5))
plt.show()

# %% [markdown]
# The 7-gram is hard to beat: it counts the whole text in seconds. A network needs minutes to pass it, and then goes on: see the rung of a GPT in the recipe.
#
# ## At size
#
# ```sh
# quatrain run ladder                     # all rungs, also xLSTM, a GPT and Mamba 2: 18 minutes on one busy core
# quatrain run ngram                      # 7-grams with Kneser-Ney, ARPA files
# quatrain run lstm                       # an LSTM that carries its state through the text
# quatrain generate runs/lstm "ROMEO:" --temperature 0.8
# quatrain run ladder name=mine data.source=my.txt
# ```
#
# The same measure holds for a model of any size, if its tokens are converted to bytes: `quatrain evaluate MODEL my.txt` prints bits per character. The smallest GPT-2 has
# 1.16 bits a byte on Wikipedia's enwik8, which it was not trained on (Radford et al. 2019). Read on: [n-grams](../ngrams.md), [recurrent networks](../recurrent.md).
