# ---
# jupyter:
#   quatrain:
#     data: ["gutenberg:1661"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 4: GPT-2 from scratch
#
# **You learn** every part of GPT-2 by writing it: embeddings, blocks, the loss, training, and generation, in less than 200 lines of
# PyTorch. Then the same weights go through Quatrain's stack and give the same logits and the same text, in both directions. Before this:
# [attention by hand](03-attention.md).
#
# GPT-2 ([Radford et al. 2019](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)) reads
# tokens $t_1 \dots t_T$ and gives for each position a distribution over the next one. A vector of width D runs through the network, the
# **residual stream**; each part reads it through a norm and adds to it:
#
# ```text
# ids ── wte[id] + wpe[position] ──┬───────────────(+)──┬──────────────────(+)── … 12 blocks … ── ln_f ── · wteᵀ ── logits
#                                  └ ln_1 ─ attention ┘ └ ln_2 ─ feed-forward ┘
# ```

# %%
import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from quatrain.core.labs import at_size, check

# %% [markdown]
# ## The model
#
# Names of modules are those of OpenAI's files, so that published weights load without a table of names.
#
# **Feed-forward**: to four times the width, a GELU, and back. GPT-2 uses the tanh approximation of
# $\operatorname{GELU}(x) = x\,\Phi(x)$.
#
# **Attention**: one matrix gives queries, keys and values side by side; `c_proj` mixes the heads.


# %%
@dataclass
class GPT2Config:
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12


class Projection(nn.Module):
    """x W + b with W (inputs, outputs): OpenAI stored the transpose of what nn.Linear has."""

    def __init__(self, inputs, outputs, std=0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd)
        # 2 L projections add to the residual stream: each starts smaller, so that their sum has the size of one.
        self.c_proj = Projection(config.n_embd, config.n_embd, std=0.02 / math.sqrt(2 * config.n_layer))

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (each.view(B, T, self.n_head, -1).transpose(1, 2) for each in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Projection(config.n_embd, 4 * config.n_embd)
        self.c_proj = Projection(4 * config.n_embd, config.n_embd, std=0.02 / math.sqrt(2 * config.n_layer))

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), FeedForward(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.02)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, ids):
        """ids (B, T) to logits (B, T, V)."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T  # the head is the embedding again


# %% [markdown]
# ### Exercise 1
#
# GPT-2 has V = 50,257 tokens, T = 1,024 positions, width D = 768 and L = 12 blocks. How many parameters is that? Write a formula in V, T,
# D and L, and check it on the small configuration too. A LayerNorm has 2 D; the head adds none, since it is the embedding.


# %%
def parameters(V, T, D, L):
    return None


answers = parameters(50257, 1024, 768, 12) and [parameters(50257, 1024, 768, 12), parameters(1024, 128, 128, 4)]
hint = "V D + T D for the embeddings; a block has 4 D² + 4 D in attention, 8 D² + 5 D in the feed-forward, 4 D in two norms; one norm ends it"
check(1, answers, [124_439_808, 940_800], tolerance=0, hint=hint)


# %% tags=["solution"]
def parameters(V, T, D, L):
    return V * D + T * D + L * (12 * D**2 + 13 * D) + 2 * D


check(
    1, [parameters(50257, 1024, 768, 12), parameters(1024, 128, 128, 4)], [124_439_808, 940_800], tolerance=0, hint=hint
)
with torch.device("meta"):  # shapes without memory
    assert sum(p.numel() for p in GPT2(GPT2Config()).parameters()) == 124_439_808

# %%
V, T, D, L = 50257, 1024, 768, 12
parts = {
    "token embedding": V * D,
    "positions": T * D,
    "attention": L * (4 * D * D + 4 * D),
    "feed-forward": L * (8 * D * D + 5 * D),
}
figure, ax = plt.subplots(figsize=(6, 1.6))
bars = ax.barh(list(parts), [count / 1e6 for count in parts.values()], color="#2f6fbf")
ax.bar_label(bars, [f" {count / 1e6:.1f} M" for count in parts.values()])
ax.invert_yaxis()
ax.set(title="Where GPT-2's 124 million parameters are", xlim=(0, 72), xticks=[])
plt.show()
# %% [markdown]
# ## Training
#
# The loss is the mean surprise of the next token, $-\ln p(t_{i+1} \mid t_1 \dots t_i)$: one text gives T lessons at once, which is why the mask
# matters. The text is *The Adventures of Sherlock Holmes*; its last tenth is for validation. The tokenizer is Quatrain's byte-level BPE.

# %%
from quatrain.data.documents import read_documents
from quatrain.tokenizers.tokenizer import Tokenizer

text = "\n".join(read_documents("gutenberg:1661"))
tokenizer = Tokenizer.train([text], kind="bpe", vocab_size=1024)
ids = torch.tensor(tokenizer.encode(text))
cut = int(0.9 * len(ids))
train, validation = ids[:cut], ids[cut:]
print(f"{len(text):,} characters are {len(ids):,} tokens of {tokenizer.vocab_size:,}")

config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=128, n_embd=128, n_layer=4, n_head=4)
torch.manual_seed(0)
model = GPT2(config)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ### Exercise 2
#
# Before training the model knows nothing. Which loss do you expect, in nats?

# %%
expected_loss = None
check(2, expected_loss, math.log(tokenizer.vocab_size), tolerance=0.01, hint="all tokens are equally likely: -ln(1/V)")

# %% tags=["solution"]
expected_loss = math.log(tokenizer.vocab_size)
check(2, expected_loss, math.log(tokenizer.vocab_size), tolerance=0.01, hint="-ln(1/V)")


# %%
def loss_of(model, windows):
    """The mean loss of windows (B, T + 1)."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def windows_of(tokens, rows, length, generator):
    starts = torch.randint(len(tokens) - length - 1, (rows,), generator=generator)
    return torch.stack([tokens[start : start + length + 1] for start in starts.tolist()])


held_out = windows_of(validation, at_size(32, 2), 128, torch.Generator().manual_seed(1))
with torch.no_grad():
    print(f"before training: {float(loss_of(model, held_out)):.2f} nats")

steps, peak = at_size(500, 3), 3e-3
optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
generator = torch.Generator().manual_seed(0)
curve = []
for step in range(steps):
    warm, left = min(1.0, (step + 1) / 30), 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = peak * warm * left  # warmup, then a cosine
    loss = loss_of(model, windows_of(train, at_size(16, 2), 128, generator))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    curve.append(loss.item())
model.eval()
with torch.no_grad():
    print(f"after {steps} steps: {float(loss_of(model, held_out)):.2f} nats on text that it has not seen")

# %%
figure, ax = plt.subplots(figsize=(5, 2.1))
ax.plot(curve, color="#2f6fbf", linewidth=0.8)
ax.axhline(math.log(config.vocab_size), color="#c8ccd2", linestyle="--")
ax.set(title="The loss of training; dashed: ln V, knowing nothing", xlabel="step", ylabel="nats a token")
plt.show()

# %% [markdown]
# ## Generation
#
# Read the text, take a next token, append it, read again. The likeliest token each time is **greedy**; a draw from the distribution with
# a **temperature** is livelier ([lab 5](05-decoding.md) has every other way).


# %%
@torch.no_grad()
def generate(model, ids, count, temperature=0.0, generator=None):
    """Continues ids (a list) by `count` tokens."""
    ids = list(ids)
    for _ in range(count):
        logits = model(torch.tensor([ids[-model.config.n_positions :]]))[0, -1]
        if temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            ids.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
    return ids


prompt = tokenizer.encode("“My dear Watson,” said Holmes,")
ours = generate(model, prompt, at_size(40, 5))
print("greedy:     ", tokenizer.decode(ours))
print("temperature:", tokenizer.decode(generate(model, prompt, at_size(40, 5), 0.8, torch.Generator().manual_seed(3))))

# %% [markdown]
# ### Exercise 3
#
# Each new token reads the whole text again. For a prompt of P tokens and N new ones, how many token positions does `generate` compute in all, and how
# many would it be with a KV cache, which keeps keys and values of what was read?


# %%
def positions_computed(P, N):
    """(without a cache, with one)"""
    return None


hint = "the lengths are P, P + 1, …, P + N - 1; with a cache P once, then one for each token but the last"
check(3, positions_computed(10, 40), [1180, 49], tolerance=0, hint=hint)


# %% tags=["solution"]
def positions_computed(P, N):
    return sum(range(P, P + N)), P + N - 1


check(3, positions_computed(10, 40), [1180, 49], tolerance=0, hint=hint)

# %% [markdown]
# ## The same weights in Quatrain
#
# Quatrain has no class for GPT-2: it has one stack, and the family `gpt2` says which parts to choose and how its files name them. We write
# our weights as a Hugging Face folder, `config.json` and `model.safetensors`, and read it.

# %%
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from quatrain.evaluation.inspection import choices
from quatrain.loading.model import load_model

folder = Path("from-scratch")
folder.mkdir(exist_ok=True)
facts = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
(folder / "config.json").write_text(json.dumps(facts | vars(config)))
save_file(
    {f"transformer.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()},
    folder / "model.safetensors",
    {"format": "pt"},
)
tokenizer.save(folder)

theirs, _ = load_model(folder)
with torch.no_grad():
    mine, other = model(held_out[:2, :-1]), theirs(held_out[:2, :-1])[0]
print(
    f"logits {tuple(mine.shape)}: at most {float((mine - other).abs().max()):.1e} apart, of values up to {float(mine.abs().max()):.1f}"
)
assert torch.allclose(mine, other, atol=1e-4)
for part, words in choices(theirs.config).items():
    print(f"{part:13} {words}")

# %% [markdown]
# The engine generates with a KV cache, native code and many requests at once. Its greedy text is ours:

# %%
from quatrain.generation.engine import Engine, SamplingParams

engine = Engine.load(folder)
completion = engine.generate([prompt], SamplingParams(max_new_tokens=at_size(40, 5), ignore_eos=True))[0]
assert list(completion.ids) == ours[len(prompt) :]
print(completion.text)

# %% [markdown]
# And back: a GPT-2 that Quatrain makes, read into our 100 lines. OpenAI's own weights are such a folder.

# %%
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

fresh = Model(theirs.config).initialize(seed=1).eval()
model_folder.save(fresh, "from-quatrain")
back = GPT2(config).eval()
tensors = load_file("from-quatrain/model.safetensors")
back.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
with torch.no_grad():
    assert torch.allclose(back(held_out[:2, :-1]), fresh(held_out[:2, :-1])[0], atol=1e-4)
print("equal")

# %% [markdown]
# ### Exercise 4
#
# Quatrain keeps q, k and v apart, in the layout of `nn.Linear`: (outputs, inputs). Cut `layers.0.self_attn.k_proj.weight` out of our first block's fused
# `c_attn.weight`, which is (D, 3 D).

# %%
fused = model.h[0].attn.c_attn.weight.detach()
key_weight = None
wanted = theirs.layers[0].self_attn.k_proj.weight
check(4, key_weight, wanted, hint="keys are the middle third of the columns; then transpose")

# %% tags=["solution"]
key_weight = fused.chunk(3, dim=1)[1].T
check(4, key_weight, wanted, hint="keys are the middle third of the columns; then transpose")

# %% [markdown]
# `quatrain/models/families/gpt2.py` says exactly this, as data: `Split("h.{n}.attn.c_attn.weight", …, transpose=True)`.
#
# ## At size
#
# The recipe `gpt-pretrain` is this lab with 24 novels, packed rows, the Muon optimizer, checkpoints that survive a kill, and a report.
# `shakespeare-char` is the classic one, on characters.
#
# ```sh
# quatrain run gpt-pretrain                                             # 13 million parameters, about ten minutes on two cores
# quatrain generate runs/gpt-pretrain "It is a truth" --temperature 0.7
# quatrain inspect runs/gpt-pretrain                                    # its parts with shapes and counts
# quatrain plan gpt2 --device h100 --tokens 10b                         # what training the real one costs
# ```
#
# For a larger model the sizes change and nothing else: `model.hidden_size=768 model.num_hidden_layers=12 model.num_attention_heads=12` is GPT-2's
# own shape, and `torchrun` with the same recipe uses several GPUs ([scale](../scale.md)). To start from OpenAI's weights, `model.folder=gpt2`
# ([adapt a model](../adaptation.md#from-a-public-model)).
