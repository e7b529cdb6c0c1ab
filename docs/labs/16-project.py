# ---
# jupyter:
#   quatrain:
#     data: []
#     extras: [plot, serve, export]
# ---

# %% [markdown]
# # Lab 16: the life of a project
#
# **You learn** to take a language model from a question to a service: scope, choose, prompt, fine-tune, align, shrink, export, evaluate, serve. At each step a **gate**: a number that must be reached before the next
# step costs anything. At the end a bill. The data are generated; nothing is downloaded. Before this: any lab that trains.
#
# **What it does not reach.** The model knows one database, answers some questions wrong, and is worse than the dumb baseline at refusing (the baseline refuses everything). A project has to say such things before it ships.
#
# ```text
# scope ─► select ─► adapt: prompt? ─► fine-tune ─► align ─► shrink, export ─► evaluate ─► serve
#   │        │            │                │          │            │              │          │
#  gate     gate         gate             gate       gate         gate           gate       gate
# ```

# %%
import math

import matplotlib.pyplot as plt

import quatrain
from quatrain.core.errors import QuatrainError
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.planning import counts
from quatrain.runs.recipe import load
from quatrain.runs.runner import gate_outcomes
from quatrain.runs.summary import bill_table

# %% [markdown]
# ## Scope
#
# What goes in, what comes out, and how is a right answer recognized? Here: a question in English about a shop's database goes in, SQL comes out, and an answer is right if its rows are. The dumb baseline is *always
# refuse*. The recipe `project` is the whole project in one file; some settings make it shorter here.

# %%
settings = at_size(
    [
        "data.examples=6000",
        "evaluate.examples=25",
        "stage.pretrain.train.steps=60",
        "stage.finetune.train.steps=300",
        "stage.dpo.prompts=60",
        "stage.dpo.train.steps=10",
    ],
    [
        "data.examples=60",
        "model.hidden_size=32",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=64",
        "stage.pretrain.train.steps=2",
        "stage.pretrain.train.batch_tokens=512",
        "stage.finetune.train.steps=2",
        "stage.finetune.train.batch_tokens=512",
        *(f"stage.{kind}=none" for kind in ("plan", "prompting", "dpo", "evaluate", "serve")),
        "evaluate.examples=2",
        "evaluate.max_new_tokens=4",
        *(f"stage.{number}.gates=[]" for number in range(6)),
    ],
)
recipe = load("project", settings)
for stage in recipe.stage:
    for gate in stage.gates:
        limit = gate.model_dump(exclude_none=True, exclude={"metric", "set"})
        print(f"{stage.kind:10} {gate.metric:20} {gate.set or '':24} {limit}")

# %% [markdown]
# ### Exercise 1
#
# How many questions must be held out? A share p measured on n questions has a 95 % interval of about ± 1.96 √(p (1 − p) / n). For p = 0.8, how many make it ± 0.05?

# %%
n = None
check(1, n, 246, tolerance=0.005, hint="n = p (1 - p) (1.96 / 0.05)^2, rounded up")

# %% tags=["solution"]
n = math.ceil(0.8 * 0.2 * (1.96 / 0.05) ** 2)
check(1, n, 246, tolerance=0.005, hint="n = p (1 - p) (1.96 / 0.05)^2, rounded up")

# %% [markdown]
# ## Select
#
# Which model can you afford? Count before you build. FLOPs of training are about 6 N D, with N parameters and D tokens; memory with AdamW in float32 is 16 bytes a parameter, and what the activations need.

# %%
names, parameters_of, flops = [], [], []
for width in (96, 192, 384, 768):
    config = recipe.model.model_copy(update={"hidden_size": width, "intermediate_size": 3 * width}).config(1024)
    names.append(f"{width} wide")
    parameters_of.append(counts.parameters(config))
    flops.append(counts.training_flops_per_token(config, 256) * 800 * 2048)
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.2))
left.bar(names, [16 * each / 1e6 for each in parameters_of], color="#2f6fbf")
left.set(title="Weights, gradients and AdamW's states", ylabel="MB", yscale="log")
right.bar(names, [each / 30e9 / 60 for each in flops], color="#2f6fbf")
right.axhline(10, color="#e08a1e", linestyle="--", label="the budget")
right.set(title="Fine-tuning at 30 GFLOP/s", ylabel="minutes", yscale="log")
right.legend(fontsize=7)
plt.show()
for name, parameters, each in zip(names, parameters_of, flops):
    print(f"{name}: {parameters:,} parameters, {each:.2e} FLOPs")

# %% [markdown]
# ### Exercise 2
#
# The fine-tuning of the recipe reads 800 steps of 2,048 tokens, with a model of 1.6 million parameters. How many seconds does it take at 30 GFLOP/s, by 6 N D?

# %%
seconds = None
check(2, seconds, 6 * 1.6e6 * 800 * 2048 / 30e9, tolerance=0.01, hint="6 · 1.6e6 · (800 · 2048) / 30e9")

# %% tags=["solution"]
seconds = 6 * 1.6e6 * (800 * 2048) / 30e9
check(2, seconds, 6 * 1.6e6 * 800 * 2048 / 30e9, tolerance=0.01, hint="6 · 1.6e6 · (800 · 2048) / 30e9")
print(f"{seconds:.0f} s")

# %% [markdown]
# ## Run it
#
# One call runs all stages. Had a gate failed, the run would stop there, say which number was missing, and keep what is finished. (Times are by
# the clock, on one core.)

# %%
run = quatrain.run(recipe, reporter=SilentReporter())
columns, rows = bill_table(run.results, gate_outcomes(recipe, run.results))
for row in rows:
    print(f"{row[0]:15} {row[1]:>11} {row[2]:>9} {row[3]:>10}  {row[5][:74]}")

# %%
stages = [stage.kind for stage in recipe.stage]
seconds_of = [result["seconds"] for result in run.results]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
left.barh(stages[::-1], seconds_of[::-1], color="#2f6fbf")
left.set(title="Where the time goes", xlabel="seconds")
sets = {"generated: new values": "#2f6fbf", "questions by people": "#7aa6d8"}
for set_name, color in sets.items():
    scored = [
        (kind, result["scores"][set_name])
        for kind, result in zip(stages, run.results)
        if set_name in (result.get("scores") or {})
    ]
    values = [(kind, scores["execution_accuracy"]) for kind, scores in scored if "execution_accuracy" in scores]
    if values:
        right.plot(*zip(*values), "o-", markersize=3, color=color, label=set_name)
right.set(title="Right answers, stage by stage", ylim=(-0.05, 1.05))
right.tick_params(axis="x", labelsize=7, rotation=30)
right.legend(fontsize=7)
plt.show()

# %% [markdown]
# The prompt alone answers nothing: that gate is passed *because* it fails, and says that fine-tuning is worth its cost. Fine-tuning is most of the bill. DPO may not make anything worse, and the int8 model that ships is
# measured again: what you measured before it was rounded is another model.
#
# ### Exercise 3
#
# A gate can lie. The dumb baseline scores 0 % on the questions and 100 % on those to refuse. A model scores 79 % and 83 %. What is its gain **over the baseline** on each set?

# %%
gains = None
check(3, gains, [0.79, -0.17], tolerance=1e-6, hint="the model's score minus the baseline's, for both sets")

# %% tags=["solution"]
gains = [0.79 - 0.0, 0.83 - 1.0]
check(3, gains, [0.79, -0.17], tolerance=1e-6, hint="the model's score minus the baseline's, for both sets")

# %% [markdown]
# ## A gate that stops
#
# Ask more than the model has: the run stops at that stage. Nothing that is finished runs again, since gates are no part of what a stage depends on.

# %%
stage = stages.index("quantize")
stricter = load("project", [*settings, f'stage.{stage}.gates=[{{ metric = "model_bytes", at_most = 1000 }}]'])
try:
    quatrain.run(stricter, reporter=SilentReporter())
except QuatrainError as error:
    print(error)

# %% [markdown]
# ## The bill
#
# ### Exercise 4
#
# A core draws about 3.5 W while it computes. The training of a model takes 6 minutes on two cores, on a grid of 400 g of CO₂ per kWh. How many Wh, and how many grams?

# %%
wh, grams = None, None
check(4, wh and [wh, grams], [0.7, 0.28], tolerance=1e-3, hint="3.5 W · 2 · 0.1 h; then / 1000 · 400")

# %% tags=["solution"]
wh = 3.5 * 2 * 6 / 60
grams = wh / 1000 * 400
check(4, [wh, grams], [0.7, 0.28], tolerance=1e-3, hint="3.5 W · 2 · 0.1 h; then / 1000 · 400")

# %% [markdown]
# ## At size
#
# In another folder, since the short runs of this lab have the same names:
#
# ```sh
# quatrain check project                                        # what it will train on, its memory and its time
# quatrain run project                                          # seven minutes: 79 % of the questions by people
# quatrain run project name=mine data.database=my.sqlite        # your own database, the same gates
# quatrain serve runs/project/model --db runs/project/shop.sqlite
# quatrain plan llama-3.1-8b --device a100 --devices 8 --zero 3 --tokens 1b --days 2
# ```
#
# A large model has the same life with other numbers: the gate of `prompting` may then be passed by the prompt alone, which ends the project early and cheaply; `model.folder=MODEL` with an adapter takes the place of
# pre-training. [The life of a project](../plan.md#the-life-of-a-project) has the gates of the recipe, [gates](../recipes.md#gates) how to write your own.
