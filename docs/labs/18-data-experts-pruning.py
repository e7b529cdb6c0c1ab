# ---
# jupyter:
#   quatrain:
#     data: ["gutenberg:1661"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 18: better data, experts, smaller models
#
# **You learn** three ways to get more from the same computer: leave out text that teaches nothing twice (curation), give a model more weights than a token uses (a mixture of experts), and take away weights that it hardly
# needs (pruning and distillation). Before this: [GPT-2 from scratch](04-gpt2.md).
#
# **Where it loses.** All three pay at size. With a hundred thousand parameters and a book, the mixture of experts is no better than the dense model and takes longer a step; zeros in a matrix save no time on a CPU; and a teacher that
# has read the same book teaches no more than the book.

# %%
import copy
import random
import re
import zlib

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional as F

from quatrain.core.labs import at_size, check
from quatrain.data.documents import read_documents
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts
from quatrain.tokenizers.tokenizer import Tokenizer

text = "\n".join(read_documents("gutenberg:1661"))

# %% [markdown]
# ## Near copies
#
# A crawl of the web has every page many times, with another date or another advertisement. Equal texts are found by a hash. **Near** copies are found by their **shingles**, the set of all runs of n words: two texts are as
# alike as their sets, by the **Jaccard** index:
#
# $$J(A, B) = \frac{|A \cap B|}{|A \cup B|}$$
#
# ### Exercise 1
#
# Write both: the set of runs of n words, and the Jaccard index.


# %%
def shingles(passage, n):
    """The runs of n words, as a set of tuples."""
    return None


def jaccard(a, b):
    return None


one, other = "the cat sat on the mat today", "the cat sat on the rug today"
check(
    1,
    None if shingles(one, 2) is None else [len(shingles(one, 2)), jaccard(shingles(one, 2), shingles(other, 2))],
    [6, 0.5],
    hint="zip of the words and of the words without the first; 4 of 8 pairs are in both",
)


# %% tags=["solution"]
def shingles(passage, n):
    words = passage.split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def jaccard(a, b):
    return len(a & b) / len(a | b)


check(
    1,
    [len(shingles(one, 2)), jaccard(shingles(one, 2), shingles(other, 2))],
    [6, 0.5],
    hint="4 of 8 pairs are in both",
)

# %% [markdown]
# A billion sets cannot be compared pair by pair. **MinHash** ([Broder 1997](https://doi.org/10.1109/SEQUEN.1997.666900)) keeps the smallest value of k hash functions over a set. Two sets have the same smallest value with the
# probability $J$: the smallest of the union must lie in both. So the share of equal values among k estimates $J$, from k numbers a text.

# %%
PRIME = (1 << 31) - 1
draw = np.random.default_rng(0)
multiplier, shift = draw.integers(1, PRIME, 256), draw.integers(0, PRIME, 256)


def runs_of(passage, n=3):
    words = re.findall(r"[a-z']+", passage.lower())
    return {" ".join(words[at : at + n]) for at in range(len(words) - n + 1)}


def minhash(runs, k):
    """The smallest values (k) of k hash functions over a set."""
    codes = np.array([zlib.crc32(run.encode()) % PRIME for run in runs])
    return ((multiplier[:k, None] * codes + shift[:k, None]) % PRIME).min(axis=1)


words, chance = text.split(), random.Random(0)
true, estimated = [], {16: [], 256: []}
for number in range(at_size(200, 10)):
    start = chance.randrange(len(words) - 100)
    original = words[start : start + 100]
    share = chance.random() ** 2  # of the words that are replaced
    changed = [chance.choice(words) if chance.random() < share else word for word in original]
    a, b = runs_of(" ".join(original)), runs_of(" ".join(changed))
    true.append(len(a & b) / len(a | b))
    for k in estimated:
        estimated[k].append(float((minhash(a, k) == minhash(b, k)).mean()))
figure, axes = plt.subplots(1, 2, figsize=(5.6, 2.5), sharey=True)
for ax, k in zip(axes, estimated):
    ax.plot([0, 1], [0, 1], color="#c8ccd2", linewidth=0.8)
    ax.plot(true, estimated[k], "o", color="#2f6fbf", markersize=2)
    off = np.abs(np.array(true) - np.array(estimated[k])).mean()
    ax.set(title=f"{k} hashes: {off:.3f} off on average", xlabel="Jaccard index")
axes[0].set_ylabel("MinHash's estimate")
plt.show()

# %% [markdown]
# ### Exercise 2
#
# Even MinHash is k numbers for each of a billion texts. **Locality-sensitive hashing** cuts them into bands of r numbers; texts are compared only if a whole band is equal. With b = 20 bands of r = 5, how likely is a pair with
# J = 0.8 compared, and how likely one with J = 0.3?

# %%
near, far = None, None
hint = "a band is equal with J^5; at least one of 20 is with 1 - (1 - J^5)^20"
check(2, near and [near, far], [0.9996, 0.0475], tolerance=2e-3, hint=hint)

# %% tags=["solution"]
near, far = (1 - (1 - J**5) ** 20 for J in (0.8, 0.3))
check(2, [near, far], [0.9996, 0.0475], tolerance=2e-3, hint=hint)

# %% [markdown]
# `quatrain data curate` does this with other rules, of Gopher, C4 and FineWeb, and shows a funnel of what each one removes ([curation](../curation.md)). The recipe `curated` trains on raw, filtered and deduplicated text at equal
# tokens.
#
# ## A mixture of experts
#
# In each layer many feed-forward networks, the **experts**, and a **router**: a matrix that scores them for each token. The best k compute, weighted by the softmax of their scores ([Shazeer et al.
# 2017](https://arxiv.org/abs/1701.06538)):
#
# $$y = \sum_{i \in \operatorname{top}k} \frac{p_i}{\sum_{j \in \operatorname{top}k} p_j}\, E_i(x), \qquad p = \operatorname{softmax}(x W_r)$$
#
# So the weights grow with the number of experts, and the work of a token does not.

# %%
tokenizer = Tokenizer.train([text], kind="char")
ids = torch.tensor(tokenizer.encode(text))
train, held_out = ids[:-40_000], ids[-40_000:]
CONTEXT, ROWS = 64, 16


def config_of(experts=None):
    return ModelConfig(family="qwen3_moe" if experts else "llama", vocab_size=tokenizer.vocab_size, hidden_size=64,
                       intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                       max_position_embeddings=CONTEXT, experts=experts)  # fmt: skip


mixture = config_of(ExpertsConfig(num_experts=8, experts_per_token=2, intermediate_size=64))
for name, config in (("dense", config_of()), ("mixture", mixture)):
    print(f"{name:8} {counts.parameters(config):8,} parameters, {counts.active_parameters(config):8,} for each token")

# %% [markdown]
# ### Exercise 3
#
# Mixtral 8x7B has 32 layers of width 4,096, each with 8 experts of three matrices 4,096 x 14,336, of which a token uses 2. How many billion parameters have the experts together, and how many of them does a token use?

# %%
together, used = None, None
hint = "32 · 8 · 3 · 4096 · 14336 / 1e9; a quarter of it"
check(3, together and [together, used], [45.1, 11.27], tolerance=2e-3, hint=hint)

# %% tags=["solution"]
together = 32 * 8 * 3 * 4096 * 14336 / 1e9
used = together * 2 / 8
check(3, [together, used], [45.1, 11.27], tolerance=2e-3, hint=hint)

# %% [markdown]
# A router left alone may find favourites, and the other experts hardly learn. The **balancing loss** is the product, summed over the experts and times their number E, of the share of assignments that an expert got and of its mean
# probability ([Fedus et al. 2021](https://arxiv.org/abs/2101.03961)); it is smallest when the load is even.

# %%
from quatrain.models.transformer.experts import expert_counts, load_balancing_loss


def batch(source, rows, generator):
    starts = torch.randint(len(source) - CONTEXT - 1, (rows,), generator=generator)
    return torch.stack([source[start : start + CONTEXT + 1] for start in starts.tolist()])


def loss_of(model, windows, routing=None):
    states = model.hidden_states(windows[:, :-1], routing=routing)
    return F.cross_entropy(model.lm_logits(states).flatten(0, 1), windows[:, 1:].flatten())


def learn(model, steps, balance=0.0, teacher=None):
    """Trains a model in place; with a teacher (at the end of the lab) by `taught`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 20) * (1 - 0.95 * step / steps)
        windows, routing = batch(train, ROWS, generator), []
        if teacher is None:
            loss = loss_of(model, windows, routing)
        else:
            loss = taught(model, teacher, windows)
        if balance:
            loss = loss + balance * sum(load_balancing_loss([each]) for each in routing)  # of each layer
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


test = batch(held_out, at_size(200, 4), torch.Generator().manual_seed(1))
steps, models, loads = at_size(300, 2), {}, {}
for name, config, balance in (("dense", config_of(), 0.0), ("alone", mixture, 0.0), ("balanced", mixture, 0.05)):
    routing = []
    models[name] = learn(Model(config).initialize(seed=0), steps, balance)
    with torch.no_grad():
        loss = float(loss_of(models[name], test, routing))
    print(f"{name:9} {loss:.3f} nats a character on held-out text")
    if routing:
        load = expert_counts(routing[0].experts, 8)
        loads[name] = (load / load.sum()).sort(descending=True).values

# %%
figure, ax = plt.subplots(figsize=(4.6, 2.1))
for place, (name, color) in enumerate((("alone", "#e08a1e"), ("balanced", "#2f6fbf"))):
    ax.bar(np.arange(8) + 0.4 * place, loads[name], width=0.38, color=color, label=name)
ax.axhline(1 / 8, color="#c8ccd2", linestyle="--")
ax.set(
    title="The load of the experts of the first layer; dashed: even",
    xlabel="expert, the busiest first",
    ylabel="share",
    xticks=[],
)
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Fewer weights
#
# **Magnitude** pruning sets the smallest weights of each layer to zero. **Wanda** ([Sun et al. 2023](https://arxiv.org/abs/2306.11695)) multiplies each by the norm of its input, and **SparseGPT**
# ([Frantar & Alistarh 2023](https://arxiv.org/abs/2301.00774)) corrects what stays for what has gone; both read some text.
#
# ### Exercise 4
#
# Write magnitude pruning of one matrix: the given share of its values, those of the smallest magnitude, become 0.


# %%
def by_magnitude(weight, share):
    return None


matrix = models["dense"].layers[0].mlp.down_proj.weight.detach()
wanted = torch.where(matrix.abs() > matrix.abs().flatten().sort().values[matrix.numel() // 2 - 1], matrix, 0.0)
check(4, by_magnitude(matrix, 0.5), wanted, hint="sort the magnitudes; the value at share · number is the threshold")


# %% tags=["solution"]
def by_magnitude(weight, share):
    threshold = weight.abs().flatten().sort().values[int(share * weight.numel()) - 1]
    return torch.where(weight.abs() > threshold, weight, 0.0)


check(4, by_magnitude(matrix, 0.5), wanted, hint="sort the magnitudes; the value at share · number is the threshold")

# %%
from quatrain.compression.pruning.unstructured import prune

calibration = [{"input_ids": batch(train, ROWS, torch.Generator().manual_seed(2))[:, :-1]}]
shares = at_size((0.2, 0.4, 0.5, 0.6, 0.7, 0.8), (0.5,))
figure, ax = plt.subplots(figsize=(4.8, 2.3))
for method, color in (("magnitude", "#c8ccd2"), ("wanda", "#e08a1e"), ("sparsegpt", "#2f6fbf")):
    losses = []
    for share in shares:
        pruned = copy.deepcopy(models["dense"])
        prune(pruned, method, share, batches=calibration if method != "magnitude" else ())
        with torch.no_grad():
            losses.append(float(loss_of(pruned, test)))
    ax.plot(shares, losses, "o-", color=color, markersize=3, label=method)
    print(f"{method:10}", "  ".join(f"{share:.0%}: {loss:.3f}" for share, loss in zip(shares, losses)))
ax.set(title="Loss by the share of zeros", xlabel="share of zeros", ylabel="nats a character")
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# SparseGPT costs least until most weights are gone. Wanda is behind plain magnitude here; it was made for large models, in which a few channels have large inputs ([results](../../benchmarks/RESULTS.md)).
#
# Zeros make no matrix smaller. **Structured** pruning takes whole layers, heads or units away, and what is left is an ordinary smaller model. **Distillation** ([Hinton et al. 2015](https://arxiv.org/abs/1503.02531)) then trains it
# on the probabilities of the large one, which say more than the one letter that came:
#
# $$\mathcal L = \tfrac12\, \mathrm{CE} + \tfrac12\, \mathrm{KL}(p_\text{teacher} \,\|\, p_\text{student})$$
#
# ### Exercise 5
#
# Write the second term: the mean of $\sum_v p_v (\log p_v - \log q_v)$ over all positions, from the logits (M, V) of teacher and student.


# %%
def divergence(teacher_logits, student_logits):
    return None


p, q = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
wanted = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
check(
    5,
    divergence(p, q),
    wanted,
    hint="log_softmax of both; the teacher's probabilities weigh the difference; sum, then mean",
)


# %% tags=["solution"]
def divergence(teacher_logits, student_logits):
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


check(
    5,
    divergence(p, q),
    wanted,
    hint="log_softmax of both; the teacher's probabilities weigh the difference; sum, then mean",
)

# %%
from quatrain.compression.pruning import structured


def taught(student, teacher, windows):
    logits = student.lm_logits(student.hidden_states(windows[:, :-1])).flatten(0, 1)
    with torch.no_grad():
        expected = teacher.lm_logits(teacher.hidden_states(windows[:, :-1])).flatten(0, 1)
    known = F.cross_entropy(logits, windows[:, 1:].flatten())
    return 0.5 * known + 0.5 * F.kl_div(logits.log_softmax(-1), expected.softmax(-1), reduction="batchmean")


big = models["dense"]
small, kept = structured.prune(big, calibration, units=0.5, layers=0.5)
rows = [
    ("the whole model", big),
    (f"half the layers and units: {1 - small.num_parameters() / big.num_parameters():.0%} fewer weights", small),
]
rows.append(("  trained again", learn(copy.deepcopy(small), at_size(100, 2))))
rows.append(("  taught by the whole model", learn(copy.deepcopy(small), at_size(100, 2), teacher=big)))
rows.append(
    ("  of this size from scratch, as many steps", learn(Model(small.config).initialize(seed=0), at_size(100, 2)))
)
for name, model in rows:
    with torch.no_grad():
        print(f"{name:52} {float(loss_of(model, test)):.3f} nats a character")

# %% [markdown]
# A hundred steps from what is left of the large model are worth more than a hundred from fresh weights. The teacher's probabilities add nothing to the text here: it has read the same book, not much longer. A teacher that has read
# far more than its pupil will is another matter: DistilBERT keeps 97 % of BERT's score with 60 % of its weights ([Sanh et al. 2019](https://arxiv.org/abs/1910.01108)).
#
# ## At size
#
# ```sh
# quatrain data crawl crawl                                                          # a generated crawl with known junk
# quatrain data curate crawl/recipe.toml --output curated --truth crawl/truth.jsonl  # with the extra `data`
# quatrain run curated                                                               # raw, filtered and deduplicated text at equal tokens
# quatrain plan qwen3-30b-a3b                                                        # both counts of a published mixture
# quatrain run distil                                                                # half of a Llama's layers, taught by the whole one
# quatrain prune runs/distil --method magnitude --method sparsegpt --sparsity 0.5 --calibrate gutenberg:1661
# ```
#
# A larger model changes names and nothing else: `model.family=qwen3_moe` with a table `model.experts` makes any recipe a mixture ([experts](../experts.md)); `quatrain prune MODEL` takes a folder or a hub id
# ([pruning](../pruning.md)); `teacher` in a stage of pre-training is any model with the same tokenizer ([distillation](../compression.md)).
