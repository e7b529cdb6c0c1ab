# ---
# jupyter:
#   quatrain:
#     data: ["gutenberg:1661"]
#     extras: [plot, classic]
# ---

# %% [markdown]
# # Lab 1: text as numbers
#
# **You learn** what a model sees of a text: tokens; how to compare documents by counting words (bags of words, TF-IDF, LSA); and how words get
# vectors from their neighbours (word2vec): near words, analogies, a map. The text is *The Adventures of Sherlock Holmes*: twelve stories.

# %%
import re

import matplotlib.pyplot as plt
import numpy as np

from quatrain.core.labs import at_size, check
from quatrain.data.documents import read_documents
from quatrain.tokenizers.tokenizer import Tokenizer

text = "\n".join(read_documents("gutenberg:1661"))
heading = re.compile(r"^(?:ADVENTURE )?[IVX]+\. ((?:THE ADVENTURE OF )?(?:A|THE) [A-Z' -]{6,})$", re.MULTILINE)
parts = heading.split(text)[1:]
titles = [title.replace("THE ADVENTURE OF ", "").title().replace("'S", "'s") for title in parts[::2]]
stories = parts[1::2]
for title, story in zip(titles, stories):
    print(f"{len(story.split()):6,} words  {title}")

# %% [markdown]
# ## Tokens
#
# A model reads numbers of a vocabulary. Characters make a short vocabulary and long texts; words a long vocabulary, with words that it does not know; **byte
# pair encoding** lies between: it starts with bytes and merges the most frequent pair, again and again
# ([Sennrich et al. 2015](https://arxiv.org/abs/1508.07909)). Frequent words become one token, rare ones several, and nothing is unknown.

# %%
sentence = "Elementary, my dear Watson: the bicyclist lied!"
taught = text[: at_size(None, 50_000)]
tokenizers = {
    "char": Tokenizer.train([taught], kind="char"),
    "bpe": Tokenizer.train([taught], kind="bpe", vocab_size=at_size(2000, 400)),
    "word": Tokenizer.train([taught], kind="word", vocab_size=at_size(5000, 500), lowercase=True),
}
for kind, tokenizer in tokenizers.items():
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.encode(sentence)]
    print(f"{kind}, {tokenizer.vocab_size:,} tokens: {' | '.join(tokens)}")

# %%
sizes = at_size([300, 500, 1000, 2000, 4000, 8000], [300, 400])
lengths = []
sample = text[: at_size(200_000, 10_000)]
for size in sizes:
    lengths.append(len(sample) / len(Tokenizer.train([sample], kind="bpe", vocab_size=size).encode(sample)))
figure, ax = plt.subplots(figsize=(4.5, 2.1))
ax.plot(sizes, lengths, "o-", color="#2f6fbf", markersize=3)
ax.set(
    title="A larger vocabulary, a shorter text",
    xlabel="tokens of the vocabulary",
    ylabel="characters a token",
    xscale="log",
)
ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
ax.minorticks_off()
plt.show()

# %% [markdown]
# ### Exercise 1
#
# One merge of BPE by hand: which pair of neighbouring characters is the most frequent in the text `abababcbab`, and how many tokens does the text have after all its
# occurrences are merged, from left to right?

# %%
pair, length = None, None
check(1, pair and [pair, length], ["ab", 6], hint="count ab, ba, bc, cb; then replace each ab by one token")

# %% tags=["solution"]
pair = "ab"  # 4 times: ab ab ab c b ab
length = len("abababcbab") - "abababcbab".count("ab")
check(1, [pair, length], ["ab", 6], hint="count ab, ba, bc, cb; then replace each ab by one token")

# %% [markdown]
# ## Bags of words and TF-IDF
#
# Forget the order and count: a document is a vector with a place for each word. Words that are in every document say nothing about any of them, so each count is
# weighed:
#
# $$\operatorname{tfidf}(w, d) = \operatorname{tf}(w, d) \cdot \log \frac{N}{\operatorname{df}(w)}$$
#
# with tf the count of w in document d, and df the number of the N documents that have w.

# %%
from quatrain.models import text_vectors as tv

words = [tv.words_of(story) for story in stories]
vocabulary = tv.Vocabulary(words, min_count=3)
counts = tv.count_matrix([vocabulary.encode(each) for each in words], len(vocabulary))
frequencies = tv.document_frequencies(counts)
weights = tv.idf(frequencies, len(stories), "course")  # the formula above; "sklearn" is scikit-learn's
weights[0] = 0  # <unk>
matrix = tv.tf_idf(counts, weights)
print(f"{counts.shape[0]} documents x {counts.shape[1]:,} words; {counts.nnz / np.prod(counts.shape):.0%} are not 0")
for row, title in enumerate(titles):
    best = np.argsort(-matrix[row].toarray()[0])[:6]
    print(f"{title:32} {', '.join(vocabulary.decode(best))}")

# %% [markdown]
# ### Exercise 2
#
# In a collection of 12 stories, *Holmes* is in all 12, and *snake* in one, 8 times. What are the TF-IDF of *Holmes* (47 times) and of *snake* in that story?

# %%
holmes, snake = None, None
check(
    2,
    snake and [holmes, snake],
    [0, 8 * np.log(12)],
    tolerance=0.01,
    hint="log(12 / 12) is 0; the other is 8 · log(12 / 1)",
)

# %% tags=["solution"]
holmes, snake = 47 * np.log(12 / 12), 8 * np.log(12 / 1)
check(2, [holmes, snake], [0, 8 * np.log(12)], tolerance=0.01, hint="log(12 / 12) is 0; the other is 8 · log(12 / 1)")

# %% [markdown]
# Two documents are alike if their vectors point the same way, whatever their lengths: the **cosine**. A query is a short document:

# %%
index = tv.DocumentSearch(stories)
for query in ("a venomous snake and a whistle", "a goose with a blue jewel", "a pawnbroker copies the encyclopaedia"):
    place, score = index.search(query, top=1)[0]
    print(f"{query:40} -> {titles[place]} ({score:.2f})")

# %% [markdown]
# ### Exercise 3
#
# Write the cosine of two vectors.


# %%
def cosine(a, b):
    return None


first, second = (matrix[row].toarray()[0] for row in (0, 1))
right = first @ second / np.sqrt((first @ first) * (second @ second))
check(3, cosine(first, second), right, hint="the dot product, divided by both lengths")


# %% tags=["solution"]
def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


check(3, cosine(first, second), right, hint="the dot product, divided by both lengths")

# %% [markdown]
# ### LSA: fewer numbers
#
# *Snake* and *serpent* are different places of the vector, though they mean the same. The truncated singular value decomposition keeps the K directions in which
# documents differ most; words that occur in the same documents share directions ([Deerwester et al. 1990](https://doi.org/10.1002/(SICI)1097-4571(199009)41:6%3C391::AID-ASI1%3E3.0.CO;2-9)).

# %%
pieces, owner = [], []
for number, story in enumerate(stories):
    split = story.split()
    for start in range(0, len(split) - 200, 400):
        pieces.append(tv.words_of(" ".join(split[start : start + 400])))
        owner.append(number)
piece_counts = tv.count_matrix([vocabulary.encode(piece) for piece in pieces], len(vocabulary))
piece_weights = tv.idf(tv.document_frequencies(piece_counts), len(pieces), "course")
piece_weights[0] = 0
vectors, directions = tv.lsa(tv.tf_idf(piece_counts, piece_weights, normalize=True), dimensions=12)
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
owner = np.array(owner)
alike = [
    [(unit[owner == one] @ unit[owner == other].T).mean() for other in range(len(titles))] for one in range(len(titles))
]
figure, ax = plt.subplots(figsize=(6.4, 3.4))
ax.imshow(alike, cmap="Blues")
ax.set_yticks(range(len(titles)), titles, fontsize=7)
ax.set(title="Mean cosine of pieces of 400 words, 12 directions of LSA", xticks=[])
plt.show()

# %% [markdown]
# ## word2vec
#
# "You shall know a word by the company it keeps." **Skip-gram** with negative sampling ([Mikolov et al. 2013](https://arxiv.org/abs/1310.4546)) gives each word w a
# vector $v_w$ and each context word c a vector $u_c$. For a pair that stands within a window, and for k words n drawn at random:
#
# $$-\log \sigma(u_c \cdot v_w) - \sum_{n} \log \sigma(-u_n \cdot v_w)$$
#
# The true pair shall have a large dot product, the drawn ones a small one. The loss in ten lines of PyTorch:

# %%
import torch
from torch.nn import functional as F


def skip_gram_loss(v, u, negatives):
    """v, u (B, D): word and context; negatives (B, k, D)."""
    true = F.logsigmoid((v * u).sum(-1))
    drawn = F.logsigmoid(-(negatives @ v[..., None]).squeeze(-1)).sum(-1)
    return -(true + drawn).mean()


torch.manual_seed(0)
print(
    "with vectors near 0:",
    float(skip_gram_loss(*(torch.randn(4, 8) * 1e-3, torch.randn(4, 8) * 1e-3), torch.randn(4, 5, 8) * 1e-3)),
)

# %% [markdown]
# ### Exercise 4
#
# What is this loss if all vectors are 0 and k = 5?

# %%
at_start = None
check(4, at_start, 6 * np.log(2), tolerance=1e-3, hint="σ(0) = 1/2: one true pair and five drawn ones, each -log(1/2)")

# %% tags=["solution"]
at_start = 6 * np.log(2)
check(4, at_start, 6 * np.log(2), tolerance=1e-3, hint="σ(0) = 1/2, six times")

# %% [markdown]
# One book is little for word vectors, so it is read many times. gensim is the fastest trainer on a CPU; Quatrain's own one, on any device, is in the recipe `word2vec`.

# %%
from quatrain.models.word_vectors import gensim_model, of_gensim

sentences = [tv.words_of(each) for each in re.split(r"[.!?;]\s", text)]
model = gensim_model(
    sentences, "skip_gram", vector_size=at_size(60, 8), window=5, min_count=5, negative=5, sample=1e-3,
    epochs=at_size(40, 2), workers=1, seed=1,
)  # fmt: skip
vectors = of_gensim(model)
print(f"{len(vectors):,} words with vectors of {vectors.dimensions}")
for word in ("holmes", "door", "morning", "she", "three"):
    print(f"{word:8} {', '.join(near for near, _ in vectors.nearest(word, 6))}")

# %% [markdown]
# ### Analogies
#
# *A man is to a king as a woman is to …*: the vector nearest to king - man + woman, the three words left out. A pair of words that differ in one thing differ by
# about the same vector.

# %%
for a, b, c in (("he", "his", "she"), ("man", "he", "woman"), ("was", "is", "were"), ("brother", "he", "sister")):
    answers = ", ".join(f"{word} {score:.2f}" for word, score in vectors.analogy(a, b, c, top=3))
    print(f"{a} is to {b} as {c} is to: {answers}")

# %% [markdown]
# ### Exercise 5
#
# Write the analogy: the number of the word nearest to $v_b - v_a + v_c$. Take `vectors.unit`, the vectors with length 1 (V, D), and leave out a, b and c.


# %%
def analogy(unit, a, b, c):
    """a, b, c are numbers of words."""
    return None


numbers = [vectors.numbers[word] for word in ("man", "he", "woman")]
wanted = vectors.numbers[vectors.analogy("man", "he", "woman")[0][0]]
check(
    5,
    analogy(vectors.unit, *numbers),
    wanted,
    hint="scores = unit @ (unit[b] - unit[a] + unit[c]); set those of a, b, c to -inf; argmax",
)


# %% tags=["solution"]
def analogy(unit, a, b, c):
    scores = unit @ (unit[b] - unit[a] + unit[c])
    scores[[a, b, c]] = -np.inf
    return int(scores.argmax())


check(5, analogy(vectors.unit, *numbers), wanted, hint="scores = unit @ (unit[b] - unit[a] + unit[c])")

# %% [markdown]
# ### A map
#
# Sixty dimensions do not fit on a page. The two directions of the largest variance (PCA) keep what they can:

# %%
groups = {
    "people": "man woman gentleman girl boy father mother daughter brother husband",
    "time": "morning evening day minutes week year monday",
    "house": "window room house street stairs floor table",
    "numbers": "three four five seven eight hundred",
}
shown = [(word, kind) for kind, names in groups.items() for word in names.split() if word in vectors]
rows = np.stack([vectors.unit[vectors.numbers[word]] for word, _ in shown])
rows = rows - rows.mean(axis=0)
plane = rows @ np.linalg.svd(rows, full_matrices=False)[2][:2].T
figure, ax = plt.subplots(figsize=(6.4, 3.6))
colors = dict(zip(groups, ("#2f6fbf", "#e08a1e", "#3c8d5a", "#b3261e")))
for (word, kind), (x, y) in zip(shown, plane):
    ax.text(x, y, word, color=colors[kind], fontsize=8, ha="center")
ax.set(title="Words of Sherlock Holmes on a plane", xticks=[], yticks=[],
       xlim=(plane[:, 0].min() - 0.1, plane[:, 0].max() + 0.1), ylim=(plane[:, 1].min() - 0.1, plane[:, 1].max() + 0.1))  # fmt: skip
plt.show()

# %% [markdown]
# ## At size
#
# ```sh
# quatrain run word2vec                                     # skip-gram on 24 novels, on Quatrain's trainer
# quatrain inspect runs/word2vec --neighbours sister
# quatrain inspect runs/word2vec --map pca --page map.html  # every word a point of an interactive page
# quatrain run tfidf                                        # reviews by naive Bayes: 83 % in a second
# quatrain predict runs/tfidf "A fine film."
# ```
#
# More text is what makes analogies work: published GloVe vectors of six billion words answer 646 of 961 ([word vectors](../word-vectors.md#files-and-questions)), and
# `WordVectors.read("glove.6B.50d.txt")` asks them the questions of this lab. A transformer's embedding of tokens is the same idea, learned with the rest
# of the network: `quatrain inspect gpt2 --neighbours " Monday"`.
