# ---
# jupyter:
#   quatrain:
#     data: ["dialogsum-train", "dialogsum-dev", "dialogsum-test"]
#     extras: [plot, rag, eval]
# ---

# %% [markdown]
# # Lab 7: dialogue summaries by zero, one and few shots
#
# **You learn** to ask a model for something it was not told to do: a prompt without and with an instruction, with one example, with several; what the model reads exactly; how its answers are measured beside a
# baseline; and what the settings of generation change. The data are dialogues with summaries by people, DialogSum. Before this: [decoding](05-decoding.md).
#
# **Where it loses.** Prompting is a skill of large models. The encoder-decoder of this lab has about two million parameters and a few minutes of training: **every word around the dialogue makes its summaries worse, and the
# first three turns of the dialogue, copied, score higher than all of them.** You will measure both. The same commands at the end take a model that can be prompted.

# %%
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

import quatrain
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.data.corpus import DataParts
from quatrain.data.settings import DataSettings
from quatrain.evaluation.prompting import compare
from quatrain.generation.decoding import Decoding
from quatrain.tasks.prompting.prompt import make_prompt, with_settings
from quatrain.tasks.prompting.prompter import Prompter
from quatrain.tasks.prompting.texts import text_task, usable

# %% [markdown]
# ## The dialogues, and a baseline

# %%
data = DataSettings(source="dialogsum-train" if at_size(True, False) else "dialogsum-dev", test="dialogsum-test")
task = text_task(DataParts(data, 0), folder=Path(tempfile.mkdtemp()), limit=at_size(40, 3))
examples = usable(task, next(iter(task.held_out.values())))
pool = usable(task, task.splits["train"])
print(task.question(examples[0])[:400], "…\n")
for reference in task.references(examples[0]):
    print("a person:", reference)
print("baseline:", task.baseline_name, "->", task.baseline(examples[:1])[0][:160])

# %% [markdown]
# **ROUGE-1** counts the words that an answer shares with a reference: precision is the share of the answer's words, recall the share of the reference's, and F1 is their harmonic mean. With several references the best counts.
# It measures words, not truth: a summary with *not* in the wrong place scores the same.
#
# ### Exercise 1
#
# Write ROUGE-1's F1 for two texts (split at spaces; a word counts as often as it occurs in both).


# %%
def rouge_1(answer, reference):
    return None


pair = ("the man buys the red car", "the woman sells the car")
check(1, rouge_1(*pair), 6 / 11, hint="Counter(a) & Counter(b) is what both have: 3 words of 6 and of 5")


# %% tags=["solution"]
def rouge_1(answer, reference):
    answer, reference = Counter(answer.split()), Counter(reference.split())
    shared = sum((answer & reference).values())
    precision, recall = shared / sum(answer.values()), shared / sum(reference.values())
    return 2 * precision * recall / (precision + recall) if shared else 0.0


check(1, rouge_1(*pair), 6 / 11, hint="Counter(a) & Counter(b) is what both have: 3 words of 6 and of 5")

# %% [markdown]
# ## A model
#
# A small BART mends broken dialogues, then learns summaries: the recipe `summarize`, shortened.

# %%
settings = at_size(
    [
        "tokenizer.vocab_size=3072",
        "model.hidden_size=160",
        "model.num_hidden_layers=2",
        "model.intermediate_size=480",
        "stage.pretrain.train.steps=60",
        "stage.pretrain.train.batch_tokens=4096",
        "stage.finetune.train.epochs=none",
        "stage.finetune.train.steps=220",
        "stage.finetune.train.batch_tokens=4096",
        "stage.finetune.train.learning_rate=0.002",
        "stage.finetune.train.evaluate_every=0",
        "stage.finetune.train.keep=last",
        "stage.finetune.train.sample_every=0",
        "evaluate.examples=20",
    ],
    [
        "data.source=dialogsum-dev",
        "data.dev=none",
        "data.validation=0.02",
        "tokenizer.vocab_size=500",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=32",
        *(
            f"stage.{stage}.train.{key}"
            for stage in ("pretrain", "finetune")
            for key in ("steps=2", "batch_tokens=512")
        ),
        *(f"stage.{stage}.train.warmup_steps=0" for stage in ("pretrain", "finetune")),
        "stage.finetune.train.epochs=none",
        "stage.finetune.train.evaluate_every=0",
        "stage.finetune.train.keep=last",
        "stage.finetune.train.sample_every=0",
        "evaluate.examples=2",
        "evaluate.max_new_tokens=4",
    ],
)
run = quatrain.run("summarize", settings, reporter=SilentReporter())
engine = quatrain.Engine.load("runs/summarize/model")
for name, scores in run.results[-1]["scores"].items():
    print(name, {key: round(value, 3) for key, value in scores.items()})

# %% [markdown]
# ## What the model reads
#
# A **template** says how an example becomes text, a **shot** is an example with its answer. No shots: zero-shot. Nothing is hidden: the preview shows every character and counts the tokens.

# %%
prompts = {
    "the dialogue alone": make_prompt("dialogue-summary", "none"),
    "zero-shot": make_prompt("dialogue-summary", "instruction"),
    "one-shot": make_prompt("dialogue-summary", "instruction", shots=1),
    "few-shot (3)": make_prompt("dialogue-summary", "instruction", shots=3),
    "one-shot, by BM25": make_prompt("dialogue-summary", "instruction", shots=1, selection="bm25"),
}
short = Decoding(max_new_tokens=at_size(40, 3))
prompts = {name: with_settings(prompt, decoding=short) for name, prompt in prompts.items()}
example = min(examples, key=lambda each: len(task.question(each)))
for name in ("zero-shot", "one-shot"):
    preview = Prompter(engine, task, prompts[name], pool).preview(example)
    print(f"--- {name}: {preview.tokens} tokens, {[part for part, _ in preview.parts]}\n{preview.text[-420:]}\n")

# %% [markdown]
# ### Exercise 2
#
# A prompt must fit. A dialogue has 190 tokens, its summary 35, the instruction 10, and the context has 384. How many shots of this size fit beside the question, in an encoder that reads the prompt alone?

# %%
shots = None
check(2, shots, 0, tolerance=0, hint="instruction 10 + question 190 = 200; a shot has 190 + 35 = 225")

# %% tags=["solution"]
shots = (384 - 10 - 190) // (190 + 35)
check(2, shots, 0, tolerance=0, hint="instruction 10 + question 190 = 200; a shot has 190 + 35 = 225")

# %% [markdown]
# The guard leaves shots out that do not fit, and says so; nothing is cut in the middle. In the table below, *shots read* is what was left.
#
# ## Zero, one, few

# %%
table = compare(engine, task, "test", list(prompts.values()), examples, pool)
baseline = table.baseline["rouge1"]
print(f"{'baseline: ' + table.baseline_name:36} ROUGE-1 {baseline:.3f}")
for name, result in zip(prompts, table.results):
    print(f"{name:36} ROUGE-1 {result.main:.3f} ({result.low:.3f} to {result.high:.3f}), {result.shots:.2f} shots read")
figure, ax = plt.subplots(figsize=(6, 2.2))
values = [result.main for result in table.results]
bars = [[max(0, value - result.low) for value, result in zip(values, table.results)]]
bars += [[max(0, result.high - value) for value, result in zip(values, table.results)]]
ax.bar(list(prompts), values, yerr=bars, color="#2f6fbf", capsize=3, width=0.6)
ax.axhline(baseline, color="#e08a1e", linestyle="--", label=f"baseline: {table.baseline_name}")
ax.set(title="Summaries by the prompt", ylabel="ROUGE-1")
ax.tick_params(axis="x", labelsize=7)
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# The bars are 95 % intervals over the dialogues: two prompts whose intervals overlap much are not different yet. Side by side on one dialogue:

# %%
print("a person:", task.reference(examples[1]))
for name, result in zip(prompts, table.results):
    print(f"{name}: {result.texts[1].strip()}")

# %% [markdown]
# ### Exercise 3
#
# The interval of a mean over n dialogues is about ± 1.96 s / √n, with the standard deviation s. With s = 0.12, how many dialogues do you need to see a difference of 0.02, that is an interval of ± 0.01?

# %%
n = None
check(3, n, 553, tolerance=0.01, hint="n = (1.96 · 0.12 / 0.01)^2")

# %% tags=["solution"]
n = (1.96 * 0.12 / 0.01) ** 2
check(3, n, 553, tolerance=0.01, hint="n = (1.96 · 0.12 / 0.01)^2")

# %% [markdown]
# ## Settings of generation
#
# The same prompt, other choices: at most 10 tokens, and temperatures.

# %%
ways = {
    "greedy, 40 tokens": Decoding(max_new_tokens=at_size(40, 3)),
    "greedy, 10 tokens": Decoding(max_new_tokens=at_size(10, 2)),
    "temperature 0.5": Decoding(max_new_tokens=at_size(40, 3), temperature=0.5),
    "temperature 1.0": Decoding(max_new_tokens=at_size(40, 3), temperature=1.0),
}
varied = [with_settings(prompts["the dialogue alone"], decoding=way) for way in ways.values()]
settings_table = compare(engine, task, "test", varied, examples)
figure, ax = plt.subplots(figsize=(5, 2))
for place, metric in enumerate(("rouge1", "rouge2", "rougeL")):
    heights = [result.scores[metric] for result in settings_table.results]
    ax.bar([number + 0.27 * place for number in range(4)], heights, width=0.25, label=metric)
ax.set_xticks([number + 0.27 for number in range(4)], list(ways), fontsize=7)
ax.set(title="One prompt, four ways to generate")
ax.legend(fontsize=7, ncols=3)
plt.show()

# %% [markdown]
# **Greedy is not the best here**: a model that has learned little falls into loops ("new new new"), and some randomness breaks them. A temperature of 1 loses again. The model of the full recipe does not loop: its greedy
# summaries have 0.381, at temperature 0.5 0.361 and at 1.0 0.298. Ten tokens are few for a summary, but for a model that knows one phrase they cost nothing.

# %% [markdown]
# ## At size
#
# In another folder, since the short runs of this lab have the same names:
#
# <!-- not run: downloads a model: google/ -->
# ```sh
# quatrain run summarize                                        # the model of 6.5 million parameters: 16 minutes
# quatrain run dialogue-prompting                               # all prompts and settings, 250 dialogues; a report side by side
# quatrain prompt preview runs/summarize/model dialogsum-test --pool dialogsum-train --templates dialogue-summary --template instruction --shots 1
# quatrain prompt compare google/flan-t5-base dialogsum-test --pool dialogsum-train --templates dialogue-summary --shots 0 --shots 1
# quatrain run dialogue-prompting name=large model.folder=none model.endpoint=http://localhost:8000/v1#NAME
# ```
#
# FLAN-T5 has been tuned on 1,800 tasks with instructions: zero-shot it does what this lab's model cannot, and one shot shows it the form. With a chat model the shots become turns. [Prompting](../prompting.md) has
# chain of thought, self-consistency and a search over prompts, [the results](../../benchmarks/RESULTS.md#prompting) what was measured.
