# ---
# jupyter:
#   quatrain:
#     data: ["movie-reviews", "sst2-train", "sst2-dev"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 8: LoRA by hand
#
# **You learn** to finetune a model by training 2 % of it: to write LoRA in a dozen lines, to count what it trains, to merge it away, and to do the
# same with Quatrain; then soft prompts, and every other method side by side. Before this: [GPT-2 from scratch](04-gpt2.md).
#
# Full finetuning changes every weight W. LoRA ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) freezes W and learns a change of low rank:
#
# $$y = W x + \frac{\alpha}{r} B A x, \qquad A \in \mathbb{R}^{r \times \text{in}},\; B \in \mathbb{R}^{\text{out} \times r}$$
#
# A starts random and B at zero, so that the first step starts from the model as it is. Only A and B need gradients and the two states of AdamW, and
# only they are stored.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from quatrain.core.labs import at_size, check
from quatrain.models.io.model_folder import config_of
from quatrain.models.transformer.stack import Model
from quatrain.planning.facts import load_facts


class LoRA(nn.Module):
    """A frozen linear layer and a trained change of low rank."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        bound = 1 / math.sqrt(base.in_features)
        self.A = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A.T) @ self.B.T


# %% [markdown]
# To **replace** the layers, walk through the modules and put a `LoRA` where a `nn.Linear` was.


# %%
def add_lora(module, rank, alpha):
    """Replaces every linear layer below a module; gives how many."""
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LoRA(child, rank, alpha))
            replaced += 1
        else:
            replaced += add_lora(child, rank, alpha)
    return replaced


def count(module):
    """(trainable, all) parameters."""
    every = list(module.parameters())
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)


# %% [markdown]
# ## Counting on GPT-2
#
# GPT-2 as a classifier of two classes: its blocks, and a head of 768 x 2 weights and 2 biases in place of the language head. No weights are needed to
# count: on the device `meta`, tensors have shapes and no memory.

# %%
gpt2 = config_of(dict(load_facts().models["gpt2"].config)).replace(
    head="sequence_classification", labels=("ham", "spam")
)
with torch.device("meta"):
    classifier = Model(gpt2)
    classifier.score = nn.Linear(768, 2)  # Hugging Face's head of GPT-2 has no bias, the course's has
print(f"trainable before: {count(classifier)[0]:,}")

for parameter in classifier.parameters():
    parameter.requires_grad_(False)
print(f"frozen:           {count(classifier)[0]:,}")
with torch.device("meta"):
    layers = add_lora(classifier, rank=16, alpha=16)
print(f"with LoRA:        {count(classifier)[0]:,} in {layers} layers")
assert (count(classifier)[0], layers) == (2_666_528, 73)

# %% [markdown]
# ### Exercise 1
#
# Where do 124,441,346 → 2,666,528 come from? A LoRA of rank r on a layer of `in` inputs and `out` outputs has r · (in + out) parameters. Each of the 12 blocks
# has four layers 768 x 768 (q, k, v and the output), one 768 x 3072 and one 3072 x 768. Write the number that is trained as a function of
# the rank, head included.


# %%
def trained(rank):
    return None


hint = "12 · (4 · (768 + 768) + 2 · (768 + 3072)) + (768 + 2), times the rank"
check(1, trained(16) and [trained(16), trained(8)], [2_666_528, 1_333_264], tolerance=0, hint=hint)


# %% tags=["solution"]
def trained(rank):
    return rank * (12 * (4 * (768 + 768) + 2 * (768 + 3072)) + (768 + 2))


check(1, [trained(16), trained(8)], [2_666_528, 1_333_264], tolerance=0, hint=hint)

# %% [markdown]
# ## A base to adapt
#
# A small GPT-2 reads film reviews for a minute. In a project you would take a public model here; offline, we make one, with a recipe in a string.

# %%
import quatrain
from quatrain.core.progress import SilentReporter
from quatrain.loading.model import load_model
from quatrain.runs.recipe import loads

recipe = f"""
name = "base"
[data]
source = "movie-reviews"
validation = 0.02
[tokenizer]
kind = "bpe"
vocab_size = {at_size(4096, 400)}
[model]
family = "gpt2"
hidden_size = {at_size(128, 16)}
num_hidden_layers = {at_size(3, 1)}
num_attention_heads = {at_size(4, 2)}
max_position_embeddings = 128
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = {{ steps = {at_size(400, 2)}, batch_tokens = {at_size(2048, 256)}, learning_rate = 0.006, warmup_steps = {at_size(20, 0)}, optimizer = "muon", schedule = "wsd" }}
"""
quatrain.run(loads(recipe), reporter=SilentReporter())
base, tokenizer = load_model("runs/base/model")
print(f"{count(base)[1]:,} parameters")

# %% [markdown]
# The task is SST-2: is a sentence for the film or against it? The model reads the sentence; a linear layer reads the state of its last token.

# %%
import copy
import random

from quatrain.data.corpus import Corpus


def read(name, limit):
    """Sentences as ids and labels (0 or 1)."""
    records = [(tokenizer.encode(record.text)[-64:], int(record.label)) for record in Corpus(name, format="labelled")]
    random.Random(0).shuffle(records)
    return records[:limit]


train, dev = read("sst2-train", at_size(None, 64)), read("sst2-dev", at_size(None, 32))
print(len(train), "sentences to learn from,", len(dev), "to measure with")


def collate(rows):
    """ids (B, T) padded on the right, the place of each last token, labels."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    return ids, torch.tensor([len(row) - 1 for row, _ in rows]), torch.tensor([label for _, label in rows])


class Classifier(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(body.config.hidden_size, 2)

    def forward(self, ids, last):
        hidden = self.body.hidden_states(ids)  # causal: padding on the right changes nothing before it
        return self.head(hidden[torch.arange(len(ids)), last])


def learn(model, rate, steps=at_size(250, 2), batch=32):
    """Trains what is trainable; gives the losses and the accuracy on sentences it has not seen."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    draw, losses = random.Random(0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        ids, last, labels = collate(draw.sample(train, batch))
        loss = F.cross_entropy(model(ids, last), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, accuracy(model)


@torch.no_grad()
def accuracy(model):
    model.eval()
    right = 0
    for start in range(0, len(dev), 64):
        ids, last, labels = collate(dev[start : start + 64])
        right += int((model(ids, last).argmax(-1) == labels).sum())
    model.train()
    return right / len(dev)


# %% [markdown]
# Three classifiers start from the same base: one trains the head alone, one LoRA and the head, one everything.


# %%
def fresh(rank=None, frozen=True):
    torch.manual_seed(0)
    model = Classifier(copy.deepcopy(base))
    model.body.requires_grad_(not frozen)
    if rank is not None:
        add_lora(model.body.layers, rank, alpha=2 * rank)
    return model


results = {}
for name, model, rate in (
    ("head alone", fresh(), 1e-2),
    ("LoRA, rank 8", fresh(rank=8), 3e-3),
    ("every weight", fresh(frozen=False), 1e-3),
):
    losses, score = learn(model, rate)
    results[name] = losses
    print(f"{name:13} {count(model)[0]:>9,} trained   {100 * score:.1f} % right")
    if rate == 3e-3:
        adapted = model
majority = max(sum(label for _, label in dev), sum(1 - label for _, label in dev)) / len(dev)
print(f"always the more frequent class: {100 * majority:.1f} %")

# %%
figure, ax = plt.subplots(figsize=(5, 2.2))
for (name, losses), color in zip(results.items(), ("#c8ccd2", "#2f6fbf", "#e08a1e")):
    smooth = [
        sum(losses[max(0, at - 20) : at + 1]) / len(losses[max(0, at - 20) : at + 1]) for at in range(len(losses))
    ]
    ax.plot(smooth, label=name, color=color)
ax.set(title="The loss of training, mean of 20 steps", xlabel="step", ylabel="nats")
ax.legend()
plt.show()

# %% [markdown]
# A base this small still has much to learn, and every weight helps. Over large models LoRA reaches full finetuning (Hu et al. 2021), and the
# memory is what decides: AdamW keeps two numbers for each trained one.
#
# ## Merging
#
# After training, $W' = W + \frac{\alpha}{r} B A$ is a plain layer again: the adapter costs nothing when the model is used.
#
# ### Exercise 2
#
# Write `merge`: an `nn.Linear` that computes what a `LoRA` computes.


# %%
def merge(layer):
    """LoRA to nn.Linear."""
    return None


example = adapted.body.layers[0].self_attn.q_proj
inputs = torch.randn(5, example.base.in_features)
merged = merge(example)
hint = "a new nn.Linear (or a deepcopy of layer.base) whose weight is layer.base.weight + layer.scale * layer.B @ layer.A; keep the bias"
check(2, merged, lambda layer: torch.allclose(layer(inputs), example(inputs), atol=1e-4), hint=hint)


# %% tags=["solution"]
def merge(layer):
    merged = copy.deepcopy(layer.base)
    with torch.no_grad():
        merged.weight += layer.scale * layer.B @ layer.A
    return merged


check(2, merge(example)(inputs), example(inputs), hint=hint)

# %%
change = (example.scale * example.B @ example.A).detach()
values = torch.linalg.svdvals(change)
figure, ax = plt.subplots(figsize=(4.5, 1.9))
ax.bar(range(1, 17), values[:16], color="#2f6fbf")
ax.set(title="Singular values of a learned change: rank 8", xlabel="number")
plt.show()

# %% [markdown]
# ## The same with Quatrain
#
# `apply_adapter` replaces the layers of any model. With our A and B in it, it computes what ours does; its `save_adapter` writes PEFT's files.

# %%
from quatrain.adapters.apply import apply_adapter, count_trainable_parameters, merge_adapters
from quatrain.adapters.peft_files import save_adapter
from quatrain.adapters.settings import AdapterSettings

theirs = copy.deepcopy(base).eval()
names = apply_adapter(theirs, AdapterSettings(rank=8, alpha=16.0, target_modules="all-linear"), seed=0)
with torch.no_grad():
    for name in names:
        ours = adapted.body.get_submodule(name)
        theirs.get_submodule(name).lora_A.copy_(ours.A)
        theirs.get_submodule(name).lora_B.copy_(ours.B)
    ids = collate(dev[:4])[0]
    difference = float((theirs.hidden_states(ids) - adapted.body.eval().hidden_states(ids)).abs().max())
    print(f"{len(names)} layers; hidden states at most {difference:.1e} apart")
    assert difference < 1e-4
    save_adapter(theirs, "adapter", base_model="runs/base/model")
    before = theirs.hidden_states(ids)
    merge_adapters(theirs)
    print(f"after merging at most {float((theirs.hidden_states(ids) - before).abs().max()):.1e}")

# %% [markdown]
# ## Soft prompts
#
# A prompt is a few embeddings before the text. Why should they be those of words? A **soft prompt**
# ([Lester et al. 2021](https://arxiv.org/abs/2104.08691)) learns n vectors and nothing else. By hand: put n ids before the text, and give
# them learned vectors instead of their embeddings.


# %%
class SoftPrompt(nn.Module):
    """An embedding whose first n positions are learned vectors, whatever their ids are."""

    def __init__(self, base, n):
        super().__init__()
        self.base, self.n = base.requires_grad_(False), n
        start = base.weight[torch.randint(len(base.weight), (n,))]  # like words: a start that the model knows
        self.vectors = nn.Parameter(start.detach().clone())

    def forward(self, ids):
        x = self.base(ids)
        return torch.cat((self.vectors.expand(len(x), -1, -1), x[:, self.n :]), dim=1)


class Prompted(Classifier):
    def __init__(self, body, n):
        super().__init__(body)
        body.requires_grad_(False)
        body.embed_tokens = SoftPrompt(body.embed_tokens, n)
        self.n = n

    def forward(self, ids, last):
        return super().forward(torch.cat((ids.new_zeros(len(ids), self.n), ids), dim=1), last + self.n)


torch.manual_seed(0)
prompted = Prompted(copy.deepcopy(base), n=20)
losses, score = learn(prompted, 3e-2)
print(f"soft prompt   {count(prompted)[0]:>9,} trained   {100 * score:.1f} % right")

# %% [markdown]
# It stays near chance: a soft prompt can only ask a model for what it knows, and this one has read too little to know much. With the size of the model the gap to full finetuning
# closes (Lester et al. 2021).
#
# ### Exercise 3
#
# How many parameters does a soft prompt of 20 vectors train in GPT-2 (width 768), without a head? And how many times fewer is that than LoRA of rank 16 in its 72 layers?

# %%
vectors, times = None, None
lora = 16 * 12 * (4 * 1536 + 2 * 3840)
check(
    3,
    vectors and [vectors, times],
    [15_360, lora / 15_360],
    tolerance=0.01,
    hint="20 vectors of 768; `lora` is the other number",
)

# %% tags=["solution"]
vectors = 20 * 768
check(3, [vectors, lora / vectors], [15_360, lora / 15_360], tolerance=0.01, hint="20 vectors of 768")

# %% [markdown]
# ## Every method
#
# In Quatrain a method is one word. This is what each trains in the real GPT-2, counted on `meta`; `quatrain plan gpt2 --method lora` adds the memory
# (and 768 parameters: beside an adapter the embedding of special tokens learns too, in GPT-2 of one).

# %%
language_model = gpt2.replace(head="causal", labels=())
methods = {"lora": {}, "dora": {}, "loha": {}, "lokr": {}, "ia3": {}, "bottleneck": {"bottleneck_dim": 24}, "bitfit": {},
           "last-layers": {}, "prompt": {}, "prefix": {}}  # fmt: skip
counts = {}
for method, options in methods.items():
    with torch.device("meta"):
        model = Model(language_model)
        apply_adapter(model, AdapterSettings(method=method, **options))
    counts[method] = count_trainable_parameters(model)[0]
figure, ax = plt.subplots(figsize=(6, 2.6))
bars = ax.barh(list(counts), list(counts.values()), color="#2f6fbf")
ax.bar_label(bars, [f" {value:,} ({100 * value / 124_439_808:.2f} %)" for value in counts.values()], fontsize=8)
ax.set(xscale="log", xlim=(5e3, 3e8), title="Parameters that each method trains in GPT-2 (124,439,808)", xticks=[])
ax.invert_yaxis()
plt.show()

# %% [markdown]
# [Adapt a model](../adaptation.md#the-methods-compared) has the scores, speed and memory of every method on one task.
#
# ## At size
#
# ```sh
# quatrain run sentiment-lora                                   # a ModernBERT, LoRA of rank 16: the adapter in PEFT's files, and the merged model
# quatrain evaluate runs/sentiment-lora/stages/03-finetune/adapter sst2-test
# quatrain merge runs/sentiment-lora/stages/03-finetune/adapter --out merged
# quatrain run soft-hard                                        # prompts in words beside learned vectors
# quatrain plan gpt2 --method lora --rank 16                    # what it trains, and the memory
# ```
#
# For a larger model, name it: `quatrain plan meta-llama/Llama-3.2-1B --method qlora` says whether it fits, and
# `model.folder=meta-llama/Llama-3.2-1B` in the recipe trains it ([from a public model](../adaptation.md#from-a-public-model)). Over a base in four bits it is
# [QLoRA](../adaptation.md#qlora-lora-over-four-bits).
