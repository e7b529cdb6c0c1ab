# ---
# jupyter:
#   quatrain:
#     data: ["british-novels", "gutenberg:1661", "the-verdict"]
#     extras: [plot]
# ---

# %% [markdown]
# # Lab 6: fill-mask and question answering, pre-trained beside fine-tuned
#
# **You learn** what an encoder learns from hidden words; to continue a pre-training on your own text and see what it changes; and to turn the same weights into a model that answers questions with a
# span of a text. Before this: [attention by hand](03-attention.md).
#
# **Where it loses.** An encoder that has read for a minute learns *what kind* of words answer a question, and not *whose*: in this lab it points at one of three people's facts, and is right a third of the time. On real
# questions (SQuAD) the recipe `qa` has an F1 of 12.3 %, below the 16.2 % of *take the sentence that shares most words with the question* ([results](../../benchmarks/RESULTS.md#tasks-from-scratch)). Matching a question
# with a text comes from pre-training on billions of words; the commands at the end take such a model.

# %%
import json
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import quatrain
from quatrain.core.labs import at_size, check
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import loads


def run(text):
    return quatrain.run(loads(text), reporter=SilentReporter())


# %% [markdown]
# ## Hidden words
#
# BERT ([Devlin et al. 2018](https://arxiv.org/abs/1810.04805)) hides some tokens of a text and learns to say which they were. It reads both sides, which a generator cannot. Of the chosen tokens 80 % become
# `[MASK]`, 10 % a random token, and 10 % stay, so that the model must have an opinion about every token.
#
# ### Exercise 1
#
# A text has 1,000 tokens, and `mask_ratio` is 0.3. How many tokens does the loss count, and how many `[MASK]` does the model see?

# %%
counted, masks = None, None
check(1, counted and [counted, masks], [300, 240], hint="0.3 of all are chosen; 80 % of them become [MASK]")

# %% tags=["solution"]
counted = round(0.3 * 1000)
masks = round(0.8 * counted)
check(1, [counted, masks], [300, 240], hint="0.3 of all are chosen; 80 % of them become [MASK]")

# %% [markdown]
# ## Pre-training
#
# A small ModernBERT reads 24 British novels for a minute. The recipe `bert-pretrain` does the same for nine.

# %%
sizes = f"""
family = "modernbert"
hidden_size = {at_size(160, 32)}
num_hidden_layers = {at_size(3, 1)}
num_attention_heads = {at_size(4, 2)}
max_position_embeddings = 128
"""
pretraining = f"""
name = "novels"
[data]
source = "{at_size("british-novels", "the-verdict")}"
validation = 0.02
[tokenizer]
kind = "wordpiece"
vocab_size = {at_size(4096, 300)}
lowercase = true
[model]
{sizes}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
objective = "masked"
mask_ratio = 0.3
train = {{ steps = {at_size(300, 2)}, batch_tokens = {at_size(2048, 512)}, learning_rate = 0.006, optimizer = "muon", schedule = "wsd", warmup_steps = {at_size(20, 0)} }}
"""
novels = run(pretraining).results[-1]
print({name: round(novels[name], 3) for name in novels if name.startswith("validation_")})

# %% [markdown]
# ## Fine-tuning it on one book
#
# The same objective goes on with another text: *The Adventures of Sherlock Holmes*, which is none of the 24. `model.folder` names where to start. (The recipe `domain` does this for any model.)

# %%
more = f"""
name = "holmes"
[data]
source = "{at_size("gutenberg:1661", "the-verdict")}"
validation = 0.1
[model]
folder = "runs/novels/model"
[[stage]]
kind = "pretrain"
objective = "masked"
mask_ratio = 0.3
train = {{ steps = {at_size(100, 2)}, batch_tokens = {at_size(2048, 512)}, learning_rate = 0.002, optimizer = "muon", schedule = "linear", warmup_steps = 0 }}
"""
holmes = run(more).results[-1]
print(
    f"loss on held-out Sherlock: {holmes['validation_loss_before']:.3f} before, {holmes['validation_loss']:.3f} after"
)

# %%
before, after = (quatrain.pipeline("fill-mask", f"runs/{name}/model") for name in ("novels", "holmes"))
sentences = [
    "my dear [MASK] , said sherlock holmes .",
    "he took off his [MASK] and sat down by the fire .",
    "the case is a very [MASK] one .",
]
figure, axes = plt.subplots(2, 3, figsize=(8, 3.4))
for column, sentence in enumerate(sentences):
    for row, (model, name) in enumerate(((before, "pre-trained"), (after, "fine-tuned"))):
        found = model(sentence, top_k=5)
        ax = axes[row, column]
        ax.barh([each["token_str"] for each in found][::-1], [each["score"] for each in found][::-1], color="#2f6fbf")
        ax.set_title(f"{name}: {sentence.replace('[MASK]', '___')[:34]}", fontsize=7)
        ax.tick_params(labelsize=7)
plt.show()

# %% [markdown]
# The novels made a model of English words, if a weak one; the book pulls it towards its own. On text that is neither, the fine-tuned model is now a little worse: that is the price, and a reason to keep a validation
# text of the first kind.
#
# ### Exercise 2
#
# A pipeline's score is a softmax over the vocabulary at the place of the mask. Compute the probability of `token` yourself.

# %%
tokenizer, model = quatrain.Tokenizer.load("runs/holmes/model"), quatrain.load("runs/holmes/model").eval()
best = after(sentences[1], top_k=1)[0]
ids = torch.tensor([tokenizer.encode(sentences[1])])
mask_id = tokenizer.token_to_id("[MASK]")
with torch.no_grad():
    logits = model(ids)[0][0]  # (T, V)
token = best["token"]


def probability(logits, ids, mask_id, token):
    return None


answer = probability(logits, ids[0], mask_id, token)
check(2, answer, best["score"], tolerance=1e-3, hint="the row where ids == mask_id; softmax; the entry of token")


# %% tags=["solution"]
def probability(logits, ids, mask_id, token):
    row = logits[(ids == mask_id).nonzero()[0, 0]]
    return row.softmax(-1)[token].item()


answer = probability(logits, ids[0], mask_id, token)
check(2, answer, best["score"], tolerance=1e-3, hint="the row where ids == mask_id; softmax; the entry of token")

# %% [markdown]
# ## Questions about a text
#
# An extractive model puts two numbers on every token of a text: how likely the answer **starts** there, and how likely it **ends** there. The answer is the span with the largest sum whose end is not before its
# start. Let us generate paragraphs of facts about three people, with questions. The people of the held-out paragraphs are never seen in training.

# %%
draw = random.Random(0)
PEOPLE = "anna bela carl dora emil fanny george helen isaac jane karl laura martin nora oscar paula".split()
STRANGERS = "rosa simon thomas ursula victor walter".split()
FACTS = {
    "lives in": ("where does {} live ?", "london paris dover bath york leeds oxford kent".split()),
    "has a": ("what does {} have ?", "dog cat horse house boat garden gun watch".split()),
    "works as a": ("what is the work of {} ?", "doctor nurse cook lawyer sailor soldier teacher clerk".split()),
}


def paragraph(people):
    chosen = draw.sample(people, 3)
    facts = [(who, verb, draw.choice(FACTS[verb][1])) for who in chosen for verb in FACTS]
    draw.shuffle(facts)
    context = " ".join(f"{who} {verb} {what} ." for who, verb, what in facts)
    who, verb, what = draw.choice(facts)
    start = context.index(f"{who} {verb} {what}") + len(f"{who} {verb} ")
    return {
        "context": context,
        "question": FACTS[verb][0].format(who),
        "answers": {"text": [what], "answer_start": [start]},
    }


for name, people, count in (("train", PEOPLE, at_size(2000, 40)), ("strangers", STRANGERS, at_size(200, 10))):
    rows = [json.dumps(paragraph(people)) for _ in range(count)]
    Path(f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
example = json.loads(rows[0])
print(example["context"], "\n", example["question"], "->", example["answers"]["text"][0])

# %% [markdown]
# Now three models with a head of two numbers: **pre-trained** weights with a fresh head that has learned nothing; **fresh** weights, trained on the questions; and the pre-trained weights, **fine-tuned** on the same
# questions.


# %%
def answering(name, start, steps):
    return f"""
name = "{name}"
[data]
source = "train.jsonl"
test = "strangers.jsonl"
validation = 0.05
{start}
[[stage]]
kind = "finetune"
objective = "answer"
train = {{ steps = {steps}, batch_tokens = {at_size(2048, 512)}, learning_rate = 0.001, schedule = "constant", warmup_steps = {min(steps - 1, at_size(10, 0))}, dropout = 0.1, evaluate_every = {at_size(20, 1)}, keep = "last" }}
[evaluate]
examples = {at_size(200, 4)}
"""


FOLDER = '[model]\nfolder = "runs/novels/model"'
FRESH = f'[tokenizer]\npath = "runs/novels/model/tokenizer.json"\n[model]{sizes}\n[[stage]]\nkind = "tokenizer"'
steps = at_size(160, 2)
results = {
    "pre-trained, fresh head": run(answering("untaught", FOLDER, 1)),
    "fresh weights, trained": run(answering("fresh", FRESH, steps)),
    "pre-trained, fine-tuned": run(answering("taught", FOLDER, steps)),
}
for name, done in results.items():
    (scores,), (baseline,) = done.results[-1]["scores"].values(), done.results[-1]["baselines"].values()
    print(f"{name:26} F1 {scores['f1']:5.1f} %, exact match {scores['exact_match']:5.1f} %")
print(f"{'nearest sentence':26} F1 {baseline['f1']:5.1f} %, exact match {baseline['exact_match']:5.1f} %")

# %% [markdown]
# Both trained models know that *where* asks for a city and *the work of* for a profession, also of people that they have never seen: an F1 of a third is the right kind of fact, of any of the three people. Which of them is
# asked about needs attention that finds the same name in question and text, and that has not formed yet. The minute of pre-training makes no difference beyond chance; it would have to be a thousand times as long.
#
# ## Where the answer starts and ends

# %%
answerer = quatrain.load("runs/taught/model").eval()
text, question = example["context"], example["question"]
pair = tokenizer.encode_pair(question, text).ids
with torch.no_grad():
    start_end = answerer(torch.tensor([pair]))[0][0].softmax(0)  # (T, 2): over the tokens
words = [tokenizer.decode([each]).strip() for each in pair]
figure, ax = plt.subplots(figsize=(8, 2.1))
ax.bar([place - 0.2 for place in range(len(pair))], start_end[:, 0].tolist(), width=0.4, color="#2f6fbf", label="start")
ax.bar([place + 0.2 for place in range(len(pair))], start_end[:, 1].tolist(), width=0.4, color="#e08a1e", label="end")
ax.set_xticks(range(len(pair)), words, rotation=90, fontsize=6)
ax.set_title(f"Where the answer to “{question}” starts and ends")
ax.legend(fontsize=7)
plt.show()
print(quatrain.pipeline("question-answering", "runs/taught/model")({"question": question, "context": text}))

# %% [markdown]
# ### Exercise 3
#
# Write the choice of the span: start and end with the largest sum of logits, start ≤ end, at most `longest` tokens.


# %%
def best_span(start, end, longest):
    return None


start, end = [0.1, 2.0, 0.3, 1.9], [2.5, 0.2, 0.4, 1.0]
found = best_span(start, end, 2)
check(
    3,
    found,
    [3, 3],
    hint="two loops: i over all places, j from i to i + longest - 1; keep the pair with the largest sum",
)


# %% tags=["solution"]
def best_span(start, end, longest):
    pairs = [(i, j) for i in range(len(start)) for j in range(i, min(i + longest, len(end)))]
    return list(max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]]))


check(3, best_span(start, end, 2), [3, 3], hint="two loops, and the largest sum")

# %% [markdown]
# ### Exercise 4
#
# The F1 of an answer counts the words that prediction and truth share. The truth is *a tall white house*, the model says *the white house*. SQuAD drops articles first. What is the F1?

# %%
f1 = None
check(
    4, f1, 0.8, tolerance=0.001, hint="without articles: tall white house, and white house; precision 2/2, recall 2/3"
)

# %% tags=["solution"]
precision, recall = 2 / 2, 2 / 3
f1 = 2 * precision * recall / (precision + recall)
check(4, f1, 0.8, tolerance=0.001, hint="precision 2/2, recall 2/3")

# %% [markdown]
# ## At size
#
# ```sh
# quatrain run bert-pretrain                                    # nine minutes instead of one
# quatrain predict runs/bert-pretrain/model "He took off his [MASK] and sat down."
# quatrain run qa                                               # SQuAD from scratch: it loses, see above
# quatrain run qa name=mine model=none tokenizer=none stage.tokenizer=none stage.pretrain=none model.folder=MODEL
# quatrain predict runs/mine/model '{"question": "Who wrote it?", "context": "Jane Austen wrote it in 1813."}'
# ```
#
# `MODEL` is a folder or a hub id of an encoder that has read billions of words, such as `answerdotai/ModernBERT-base`: the last recipe fine-tunes it on the same 4,000 questions, and what it knows of paraphrases comes with
# it. [Tasks](../tasks.md) has the other heads; [pipelines](../pipelines.md) every option of `fill-mask` and `question-answering`.
