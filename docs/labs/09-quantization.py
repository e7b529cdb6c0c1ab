# ---
# jupyter:
#   quatrain:
#     data: []
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 9: quantization by hand, to QLoRA
#
# **You learn** to store a weight in 8 bits and in 4, and what each loses; why weights share scales in groups; where the 16 values of NF4 come from; and to
# finetune a model whose weights are in 4 bits: QLoRA, on questions to a database. Before this: [LoRA by hand](08-lora.md), and
# [numbers by hand](../numbers.md) for the bits of float32, bfloat16 and FP8. All data is generated.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from quatrain.core.labs import at_size, check

torch.manual_seed(0)
torch.set_printoptions(precision=4, sci_mode=False)

# %% [markdown]
# ## Eight bits
#
# An integer of 8 bits has the values -127 to 127. A **scale** s maps them to numbers; for weights, which are symmetric around 0, one number is enough:
#
# $$s = \frac{\max_i |w_i|}{127}, \qquad q_i = \operatorname{round}(w_i / s), \qquad \hat w_i = s\, q_i$$
#
# ### Exercise 1
#
# Quantize the four weights by hand: give the scale and the four integers.

# %%
weights = torch.tensor([0.3175, -1.27, 0.022, 0.9])
scale, codes = None, None
hint = "the largest magnitude is 1.27, so the scale is 1.27 / 127; divide each weight by it, and round to the nearest integer"
check(1, scale and [scale, *codes], [0.01, 32, -127, 2, 90], hint=hint, tolerance=1e-3)

# %% tags=["solution"]
scale = float(weights.abs().max() / 127)  # 0.01
codes = torch.round(weights / scale).tolist()  # 31.75, -127, 2.2 and 90 are rounded
check(1, [scale, *codes], [0.01, 32, -127, 2, 90], hint=hint, tolerance=1e-3)


# %%
def absmax(values, bits):
    """Values that are rounded to integers of so many bits with one scale."""
    top = 2 ** (bits - 1) - 1
    scale = values.abs().max() / top
    return torch.round(values / scale) * scale


print(weights, "->", absmax(weights, 8), "->", absmax(weights, 4))

# %% [markdown]
# ## Outliers, and groups
#
# One large value makes the scale large for all. So weights share a scale only in **groups**: a row of the matrix (int8), or 32 to 128 weights of a row
# (int4). Each group costs the bits of its scale: 16 bits for 64 weights are 0.25 bits a weight.


# %%
def grouped(values, bits, group):
    """absmax for each `group` values in a row."""
    return torch.cat([absmax(part, bits) for part in values.flatten().split(group)]).view_as(values)


normal = torch.randn(64, 256) * 0.02
outlier = normal.clone()
outlier[0, 0] = 1.0
groups = [16, 32, 64, 128, 256, 16384]


def error(values, approximation):
    """The root of the mean squared error, in units of the spread of the normal weights."""
    return float((values - approximation).pow(2).mean().sqrt() / 0.02)


figure, ax = plt.subplots(figsize=(4.8, 2.3))
for values, name, color in ((normal, "normal weights", "#2f6fbf"), (outlier, "with one outlier", "#e08a1e")):
    ax.plot(
        groups,
        [error(values, grouped(values, 4, group)) for group in groups],
        "o-",
        label=name,
        color=color,
        markersize=3,
    )
ax.set(
    title="Error of 4 bits: the outlier spoils its whole group",
    xlabel="weights that share a scale",
    xscale="log",
    ylim=0,
)
ax.legend()
plt.show()

# %% [markdown]
# ## NF4: values where the weights are
#
# Weights are close to normal: most are small. Equal steps waste codes on large values that hardly occur. NF4
# ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)) puts its 16 values at **quantiles** of the normal distribution, so that each is used about equally
# often, with an exact 0, scaled to [-1, 1]. They need no training:

# %%
inverse = torch.distributions.Normal(0.0, 1.0).icdf
offset = 0.5 * (1 - 1 / 32 + 1 - 1 / 30)  # the outermost quantile, between those of 8 and of 7 values
positive = inverse(torch.linspace(offset, 0.5, 9)[:-1])  # 8 values above 0
negative = -inverse(torch.linspace(offset, 0.5, 8)[:-1])  # 7 below
code = torch.cat((negative, torch.zeros(1), positive)).sort().values
code = code / code.max()

from quatrain.compression.nf4 import CODE

print(code)
assert torch.allclose(code, torch.tensor(CODE), atol=1e-4)  # those of the paper and of bitsandbytes

# %%
figure, ax = plt.subplots(figsize=(5.5, 2.2))
x = torch.linspace(-3, 3, 200)
ax.fill_between(x, torch.exp(-(x**2) / 2), color="#c8ccd2", label="weights of a block, spread 1")
largest = 2.4  # of 64 normal numbers, on average
ax.vlines(code * largest, 0, 1, color="#2f6fbf", linewidth=1.2, label="NF4")
ax.vlines(torch.arange(-7, 8) / 7 * largest, -0.25, -0.03, color="#e08a1e", linewidth=1.2, label="int4")
ax.set(title="The values that 4 bits can mean", yticks=[], xlim=(-3, 4.6))
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ### Exercise 2
#
# Write NF4: for each block of 64 values the scale is the largest magnitude, and each value becomes the nearest of the 16 values times the scale.
# Also give the codes, the numbers of those values (0 to 15).


# %%
def nf4(values):
    """Values (N) with N a multiple of 64: (the values that remain, codes), both (N)."""
    return None, None


blocks = torch.randn(256) * 0.02
nearest = (
    (blocks.view(-1, 64)[..., None] / blocks.view(-1, 64).abs().amax(1)[:, None, None] - torch.tensor(CODE))
    .abs()
    .argmin(-1)
)
hint = "divide by the scale, subtract the 16 values from each (broadcast a new last axis), take argmin of the magnitude"
check(2, nf4(blocks)[1], nearest.flatten(), hint=hint)


# %% tags=["solution"]
def nf4(values):
    scales = values.view(-1, 64).abs().amax(dim=1, keepdim=True)
    codes = (values.view(-1, 64, 1) / scales[..., None] - code).abs().argmin(dim=-1)
    return (code[codes] * scales).flatten(), codes.flatten()


check(2, nf4(blocks)[1], nearest.flatten(), hint=hint)
print(
    f"error of int4 in blocks of 64: {error(blocks, grouped(blocks, 4, 64)):.3f}, of NF4: {error(blocks, nf4(blocks)[0]):.3f} spreads"
)

# %% [markdown]
# ### Exercise 3
#
# NF4 has 4 bits for a weight, and a scale of 32 bits for each 64 weights. **Double quantization** stores those scales in 8 bits, with one float32 for each 256
# of them. How many bits is a weight without it and with it?

# %%
plain, double = None, None
hint = "4 + 32 / 64, and 4 + 8 / 64 + 32 / (64 · 256)"
check(3, plain and [plain, double], [4.5, 4.127], tolerance=1e-3, hint=hint)

# %% tags=["solution"]
plain, double = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
check(3, [plain, double], [4.5, 4.127], tolerance=1e-3, hint=hint)

# %% [markdown]
# ## On a model
#
# A small Llama reads questions to a shop's database and their SQL, for a minute or two. It is the base of the rest.

# %%
import quatrain
from quatrain.core.progress import SilentReporter
from quatrain.loading.model import load_model
from quatrain.runs.recipe import loads

recipe = f"""
name = "sql-base"
[tokenizer]
kind = "bpe"
vocab_size = {at_size(1024, 600)}
spaces = "free"
[data]
database = "shop"
examples = {at_size(20000, 200)}
[model]
family = "llama"
hidden_size = {at_size(192, 64)}
num_hidden_layers = {at_size(3, 1)}
num_attention_heads = {at_size(4, 2)}
intermediate_size = {at_size(512, 64)}
max_position_embeddings = 256
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
rows = "documents"
data = {{ database = "shop", examples = {at_size(20000, 200)}, answers = true }}
evaluate = false
train = {{ steps = {at_size(900, 2)}, batch_tokens = {at_size(2048, 256)}, learning_rate = 0.0045, optimizer = "muon", schedule = "wsd", decay_ratio = 0.3, warmup_steps = {at_size(20, 0)} }}
"""
quatrain.run(loads(recipe), reporter=SilentReporter())
base, tokenizer = load_model("runs/sql-base/model")
print(f"{sum(p.numel() for p in base.parameters()):,} parameters")

# %%
from quatrain.tasks.text2sql import Text2SQL

task = Text2SQL.build("runs/sql-base/shop.sqlite", seed=1, examples=300)
documents = list(task.documents(answers=True))[: at_size(200, 8)]
texts = [[tokenizer.eos_id, *tokenizer.encode(text)[:127]] for text in documents]  # as it read them: after an end


@torch.no_grad()
def loss(model):
    """Nats a token, on texts of the same kind from another seed."""
    total = count = 0
    for ids in texts:
        ids = torch.tensor([ids])
        each = model(ids[:, :-1], ids[:, 1:])[1]
        total, count = total + float(each.sum()), count + each.numel()
    return total / count


from quatrain.compression import methods

results = {}
reference = loss(base.eval())
for method, options in {"float32": {}, "int8": {}, "int4, group 64": {"group": 64}, "nf4": {}}.items():
    model, _ = load_model("runs/sql-base/model")
    if method != "float32":
        methods.quantize(model.eval(), method.split(",")[0], **options)
    linear = sum(m.in_features * m.out_features for m in base.layers.modules() if isinstance(m, nn.Linear))
    size = methods.weight_bytes(model.layers)
    results[method] = (8 * size / linear, loss(model.eval()))
    print(
        f"{method:15} {results[method][0]:5.2f} bits a weight   loss {results[method][1]:.4f} ({results[method][1] - reference:+.4f})"
    )

# %% [markdown]
# Four bits cost nothing that this text can measure: a hundredth of a nat more or less is noise. And by hand, with two and three bits too: where does it break?

# %%
by_hand = {}
for bits in (2, 3, 4, 5, 6, 8):
    model, _ = load_model("runs/sql-base/model")
    with torch.no_grad():
        for layer in model.layers.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(grouped(layer.weight, bits, 64))
    by_hand[bits] = loss(model.eval())
figure, ax = plt.subplots(figsize=(4.8, 2.2))
ax.plot(list(by_hand), list(by_hand.values()), "o-", color="#2f6fbf", markersize=3, label="integers, groups of 64")
ax.plot([4], [results["nf4"][1]], "s", color="#e08a1e", label="NF4")
ax.axhline(reference, color="#c8ccd2", linestyle="--", label="float32")
ax.set(title="Loss by bits of a weight", xlabel="bits", ylabel="nats a token", yscale="log")
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## QLoRA
#
# A base in 4 bits cannot learn: its codes have no gradient. A LoRA beside it can, and the gradient flows through the weights that are dequantized for the product:
#
# $$y = \operatorname{dequantize}(W_{\mathrm{NF4}})\, x + \frac{\alpha}{r} B A x$$
#
# Adapters and quantized layers both replace layers, so they compose; QLoRA needs no code of its own. The base knows questions and SQL as plain text. The adapter teaches it
# the form of a chat: the user asks, the assistant answers with SQL and stops.

# %%
from quatrain.adapters.apply import apply_adapter, count_trainable_parameters
from quatrain.adapters.settings import AdapterSettings

model, _ = load_model("runs/sql-base/model", quantize="nf4")
apply_adapter(model, AdapterSettings(rank=16))
print(type(model.layers[0].self_attn.q_proj).__name__, "over", type(model.layers[0].self_attn.q_proj.base).__name__)
print("trainable {:,} of {:,} ({:.1f} %)".format(*count_trainable_parameters(model)))

recipe = f"""
name = "qlora"
[data]
database = "shop"
examples = {at_size(20000, 200)}
[model]
folder = "runs/sql-base/model"
[tokenizer]
chat_template = "chatml"
[[stage]]
kind = "finetune"
adapter = {{ method = "lora", rank = 16, alpha = 32, quantize_base = "nf4" }}
train = {{ steps = {at_size(300, 2)}, batch_tokens = {at_size(2048, 256)}, learning_rate = 0.003, schedule = "linear", warmup_steps = {at_size(20, 0)} }}
[evaluate]
examples = {at_size(60, 2)}
"""
run = quatrain.run(loads(recipe), reporter=SilentReporter())
result = run.results[-1]
for name, scores in result["scores"].items():
    metric, value = next(iter(scores.items()))
    print(f"{name:37} {100 * value:5.1f} %  {metric.replace('_', ' ')}")

# %% [markdown]
# An answer is right if its SQL returns the right rows from the database.
#
# ### Exercise 4
#
# A model of 7 billion weights: how many GB (10⁹ bytes) do the weights take for full finetuning with AdamW in bfloat16 with float32 masters (2 bytes weight, 2 gradient, 12
# masters and states), and for QLoRA, at 4.127 bits a weight with 40 million LoRA parameters of 16 bytes each? Activations come on top of both.

# %%
full, qlora = None, None
hint = "7e9 · 16 bytes; 7e9 · 4.127 / 8 + 40e6 · 16 bytes"
check(4, full and [full, qlora], [112, 4.25], tolerance=0.01, hint=hint)

# %% tags=["solution"]
full, qlora = 7 * 16, 7 * 4.127 / 8 + 0.040 * 16
check(4, [full, qlora], [112, 4.25], tolerance=0.01, hint=hint)

# %% [markdown]
# ## At size
#
# <!-- not run: downloads a model: meta-llama/ -->
# ```sh
# quatrain run quickstart                                        # text to SQL from nothing, and in int8
# quatrain chat runs/quickstart/model --db runs/quickstart/shop.sqlite
# quatrain quantize runs/quickstart --method int8 --method int4  # sizes, perplexity and speed in one table
# quatrain plan meta-llama/Llama-3.2-1B --method qlora --batch-tokens 2048 --optimizer adamw8bit
# ```
#
# `sql-finetune` trains on the questions of Spider and GeoQuery. With a large model in place of a small one, the adapter of this lab is the same line:
# `model.folder=meta-llama/Llama-3.2-1B` and `adapter = { method = "lora", quantize_base = "nf4" }` ([QLoRA](../adaptation.md#qlora-lora-over-four-bits)).
# [Quantize](../compression.md) has calibration (GPTQ, AWQ), FP8, and the speed of each format.
