# ---
# jupyter:
#   quatrain:
#     data: ["gutenberg:1661"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 11: scaling laws, and the bill of a large model
#
# **You learn** to say before a training what it will cost and reach: FLOPs, memory, time, price and CO₂ by formulas; how the loss falls with size and data; and
# to measure a law of your own on models that train in seconds, and test it on a larger one.

# %%
import math

import matplotlib.pyplot as plt
import torch

from quatrain.core.labs import at_size, check
from quatrain.models.io.model_folder import config_of
from quatrain.planning import counts
from quatrain.planning.bill import Cluster, bill, training_flops
from quatrain.planning.facts import load_facts

# %% [markdown]
# ## FLOPs
#
# Each weight of a matrix is multiplied and added once for each token: 2 operations forward. Backward needs the gradient of the input and of the weight: 4 more. So a training of
# a model with N parameters on D tokens costs
#
# $$C \approx 6\,N D$$
#
# Attention adds $12\,L\,d\,T$ a token and training ($L$ layers, width $d$, context $T$), little unless the context is long.
#
# ### Exercise 1
#
# GPT-3 has 175 billion parameters and read 300 billion tokens. How many FLOPs is that, and how many days do 1,024 A100 take, at 312 TFLOP/s each, of which
# 40 % are reached?

# %%
flops, days = None, None
hint = "6 · 175e9 · 300e9; a day has 86,400 s"
check(1, flops and [flops / 1e23, days], [3.15, 28.5], tolerance=0.01, hint=hint)

# %% tags=["solution"]
flops = 6 * 175e9 * 300e9
days = flops / (1024 * 312e12 * 0.4) / 86_400
check(1, [flops / 1e23, days], [3.15, 28.5], tolerance=0.01, hint=hint)

# %% [markdown]
# The formula beside a count of every operation, for published shapes (`quatrain plan NAME` prints it):

# %%
facts = load_facts()
for name in ("gpt2", "gpt2-xl", "llama-3.1-8b", "llama-3.1-405b"):
    config = config_of(dict(facts.models[name].config))
    size, counted = counts.parameters(config), counts.training_flops_per_token(config, 1024)
    print(
        f"{name:15} {size / 1e9:8.3f} billion parameters   6 N = {6 * size:.3g}   counted {counted:.3g} FLOPs a token"
    )

# %% [markdown]
# ## Memory
#
# In mixed precision with AdamW a parameter takes 2 bytes (bfloat16), its gradient 2, and its float32 copy with two states 12: 16 bytes, before any activation. **ZeRO** shares
# them among devices ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054)): stage 1 the 12 bytes of states, stage 2 also the gradients, stage 3 also the weights.

# %%
from quatrain.planning.parallelism import Layout, Step, state_memory

figure, ax = plt.subplots(figsize=(5.6, 2.1))
parts = ("weights", "gradients", "states")
for stage in range(4):
    left = 0.0
    for part, size, color in zip(
        parts, state_memory(7.5e9, Step(), Layout(data=64, zero=stage)), ("#2f6fbf", "#e08a1e", "#c8ccd2")
    ):
        ax.barh(
            f"ZeRO {stage}" if stage else "a copy each",
            size / 1e9,
            left=left,
            color=color,
            label=part if stage == 0 else None,
        )
        left += size / 1e9
    ax.text(left + 1, stage, f"{left:.1f} GB", va="center", fontsize=8)
ax.axvline(80, color="#b3261e", linewidth=0.8, linestyle="--")
ax.set(title="Memory of one of 64 devices, 7.5 billion parameters; dashed: 80 GB", xlim=(0, 140))
ax.invert_yaxis()
ax.legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# ### Exercise 2
#
# How many bytes a parameter does each of n devices hold in stage 2? Write it as a function of n.


# %%
def bytes_each(n):
    return None


check(
    2,
    bytes_each(64) and [bytes_each(1), bytes_each(64)],
    [16, 2 + 14 / 64],
    hint="the weights (2) stay whole; gradients and states (14) are shared",
)


# %% tags=["solution"]
def bytes_each(n):
    return 2 + 14 / n


check(2, [bytes_each(1), bytes_each(64)], [16, 2 + 14 / 64], hint="the weights (2) stay whole; 14 are shared")

# %% [markdown]
# ## The bill
#
# Time is FLOPs over what the devices reach. Price and energy follow. Llama 3.1 405B, on 16,384 H100 at 40 % of their peak:

# %%
cluster = Cluster(facts.device("h100"), 16_384, utilization=0.4, grid=facts.grid("us"))
for what, amount, formula in bill(training_flops(405e9, 15.6e12), cluster).rows(cluster):
    print(f"{what:15} {amount:45} {formula}")

# %% [markdown]
# ## The law of Chinchilla
#
# [Hoffmann et al. 2022](https://arxiv.org/abs/2203.15556) trained 400 models and found that the loss follows
#
# $$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}$$
#
# E is the entropy of text, which no model goes below; the second term is what a model of N parameters lacks, the third what D tokens do not show. For a budget
# $C = 6 N D$ there is a best size, and it grows about as fast as the data: some 20 tokens a parameter. GPT-3 was far too large for its data. The constants below
# (`EPOCH`) are a later fit to the same points ([Besiroglu et al. 2024](https://arxiv.org/abs/2404.10102)).

# %%
from quatrain.planning.scaling import EPOCH, compare_with_optimum, fit

figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.7))
for budget, color in zip((1e19, 1e21, 1e23), ("#c8ccd2", "#7aa6d8", "#2f6fbf")):
    sizes = torch.logspace(
        math.log10(EPOCH.optimal(budget)[0]) - 1.2, math.log10(EPOCH.optimal(budget)[0]) + 1.2, 40
    ).tolist()
    left.plot(sizes, [EPOCH.loss(n, budget / (6 * n)) for n in sizes], color=color, label=f"{budget:.0e} FLOPs")
    best = EPOCH.optimal(budget)
    left.plot([best[0]], [EPOCH.loss(*best)], "o", color=color, markersize=4)
left.set(title="One budget, many sizes", xlabel="parameters", ylabel="nats a token", xscale="log")
left.legend(fontsize=7)
budgets = torch.logspace(20, 26, 20).tolist()
right.plot(
    [EPOCH.optimal(c)[0] for c in budgets], [EPOCH.optimal(c)[1] for c in budgets], color="#2f6fbf", label="optimal"
)
for each in compare_with_optimum(EPOCH):
    right.plot([each.parameters], [each.tokens], "o", color="#e08a1e", markersize=3)
    side = "left" if each.name in ("LLaMA-65B", "Gopher", "BLOOM", "Llama 3.1 8B") else "right"
    right.annotate(
        each.name,
        (each.parameters, each.tokens),
        (4 if side == "left" else -4, -2),
        textcoords="offset points",
        ha=side,
        fontsize=6,
    )
right.set(title="Published trainings", xlabel="parameters", ylabel="tokens", xscale="log", yscale="log")
right.legend(fontsize=7)
plt.show()

# %% [markdown]
# ### Exercise 3
#
# You may spend 1e21 FLOPs. By the rule of 20 tokens a parameter, how many parameters and tokens do you take?

# %%
parameters, tokens = None, None
check(3, parameters and [parameters / 1e9, tokens / 1e9], [2.887, 57.7], tolerance=0.01, hint="6 · N · 20 N = 1e21")

# %% tags=["solution"]
parameters = math.sqrt(1e21 / 120)
tokens = 20 * parameters
check(3, [parameters / 1e9, tokens / 1e9], [2.887, 57.7], tolerance=0.01, hint="6 · N · 20 N = 1e21")

# %% [markdown]
# ## A law of your own
#
# Nine tiny models read characters of Sherlock Holmes: three widths, three lengths of training. Each has a schedule of its own that ends at its last token: a training that is
# stopped early says less than one that was planned so.

# %%
from quatrain.data.documents import read_documents
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

text = "\n".join(read_documents("gutenberg:1661"))
tokenizer = Tokenizer.train([text], kind="char")
ids = torch.tensor(tokenizer.encode(text))
train, held_out = ids[:-40_000], ids[-40_000:]
CONTEXT, ROWS = 64, 16


def batch(source, rows, generator):
    starts = torch.randint(len(source) - CONTEXT - 1, (rows,), generator=generator)
    return torch.stack([source[start : start + CONTEXT + 1] for start in starts.tolist()])


def train_one(width, tokens):
    """(parameters without embeddings, held-out loss in nats a character)"""
    config = ModelConfig(family="llama", vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=3 * width,
                         num_hidden_layers=2, num_attention_heads=max(1, width // 16), num_key_value_heads=max(1, width // 16),
                         max_position_embeddings=CONTEXT, tie_word_embeddings=True)  # fmt: skip
    model, generator = Model(config).initialize(seed=0), torch.Generator().manual_seed(0)
    rate = 0.01 * math.sqrt(32 / width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    steps = tokens // (CONTEXT * ROWS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - 0.95 * step / steps)
        windows = batch(train, ROWS, generator)
        loss = model(windows[:, :-1], windows[:, 1:])[1].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    windows = batch(held_out, at_size(200, 4), torch.Generator().manual_seed(1))
    with torch.no_grad():
        return counts.parameters(config) - tokenizer.vocab_size * width, float(
            model(windows[:, :-1], windows[:, 1:])[1].mean()
        )


points = []
for width in (16, 32, 64):
    for tokens in at_size((100_000, 200_000, 400_000), (2_048, 4_096, 8_192)):
        size, loss = train_one(width, tokens)
        points.append((size, tokens, loss))
        print(f"width {width:3}: {size:7,} parameters, {tokens:8,} characters, {loss:.3f} nats")

# %%
law = fit(*zip(*points)).law
print(f"L = {law.E:.2f} + {law.A:.3g} / N^{law.alpha:.2f} + {law.B:.3g} / D^{law.beta:.2f}")
size, loss = train_one(96, at_size(800_000, 4_096))
expected = law.loss(size, at_size(800_000, 4_096))
print(f"predicted for width 96 and 800,000 characters: {expected:.3f} nats; measured {loss:.3f}")

# %%
figure, ax = plt.subplots(figsize=(5, 2.6))
for size_of, color in zip(sorted({p[0] for p in points}), ("#c8ccd2", "#7aa6d8", "#2f6fbf")):
    mine = [p for p in points if p[0] == size_of]
    ax.plot([p[1] for p in mine], [p[2] for p in mine], "o", color=color, markersize=4, label=f"{size_of:,} parameters")
    line = torch.logspace(math.log10(points[0][1]), math.log10(at_size(800_000, 8_192)), 20).tolist()
    ax.plot(line, [law.loss(size_of, tokens) for tokens in line], color=color, linewidth=0.8)
ax.plot([at_size(800_000, 4_096)], [loss], "s", color="#b3261e", label="tested: width 96")
ax.plot([at_size(800_000, 4_096)], [expected], "s", fillstyle="none", color="#b3261e", label="its prediction")
ax.set(title="Points and the fitted law", xlabel="characters of training", ylabel="nats a character", xscale="log")
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ### Exercise 4
#
# By your law, `law`, which size is best for a budget of 10¹² FLOPs? Use the law's method `optimal`, or search over sizes with $D = C / (6 N)$.

# %%
best_size = None
check(4, best_size, law.optimal(1e12)[0], tolerance=0.05, hint="law.optimal(1e12) gives (parameters, tokens)")

# %% tags=["solution"]
best_size = min((10 ** (at / 200) for at in range(400, 5000)), key=lambda n: law.loss(n, 1e12 / (6 * n)))
check(4, best_size, law.optimal(1e12)[0], tolerance=0.05, hint="law.optimal(1e12) gives (parameters, tokens)")

# %% [markdown]
# Nine points over a factor of four are few: the constants are uncertain (E = 0 only says that these losses are far above the entropy of the text), and `fit(…, bootstrap=100)` says how much. The prediction nearby is better than any one of them.
#
# ## At size
#
# ```sh
# quatrain sweep sherlock --over model.hidden_size=64,96,128 --over tokens=200k,400k --predict model.hidden_size=192
# quatrain plan 7b --device a100 --devices 64 --zero 2
# quatrain plan llama-3.1-405b --device h100 --devices 16384 --tokens 15.6t --zero 3 --tensor 8 --pipeline 16
# quatrain plan 1.3b --device rtx-4090 --devices 8 --tokens 26b --days 14 --grid france --price 0.4
# ```
#
# `quatrain sweep` is this lab with checkpoints, exact FLOPs, iso-FLOP curves and a page ([plan](../plan.md#sweep-measure-your-own-law)). The same two commands plan and sweep models of any size;
# each run also measures its energy.
