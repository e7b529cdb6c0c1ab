"""Settings of the data and the tokenizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Problem, Settings, parse
from quatrain.data.formats import FORMATS, layout_from_columns
from quatrain.tokenizers.templates import source_of

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


def source_settings(source: str, databases: str | None = None) -> DataSettings:
    """The settings of a source that a verb was given. Raises InputError, for an empty name too."""
    settings = {"source": source, "databases": databases}
    return parse(DataSettings, {key: value for key, value in settings.items() if value is not None}, what="the data")


class DataSettings(Settings):
    """The training data of a recipe: exactly one of `source`, `database` and `task` (the recipe checks that one is
    given).

    `dev` is a source for validation, instead of a share of `source`; `test` is a source for the final scores. Both have
    the same format and columns as `source`.
    """

    source: str | None = Field(
        default=None, min_length=1, description="a catalog name, a file, a folder, or hf:owner/name"
    )
    format: FormatName | None = Field(default=None, description="the data format; detected from the columns by default")
    columns: dict[str, str] = Field(default={}, description='the column of each role: {text = "review"}')
    subset: str | None = Field(
        default=None, min_length=1, description="subset of a Hugging Face data set, such as sst2"
    )
    split: str | None = Field(default=None, min_length=1, description="split of a Hugging Face data set, such as train")
    dev: str | None = Field(default=None, min_length=1, description="a source for validation")
    dev_split: str | None = Field(default=None, min_length=1, description="of a data set of Hugging Face")
    test: str | None = Field(default=None, min_length=1, description="a source for the final scores")
    test_split: str | None = Field(default=None, min_length=1, description="of a data set of Hugging Face")
    streaming: bool = Field(default=False, description="read during training; only a block is in memory")
    database: str | None = Field(default=None, min_length=1, description='"shop", or the path of a SQLite file')
    task: str | None = Field(
        default=None, min_length=1, description="a task that generates its examples, such as arithmetic"
    )
    databases: str | None = Field(
        default=None,
        min_length=1,
        description="the databases of SQL questions: a folder, a .zip or a SQLite file",
    )
    preferences: str | None = Field(default=None, min_length=1, description="a file of preference pairs, for DPO")
    examples: int = Field(
        default=20_000, ge=1, le=10_000_000, description="number of training examples that a database or task generates"
    )
    answers: bool = Field(default=False, description="generated pretraining texts hold each question with its answer")
    piece_words: int | None = Field(
        default=None, ge=1, description="labelled texts of source are cut into pieces of at most so many words"
    )
    validation: float = Field(default=0.1, ge=0, lt=1, description="share of the data for validation")

    @property
    def generates(self) -> bool:
        """Whether a task generates the examples, for a database or from nothing."""
        return self.database is not None or self.task is not None

    def conflicts(self) -> Iterator[Problem]:
        origins = {name: getattr(self, name) for name in ("source", "database", "task")}
        given = {name: value for name, value in origins.items() if value is not None}
        if len(given) > 1:
            shown = " and ".join(f'{name} = "{value}"' for name, value in given.items())
            remove = " or ".join(f"data.{name}=none" for name in given)
            yield Problem(
                (),
                f"{shown}; must have exactly one of source, database and task: remove one (on the command line "
                f"{remove})",
                tuple((name,) for name in given),
            )
        if self.columns:
            try:
                layout_from_columns(self.columns, self.format)
            except InputError as error:
                for problem in error.problems:
                    yield Problem(("columns",), problem.removeprefix("columns: "), (("format",),))


class TokenizerSettings(Settings):
    """The tokenizer to train, or the one to use as it is (`path`).

    `special_tokens` and the tokens of `chat_template` are also added to the tokenizer of `model.folder` if it lacks
    them. The model then gets a trainable embedding row for each.
    """

    kind: Literal["bpe", "wordpiece", "unigram", "word", "char"] = "bpe"
    vocab_size: int = Field(default=8192, ge=2, le=2_000_000)
    path: str | None = Field(default=None, min_length=1, description="a tokenizer.json, or a folder with one")
    spaces: Literal["attached", "free"] = Field(
        default="attached", description="free: a name has the same tokens after a space, in quotes and in code (bpe)"
    )
    lowercase: bool = Field(default=False, description="convert the text to lower case (wordpiece, word)")
    special_tokens: Listing[str] = Field(default=(), description="tokens to add; each is one id")
    chat_template: str | None = Field(default=None, min_length=1, description="a chat template, such as chatml")

    def conflicts(self) -> Iterator[Problem]:
        if self.spaces == "free" and self.kind != "bpe":
            yield Problem(("spaces",), f'"free"; only kind = "bpe" has this setting, not "{self.kind}"', (("kind",),))
        if self.chat_template is not None:
            try:
                source_of(self.chat_template)
            except InputError as error:
                yield Problem(("chat_template",), error.message.removeprefix("chat_template "))
        if self.lowercase and self.kind not in ("wordpiece", "word"):
            text = f'true; only kind = "wordpiece" and "word" have this setting, not "{self.kind}"'
            yield Problem(("lowercase",), text, (("kind",),))
