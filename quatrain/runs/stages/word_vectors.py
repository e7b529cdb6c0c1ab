"""The word-vectors stage: learns one vector for each token of the recipe's tokenizer from running text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, whole_text_conflicts
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings


class WordVectorsStage(StageSettings):
    """Skip-gram, CBOW, Sent2Vec or GloVe on the trainer, or a method of gensim with `library = "gensim"`.

    `train.batch_tokens` counts words, for GloVe pairs. All but GloVe step by the sum of a batch's pairs:
    `optimizer = "sgd"` with a learning rate of 0.025 is word2vec's own way, in batches of 256 words. gensim
    reads `train.epochs` alone: it has its own learning rate. `hierarchical` is gensim's hierarchical softmax in place
    of drawn words. `similarity` and `analogies` are files that score the vectors.
    """

    kind: Literal["word-vectors"] = "word-vectors"
    batches_of_tokens: ClassVar[bool] = False
    method: Literal["skip_gram", "cbow", "sent2vec", "glove", "fasttext"] = "skip_gram"
    library: Literal["quatrain", "gensim"] = "quatrain"
    dimensions: int = Field(default=100, ge=1, le=10_000)
    window: int = Field(default=5, ge=1, le=30, description="words on each side")
    negatives: int = Field(default=5, ge=1, le=100, description="drawn words for each pair")
    pair_buckets: int = Field(default=200_000, ge=1, le=100_000_000, description="vectors of pairs of words (sent2vec)")
    hierarchical: bool = False
    sample: float = Field(default=1e-3, ge=0, le=1, description="share above which words are thinned out; 0 for never")
    min_subword: int = Field(default=3, ge=1, description="letters of the shortest subword (fasttext)")
    max_subword: int = Field(default=6, ge=1, description="letters of the longest subword (fasttext)")
    similarity: str | None = Field(default=None, min_length=1, description="a file of word pairs with people's scores")
    analogies: str | None = Field(default=None, min_length=1, description="a file of analogy questions")
    train: TrainSettings
    data: DataSettings | None = None

    def conflicts(self) -> Iterator[Problem]:
        if self.train.optimizer == "sgd" and self.train.weight_decay:
            text = f'{self.train.weight_decay}; must be 0 with optimizer = "sgd", which reads only the rows of a batch'
            yield Problem(("train", "weight_decay"), text, (("train", "optimizer"),))
        if self.library == "quatrain" and self.method == "fasttext":
            text = '"fasttext"; only library = "gensim" trains it'
            yield Problem(("method",), text, (("library",),))
        if self.library == "gensim" and self.method in ("glove", "sent2vec"):
            text = f'"{self.method}"; gensim does not train it: take library = "quatrain"'
            yield Problem(("method",), text, (("library",),))
        if self.hierarchical and self.library != "gensim":
            yield Problem(("hierarchical",), 'true; only library = "gensim" has it', (("library",),))
        if self.library == "gensim" and self.train.epochs is None:
            yield Problem(("train", "epochs"), "missing; gensim counts epochs, not steps", (("library",),))
        if self.min_subword > self.max_subword:
            yield Problem(("min_subword",), f"{self.min_subword}; must be at most max_subword = {self.max_subword}")


def needs(settings: WordVectorsStage, recipe: RecipeSettings) -> set[Need]:
    """A text and a tokenizer."""
    return {"data", "tokenizer"}


def file_problems(settings: WordVectorsStage, recipe: RecipeSettings) -> Iterator[str]:
    """Sets that do not exist."""
    from quatrain.core.reading import user_path

    for name in ("similarity", "analogies"):
        value = getattr(settings, name)
        if value is not None and not user_path(value, name).is_file():
            yield f"{name}: {value} does not exist"


SPEC = StageSpec(
    WordVectorsStage,
    run=deferred("quatrain.runs.stages._word_vectors:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._word_vectors:prepare"),
    conflicts=whole_text_conflicts,
    file_problems=file_problems,
    teaches=lambda settings: "task",
)
