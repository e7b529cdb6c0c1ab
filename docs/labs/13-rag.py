# ---
# jupyter:
#   quatrain:
#     data: ["medquad"]
#     extras: [plot, classic, rag]
# ---

# %% [markdown]
# # Lab 13: retrieval-augmented generation
#
# **You learn** to answer from documents: BM25 by hand, an index, vectors beside words, how to measure a ranking, answers whose citations are checked, and when to say
# "Not in the documents." The documents are MedQuAD: medical questions with answers from public health institutes.
#
# A language model knows what its training showed, and does not know what it does not know. Retrieval gives it the passages that a question needs, and the reader
# something to check.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from quatrain.core.labs import at_size, check
from quatrain.evaluation.retrieval import measure_ranking, topic_sets
from quatrain.retrieval.answer import extract
from quatrain.retrieval.building import build_index
from quatrain.retrieval.index import Index
from quatrain.retrieval.settings import IndexSettings

# %% [markdown]
# ## BM25 by hand
#
# A rare word of the question says more than a frequent one; the tenth occurrence says less than the first; a long document has every word by chance. BM25
# ([Robertson & Zaragoza 2009](https://doi.org/10.1561/1500000019)) puts that into a formula:
#
# $$\sum_{w \in q} \underbrace{\log\left(1 + \frac{N - n_w + 0.5}{n_w + 0.5}\right)}_{\text{rare words}} \cdot
# \underbrace{\frac{f_w\,(k_1 + 1)}{f_w + k_1 (1 - b + b\, \ell / \bar\ell)}}_{\text{saturates, and divides by length}}$$
#
# with N documents, $n_w$ of them with the word, its count $f_w$ in the document of length $\ell$, $k_1 = 1.5$ and $b = 0.75$. (The factor $k_1 + 1$ is the same for all documents.)

# %%
f = np.linspace(0, 15, 100)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.2))
for length, color in ((0.5, "#2f6fbf"), (1, "#7aa6d8"), (3, "#c8ccd2")):
    left.plot(f, f * 2.5 / (f + 1.5 * (0.25 + 0.75 * length)), color=color, label=f"{length:g} mean lengths")
left.set(title="A word counts less each time", xlabel="occurrences")
left.legend(fontsize=7)
n = np.arange(1, 1000)
right.plot(n, np.log(1 + (1000 - n + 0.5) / (n + 0.5)), color="#2f6fbf")
right.set(title="A rare word counts more", xlabel="documents of 1,000 that have it", xscale="log")
plt.show()

# %% [markdown]
# ### Exercise 1
#
# Write the score of one word.


# %%
def bm25(f, n, N, length, mean, k1=1.5, b=0.75):
    """f occurrences in a document of `length` words (mean `mean`); n of N documents have the word."""
    return None


answers = [bm25(2, 3, 10, 5, 5), bm25(1, 1, 10, 10, 5)]
wanted = [math.log(1 + 7.5 / 3.5) * 2 * 2.5 / (2 + 1.5), math.log(1 + 9.5 / 1.5) * 2.5 / (1 + 1.5 * (0.25 + 1.5))]
check(1, answers[0] and answers, wanted, hint="math.log(1 + (N - n + 0.5) / (n + 0.5)) times the second fraction")


# %% tags=["solution"]
def bm25(f, n, N, length, mean, k1=1.5, b=0.75):
    weight = math.log(1 + (N - n + 0.5) / (n + 0.5))
    return weight * f * (k1 + 1) / (f + k1 * (1 - b + b * length / mean))


check(1, [bm25(2, 3, 10, 5, 5), bm25(1, 1, 10, 10, 5)], wanted, hint="the two factors of the formula")

# %% [markdown]
# ## An index
#
# `topic_sets` writes the answers as documents, and leaves out a fifth of the topics: their questions have no answer here. The index has BM25 over chunks, and `lsa`: vectors
# from the documents themselves. A model of sentence embeddings would be a third line in `dense`.

# %%
Path("work").mkdir(exist_ok=True)
sets = topic_sets("medquad", Path("work"), limit=at_size(150, 8))
if at_size(False, True):  # a few documents, for a quick run
    lines = sets.documents.read_text(encoding="utf-8").splitlines(keepends=True)
    sets.documents.write_text("".join(lines[::10]), encoding="utf-8")
report = build_index(sets.documents, "index", IndexSettings(dense=("lsa",)))
index = Index.open("index")
print(f"{report.counts.documents:,} documents in {report.counts.chunks:,} chunks")
question = sets.answerable[3].text
print(question)
for hit in index.search(question, k=3):
    print(f"  {hit.score:6.3f}  {hit.title}: {hit.text[:90]}…")

# %% [markdown]
# ## Does it find the right one?
#
# Each question's own answer is the document to find. **Recall@k** is the share of questions whose document is among the first k; **MRR** the mean of 1 / its place; **nDCG@10** counts a
# place less the lower it is.
#
# ### Exercise 2
#
# Five questions found their document at places 1, 3, 2, not at all, 1. What are the MRR and the recall@2?

# %%
mrr, recall_2 = None, None
check(
    2,
    mrr and [mrr, recall_2],
    [(1 + 1 / 3 + 1 / 2 + 0 + 1) / 5, 3 / 5],
    hint="1/place, 0 if it was not found; and how many are at 1 or 2",
)

# %% tags=["solution"]
places = [1, 3, 2, None, 1]
mrr = sum(1 / place for place in places if place) / 5
recall_2 = sum(place is not None and place <= 2 for place in places) / 5
check(2, [mrr, recall_2], [(1 + 1 / 3 + 1 / 2 + 0 + 1) / 5, 3 / 5], hint="1/place, 0 if it was not found")

# %%
rankings = {name: measure_ranking(index, sets.answerable, retriever=name) for name in ("bm25", "dense", "hybrid")}
for name, measures in rankings.items():
    print(f"{name:7}", "  ".join(f"{measure} {value:.3f}" for measure, value in measures.items()))
figure, ax = plt.subplots(figsize=(5, 2))
for offset, (name, color) in enumerate(zip(rankings, ("#c8ccd2", "#7aa6d8", "#2f6fbf"))):
    values = [rankings[name][measure] for measure in ("ndcg_10", "mrr", "recall_10")]
    ax.bar([place + 0.27 * offset for place in range(3)], values, width=0.25, color=color, label=name)
ax.set_xticks([0.27, 1.27, 2.27], ["nDCG@10", "MRR", "recall@10"])
ax.set(title="Words, vectors, and both", ylim=(0, 1.25))
ax.legend(fontsize=7, ncols=3)
plt.show()

# %% [markdown]
# **hybrid** adds the reciprocal ranks of both, $\sum 1 / (60 + \text{place})$ ([Cormack et al. 2009](https://doi.org/10.1145/1571941.1572114)): no scores have to be made comparable.
# Here words alone are best: a question names its disease. Vectors of LSA help where question and document use different words; those of a trained encoder more.
#
# ### Exercise 3
#
# Fuse two rankings: the documents in the order of $\sum 1 / (60 + \text{place})$, places from 1.


# %%
def fuse(first, second):
    return None


check(
    3,
    fuse(["a", "b", "c"], ["c", "a", "d"]),
    ["a", "c", "b", "d"],
    hint="a dict of sums; 0 for a ranking without the document; then sort by -sum",
)


# %% tags=["solution"]
def fuse(first, second):
    sums = {}
    for ranking in (first, second):
        for place, document in enumerate(ranking, 1):
            sums[document] = sums.get(document, 0) + 1 / (60 + place)
    return sorted(sums, key=lambda document: -sums[document])


check(3, fuse(["a", "b", "c"], ["c", "a", "d"]), ["a", "c", "b", "d"], hint="a dict of sums, sorted")

# %% [markdown]
# ## Answers with citations
#
# The smallest answer that can be trusted is a quote. `extract` chooses sentences of the passages; each citation is a span of its document, and `holds` compares it.

# %%
for asked in (question, "Who won the football world cup in 1954?"):
    answer = extract(index, asked, index.search(asked))
    print(asked)
    print(f"  {answer.text[:300]}")
    print(
        f"  evidence {answer.evidence:.2f}, {len(answer.citations)} citations, all verified: {all(each.holds(index) for each in answer.citations)}"
    )

# %% [markdown]
# An answer to a question that the documents do not answer is worse than none. The **evidence** of the best passage decides: how many of the question's words it has, weighted by
# how rare they are. Where to put the threshold?

# %%
inside = [extract(index, each.text, index.search(each.text)).evidence for each in sets.answerable]
outside = [extract(index, each.text, index.search(each.text)).evidence for each in sets.unanswerable]
thresholds = np.linspace(0, 1, 51)
answered = [np.mean([evidence >= t for evidence in inside]) for t in thresholds]
refused = [np.mean([evidence < t for evidence in outside]) for t in thresholds]
figure, ax = plt.subplots(figsize=(5, 2.2))
ax.plot(thresholds, answered, color="#2f6fbf", label="answered, of those in the documents")
ax.plot(thresholds, refused, color="#e08a1e", label="refused, of those that are not")
ax.axvline(0.5, color="#c8ccd2", linestyle="--")
ax.set(title="The threshold of evidence", xlabel="threshold", ylim=(0, 1.35))
ax.legend(fontsize=7, loc="upper center", ncols=2)
plt.show()
print(f"at 0.5: {np.mean(np.array(inside) >= 0.5):.0%} answered, {np.mean(np.array(outside) < 0.5):.0%} refused")

# %% [markdown]
# ### Exercise 4
#
# A wrong answer costs you twice as much as a refusal of a question that could be answered. Which threshold is best? Give the cost of each of `thresholds`.

# %%
costs = None
right_costs = (1 - np.array(answered)) + 2 * (1 - np.array(refused))
check(4, costs, right_costs, hint="(1 - answered) + 2 · (1 - refused), as arrays")

# %% tags=["solution"]
costs = (1 - np.array(answered)) + 2 * (1 - np.array(refused))
check(4, costs, right_costs, hint="(1 - answered) + 2 · (1 - refused), as arrays")
print(f"best threshold: {thresholds[costs.argmin()]:.2f}")

# %% [markdown]
# ## A model writes
#
# With a model, the passages go into its prompt, between marks that no passage contains, and each sentence that it writes is checked against the passages. Sentences without support are
# marked `[unsupported]`. Here is the prompt; a model of a few million parameters writes little of use from it, one of a few billion does.

# %%
from quatrain.retrieval.prompt import INSTRUCTION, passages_text

print(INSTRUCTION)
print(passages_text(index.search(question, k=2))[:500], "…")
print(f"Question: {question}")
index.close()

# %% [markdown]
# ## At size
#
# ```sh
# quatrain run rag                                          # six ways to cut and to rank, measured on MedQuAD
# quatrain index notes                                      # your own folder: text, Markdown, HTML, PDF, Word, tables
# quatrain ask notes "How are embeddings pooled?"
# quatrain ask notes "How are embeddings pooled?" --model MODEL
# quatrain serve --index indexes/notes                      # a page with the cited spans marked
# ```
#
# Better vectors: `quatrain index notes --dense MODEL` with a model of sentence embeddings, such as MiniLM or what the recipe `embed` trains. A larger model writes the answers with the same command:
# `--model` takes a folder, a hub id or an address of an OpenAI-compatible server. [Ask your documents](../retrieval.md) has every setting, and
# [the results](../../benchmarks/RESULTS.md#retrieval) figures on four collections.
