# ---
# jupyter:
#   quatrain:
#     data: []
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 3: attention by hand
#
# **You learn** to compute attention with a pencil, then with matrices, then with Quatrain's own layer, and to get the same
# numbers each time; what masks and heads do; what trained heads look at; and how a model knows the order of its tokens.
# Read first: [the model](../models.md). Everything here runs on random or hand-made numbers: no data is needed.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from quatrain.core.labs import at_size, check
from quatrain.models.transformer import positions
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import Trace, self_attention_mask
from quatrain.models.transformer.stack import Model

torch.manual_seed(0)
torch.set_printoptions(precision=4, sci_mode=False)

# %% [markdown]
# ## Queries, keys and values
#
# Each token asks a question (its **query** q), offers a label (its **key** k) and holds content (its **value** v). All three are
# linear maps of its vector x:
#
# $$q = x W_Q, \qquad k = x W_K, \qquad v = x W_V$$
#
# The text is "Thinking Machines", two tokens. Keys and queries are $d = 64$ wide. The numbers are chosen so that you can check
# them in your head: each row of a matrix repeats one number.

# %%
d = 64
x = torch.eye(2)  # Thinking = (1, 0), Machines = (0, 1)
W_q = torch.tensor([[2.0], [1.0]]).expand(2, d)
W_k = torch.tensor([[7 / 8], [6 / 8]]).expand(2, d)
W_v = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])  # values are three wide

q, k, v = x @ W_q, x @ W_k, x @ W_v
scores = [float(q[0] @ k[0]), float(q[0] @ k[1])]
print("scores of Thinking:", scores)

# %% [markdown]
# The score of a key is its dot product with the query: $q_1 \cdot k_1 = 64 \cdot 2 \cdot \tfrac78 = 112$ and $q_1 \cdot k_2 = 64
# \cdot 2 \cdot \tfrac68 = 96$. Three steps remain:
#
# 1. Divide by $\sqrt{d} = 8$: 14 and 12.
# 2. Softmax: $e^{14} / (e^{14} + e^{12}) = 1 / (1 + e^{-2}) = 0.88$, and 0.12 remains for the other.
# 3. Add the values with these weights.

# %%
scaled = [score / math.sqrt(d) for score in scores]
total = sum(math.exp(score) for score in scaled)
weights = [math.exp(score) / total for score in scaled]
output = weights[0] * v[0] + weights[1] * v[1]
print("divided by 8:", scaled)
print("softmax:     ", [round(weight, 2) for weight in weights])
print("output:      ", output)

# %%
figure, axes = plt.subplots(1, 3, figsize=(7, 1.9))
for ax, values, title in zip(axes, (scores, scaled, weights), ("q · k", "divided by √64", "softmax")):
    bars = ax.bar(["Thinking", "Machines"], values, color=["#2f6fbf", "#c8ccd2"], width=0.6)
    ax.bar_label(bars, [f"{value:.3g}" for value in values])
    ax.set_title(title)
    ax.set_yticks([])
    ax.set_ylim(top=1.25 * max(values))
figure.suptitle("Where Thinking looks")
plt.show()
# %% [markdown]
# ### Exercise 1
#
# Compute the two weights of *Machines* by hand: $q_2 \cdot k_1$ and $q_2 \cdot k_2$, divided by 8, softmax. Two decimals are enough.

# %%
machines = None  # for example [0.5, 0.5]
check(
    1,
    machines,
    [0.73, 0.27],
    tolerance=0.01,
    hint="the query of Machines is half that of Thinking, so both scores halve",
)

# %% tags=["solution"]
# 56 / 8 = 7 and 48 / 8 = 6: the difference is 1, so the first weight is 1 / (1 + e^-1).
first = 1 / (1 + math.exp(-1))
check(1, [first, 1 - first], [0.73, 0.27], tolerance=0.01, hint="the query of Machines is half that of Thinking")

# %% [markdown]
# ## All tokens at once
#
# Stack the queries, keys and values of all tokens, and attention is two matrix products
# ([Vaswani et al. 2017](https://arxiv.org/abs/1706.03762)):
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right) V$$


# %%
def attention(q, k, v, mask=None):
    """Attention of q (…, T, d) over k and v (…, S, d); mask (T, S) is True where a query may look."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ v, weights


result, weights = attention(q, k, v)
print(weights)
assert torch.allclose(result, F.scaled_dot_product_attention(q[None], k[None], v[None])[0])  # PyTorch agrees

# %% [markdown]
# ### Why divide by √d?
#
# If the numbers in q and k have variance 1, their dot product has variance d. Without the division, wide heads give huge
# differences between scores: the softmax puts everything on one key, and its gradient vanishes.

# %%
widths = [2**power for power in range(1, 11)]
largest = {"q · k": [], "q · k / √d": []}
for width in widths:
    queries, keys = torch.randn(400, 1, width), torch.randn(400, 16, width)
    raw = (queries * keys).sum(-1)
    largest["q · k"].append(float(raw.softmax(-1).max(-1).values.mean()))
    largest["q · k / √d"].append(float((raw / width**0.5).softmax(-1).max(-1).values.mean()))
figure, ax = plt.subplots(figsize=(4.5, 2.2))
for (name, values), color in zip(largest.items(), ("#e08a1e", "#2f6fbf")):
    ax.plot(widths, values, "o-", label=name, color=color, markersize=3)
ax.set_xscale("log", base=2)
ax.set(ylim=(0, 1), xlabel="width d of a head", title="The largest of 16 weights, random queries and keys")
ax.legend()
plt.show()
# %% [markdown]
# ## Masks
#
# A mask says which keys a query may see. A decoder must not see the future: its mask is a lower triangle (**causal**).
# A **sliding window** limits how far back it looks. Where several texts are **packed** into one row, each sees itself alone; padding is hidden
# the same way. Masked scores are -∞, so their weight is exactly 0.

# %%
decoder = ModelConfig(family="llama", vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                      num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
windowed = decoder.replace(family="mistral", sliding_window=4, layer_types=())
packed = torch.tensor([[1] * 4 + [2] * 5 + [0] * 3])  # two texts and three tokens of padding
size, device = 12, torch.device("cpu")
masks = {
    "causal": torch.ones(size, size, dtype=torch.bool).tril(),
    # of a model's configuration, a kind of layer, the text of each token, queries, keys, and the place of the first key
    "sliding window of 4": self_attention_mask(windowed, "sliding", None, size, size, 0, device)[0],
    "two texts and padding": self_attention_mask(decoder, "full", packed, size, size, 0, device)[0],
}
figure, axes = plt.subplots(1, 3, figsize=(7, 2.4))
for ax, (title, mask) in zip(axes, masks.items()):
    ax.imshow(mask, cmap="Blues", vmin=-0.3, vmax=1.3)
    ax.set(title=title, xlabel="key", xticks=[], yticks=[])
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# ### Exercise 2
#
# Write the causal mask of n tokens that also forbids looking more than w - 1 tokens back, with `torch.arange` alone.


# %%
def window_mask(n, w):
    """True where query i may see key j."""
    return None  # i = torch.arange(n)[:, None]; j = torch.arange(n)[None, :]; …


check(
    2, window_mask(12, 4), masks["sliding window of 4"], hint="two conditions: j <= i, and i - j < w; join them with &"
)


# %% tags=["solution"]
def window_mask(n, w):
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return (j <= i) & (i - j < w)


check(2, window_mask(12, 4), masks["sliding window of 4"], hint="two conditions: j <= i, and i - j < w")

# %% [markdown]
# ## Heads
#
# One softmax gives each token one pattern of looking. A layer cuts its width into **heads**, each with queries, keys and values of its own; their
# outputs are put side by side and mixed by a last matrix $W_O$. Heads cost nothing: H heads of width D / H have the parameters of one
# head of width D. In **grouped-query** attention several query heads share one key and value head, which makes the KV cache smaller
# ([Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)).
#
# Here is Quatrain's layer beside ours, with grouped queries and without positions:

# %%
config = decoder.replace(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, position="none")


def by_hand(layer, hidden, heads, kv_heads):
    """Multi-head attention from (B, T, D) to (B, T, D) with our function from above."""
    rows, length, width = hidden.shape

    def split(projected, count):  # (B, T, H d) -> (B, H, T, d)
        return projected.view(rows, length, count, -1).transpose(1, 2)

    q, k, v = (
        split(layer.q_proj(hidden), heads),
        split(layer.k_proj(hidden), kv_heads),
        split(layer.v_proj(hidden), kv_heads),
    )
    k, v = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v))
    mixed, weights = attention(q, k, v, torch.ones(length, length, dtype=torch.bool).tril())
    return layer.o_proj(mixed.transpose(1, 2).reshape(rows, length, width)), weights


model = Model(config).initialize(seed=0).eval()
trace = Trace()
with torch.no_grad():
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    model(ids, trace=trace)
    _, weights = by_hand(model.layers[0].self_attn, model.layers[0].input_layernorm(model.embed_tokens(ids)), 4, 2)
difference = float((weights - trace.attentions[0]).abs().max())
print(f"weights (B, H, T, S): {tuple(weights.shape)}, at most {difference:.1e} apart from Quatrain's")
assert difference < 1e-6

# %% [markdown]
# ### Exercise 3
#
# Llama 3.1 8B has 32 layers, 32 query heads, 8 key and value heads of width 128, and stores 2 bytes a number. How many bytes does its
# KV cache need for one token? How many would it be without grouped queries?

# %%
grouped, ungrouped = None, None
check(
    3,
    grouped and [grouped, ungrouped],
    [131_072, 524_288],
    hint="2 (keys and values) x layers x key-value heads x width x bytes",
)

# %% tags=["solution"]
grouped, ungrouped = 2 * 32 * 8 * 128 * 2, 2 * 32 * 32 * 128 * 2
check(3, [grouped, ungrouped], [131_072, 524_288], hint="2 x layers x key-value heads x width x bytes")

# %% [markdown]
# ## What trained heads look at
#
# We train two layers on a task that only attention can do: random tokens, 4 to 16 of them, then the same tokens again. In the second half each token
# can be predicted: find the place where the current token stood before, and copy what followed it. Two heads must work together: one in the first layer
# looks at the **token before** it; one in the second finds the token whose predecessor is the current one (an **induction head**,
# [Olsson et al. 2022](https://arxiv.org/abs/2209.11895)).

# %%
vocabulary = 24
config = ModelConfig(family="llama", vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64)  # fmt: skip
model = Model(config).initialize(seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
generator = torch.Generator().manual_seed(0)
steps = at_size(900, 3)
curve = []
for step in range(steps):
    for group in optimizer.param_groups:
        group["lr"] = 3e-3 * min(1.0, (step + 1) / 50)
    half = int(
        torch.randint(4, 17, (1,), generator=generator)
    )  # of any length, or the heads would learn a fixed distance
    text = torch.randint(vocabulary, (64, half), generator=generator).repeat(1, 2)
    _, loss = model(text[:, :-1], text[:, 1:])  # the loss of each position, (B, T)
    optimizer.zero_grad()
    loss.mean().backward()
    optimizer.step()
    first, second = loss[:, : half - 1].mean(), loss[:, half:].mean()
    curve.append((first.item(), second.item()))
print(
    f"loss of the first half {curve[-1][0]:.2f} nats (chance is ln {vocabulary} = {math.log(vocabulary):.2f}), of the second {curve[-1][1]:.2f}"
)

# %%
figure, ax = plt.subplots(figsize=(4.5, 2.1))
ax.plot([first for first, _ in curve], label="first half: random", color="#c8ccd2")
ax.plot([second for _, second in curve], label="second half: repeated", color="#2f6fbf")
ax.set(xlabel="step", ylabel="loss in nats", title="The model finds out that the text repeats", ylim=(0, 4))
ax.legend()
plt.show()
# %% [markdown]
# The first half costs a little more than chance: a token that stood before by accident may be the beginning of the copy, and the model, which does not know how
# long the first half is, bets on it.
#
# A `Trace` records the attention weights of a forward pass: `(B, H, T, S)` for each layer.

# %%
half = 12
text = torch.randint(vocabulary, (1, half), generator=torch.Generator().manual_seed(1)).repeat(1, 2)
trace = Trace()
with torch.no_grad():
    model.eval()(text, trace=trace)
figure, axes = plt.subplots(2, 4, figsize=(7, 3.9))
for number, ax in enumerate(axes.flat):
    ax.imshow(trace.attentions[number // 4][0, number % 4].sqrt(), cmap="Blues", vmin=0, vmax=1)
    ax.set(title=f"layer {number // 4}, head {number % 4}", xticks=[], yticks=[])
figure.suptitle("Rows are queries, columns keys; a dark cell is a large weight")
plt.show()


# %%
def share(weights, offset):
    """The mean weight (H) that queries of the second half give to the key `offset` places from them."""
    rows = torch.arange(half, 2 * half)
    return weights[0][:, rows, rows + offset].mean(-1)


before, after_copy = share(trace.attentions[0], -1), share(trace.attentions[1], 1 - half)
print("layer 0, to the token before:         ", before)
print("layer 1, to the token after the copy: ", after_copy)

# %% [markdown]
# `quatrain inspect MODEL --induction` measures the same in any decoder, and `--attention maps` draws its maps. A map shows where
# information can flow, not why the model answers as it does ([Jain & Wallace 2019](https://arxiv.org/abs/1902.10186)).
#
# ## Positions
#
# Attention alone does not know the order of its tokens: permute the tokens, and without a mask the outputs are permuted, nothing else. A sum does
# not care about the order of its terms.

# %%
q, k, v = torch.randn(3, 5, 8)
order = torch.tensor([4, 2, 0, 1, 3])
assert torch.allclose(attention(q[order], k[order], v[order])[0], attention(q, k, v)[0][order], atol=1e-6)
print("shuffled in, shuffled out")

# %% [markdown]
# So a position must be put in. Four ways are in use:
#
# | kind | formula | where | models |
# |---|---|---|---|
# | learned | a row of a table for each position | added to the embedding | GPT-2, BERT |
# | sinusoidal | $\sin(p\,\omega_i), \cos(p\,\omega_i)$ with $\omega_i = 10000^{-2i/D}$ | added to the embedding | the first transformer, Marian |
# | rotary | turn each pair of channels of q and k by $p\,\omega_i$ | every layer | Llama, Qwen, Gemma |
# | bias | add $-m\,\lvert i - j \rvert$ (ALiBi) or a learned number for each distance (T5) to the score | every layer | BLOOM, T5 |
#
# ### Sinusoidal

# %%
length, width = 128, 64
table = positions.sinusoidal_table(length, width)  # the sines, then the cosines
products = table @ table.T
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.5), width_ratios=(1.2, 1))
left.imshow(table.T, cmap="RdBu", aspect="auto")
left.set(title="The table: slow waves and fast ones", xlabel="position", ylabel="channel")
for position in (20, 60, 100):
    right.plot(products[position], label=f"of {position}")
right.set(title="Dot products with all positions", xlabel="position")
right.set_ylim(top=42)
right.legend(fontsize=7, ncols=3, loc="upper center")
plt.show()
# %% [markdown]
# Two properties are visible. The dot product of two positions depends on their distance alone, $\sum_i \cos((p - p')\,\omega_i)$, and is
# largest at 0. And a step of n positions is a rotation of each pair of channels, the same rotation wherever you are: a linear map can learn
# "the token n places before".
#
# ### Exercise 4
#
# Write the 2x2 matrix R that moves one pair $(\sin p\omega, \cos p\omega)$ three positions on: $(\sin (p{+}3)\omega, \cos (p{+}3)\omega) = R\,(\sin
# p\omega, \cos p\omega)$, for $\omega = 0.1$.

# %%
R = None  # torch.tensor([[…, …], […, …]])
angle = 3 * 0.1
turned = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
check(
    4,
    R,
    turned,
    tolerance=1e-3,
    hint="sin(a + b) = sin a cos b + cos a sin b, and cos(a + b) = cos a cos b - sin a sin b",
)

# %% tags=["solution"]
R = torch.tensor([[math.cos(0.3), math.sin(0.3)], [-math.sin(0.3), math.cos(0.3)]])
for p in (0, 5, 50):
    pair, later = (torch.tensor([math.sin(0.1 * at), math.cos(0.1 * at)]) for at in (p, p + 3))
    assert torch.allclose(R @ pair, later, atol=1e-5)
check(4, R, turned, tolerance=1e-3, hint="the addition theorems of sine and cosine")

# %% [markdown]
# ### Rotary
#
# Rotary positions ([Su et al. 2021](https://arxiv.org/abs/2104.09864)) turn queries and keys themselves. Their dot product then depends on the distance alone: turning both by the same
# angle changes nothing.

# %%
rotary = positions.Rotary(ModelConfig(family="llama", vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=2048), theta=10_000.0, scaling=None)  # fmt: skip
cos, sin = rotary.tables(2048, 0)
query, key = torch.randn(2, 64)


def turn(vector, position):
    return positions.rotate(vector, cos[position], sin[position])


scores = [float(turn(query, p) @ turn(key, p - 7)) for p in (7, 100, 2000)]
print("q at p, k at p - 7, for p = 7, 100, 2000:", [round(score, 4) for score in scores])
assert max(scores) - min(scores) < 1e-3

# %%
ones = torch.ones(64)
distances = torch.arange(0, 1024)
decay = torch.stack([turn(ones, 0) @ turn(ones, int(at)) for at in distances]) / 64
slopes = positions.alibi_slopes(8)
buckets = positions.relative_buckets(-torch.arange(0, 160), 32, 128, causal=True)
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.3))
axes[0].plot(distances, decay, color="#2f6fbf", linewidth=0.8)
axes[0].set(title="Rotary: score of equal vectors", xlabel="distance", xscale="symlog")
for head, slope in enumerate(slopes):
    axes[1].plot(-slope * torch.arange(0, 64), color=plt.cm.Blues(0.3 + 0.08 * head), linewidth=1)
axes[1].set(title="ALiBi: bias of 8 heads", xlabel="distance", ylim=(-16, 1))
axes[2].step(range(160), buckets, color="#2f6fbf")
axes[2].set(title="T5: the bucket of a distance", xlabel="distance")
plt.show()
# %% [markdown]
# All three weaken what is far. Rotary does it only on average, and frequencies can be stretched for texts longer than those of training
# ([YaRN and others](../models.md)); ALiBi's heads have slopes from 1/2 to 1/256, so some are short-sighted and some are not; T5 tells near
# distances apart exactly and far ones roughly.
#
# ### Exercise 5
#
# A model has ALiBi with 8 heads. By what factor does its second head weaken a key 8 tokens back, before the softmax is normalized? The slopes are
# $2^{-1}, 2^{-2}, \dots, 2^{-8}$.

# %%
factor = None
check(
    5, factor, math.exp(-2), tolerance=1e-3, hint="the bias is -slope x distance, and the softmax takes e to its power"
)

# %% tags=["solution"]
factor = math.exp(-float(slopes[1]) * 8)
check(5, factor, math.exp(-2), tolerance=1e-3, hint="the bias is -slope x distance")

# %% [markdown]
# ## At size
#
# The same on a model that you train, from a recipe: `gpt-pretrain` trains a GPT-2 on novels.
#
# ```sh
# quatrain run gpt-pretrain
# quatrain inspect runs/gpt-pretrain                                                    # its heads, layers and positions in words
# quatrain inspect runs/gpt-pretrain --text "The dog ran. The dog ran." --attention maps  # a page with all heads
# quatrain inspect runs/gpt-pretrain --induction                                        # which heads copy
# ```
#
# For a larger model only the name changes: `quatrain inspect gpt2 --induction` downloads GPT-2 and finds its induction heads, in layers 5 to 7.
# `quatrain plan llama-3.1-8b` shows what the KV cache of exercise 3 costs.
