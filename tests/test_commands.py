"""Every command that the README, the guide and the labs show is run: here, by the test that `ELSEWHERE` names, or by
the tests of its recipe. A page marks what no test can run, before the block, with one of `REASONS`:

    <!-- not run: downloads a model -->
    <!-- not run: downloads a model: openai/, google/ -->      only the commands with one of these words

The commands run in this process, in the order of the pages, in a folder that has what a reader has by then: runs of the
recipes, with tiny models, and files of their own.
"""

from __future__ import annotations

import gzip
import io
import re
import shlex
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "labs").glob("*.md"))]
REASONS = (
    "downloads a model",
    "downloads data",
    "installs software",
    "needs software from elsewhere",
    "needs a GPU",
    "needs a person",
    "needs a service of yours",
    "needs several machines",
)
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+?) -->\n+)?^```(sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- not run: ([^>]+?) -->")

ELSEWHERE = {
    r"quatrain serve\b": ("tests/serving/test_serve_verb.py", '"serve"'),
    r"quatrain sweep\b": ("tests/runs/test_sweep.py", '"sweep"'),
    r"quatrain agent serve\b": ("tests/agents/test_mcp.py", "import serve"),
    r"quatrain data (crawl|curate)\b": ("tests/data/curation/test_crawl.py", '"curate"'),
    r"quatrain compare .* --documents\b": ("tests/retrieval/test_compare.py", '"--documents"'),
    r"quatrain inspect .* --map tsne\b": ("tests/evaluation/test_views.py", "tsne"),
    r"quatrain evaluate runs/sql-finetune/model\b": ("tests/runs/recipes/test_shipped_recipes.py", "sql-finetune"),
    r"quatrain plan gpt2 --method\b": ("tests/cli/test_plan.py", '"--method", "lora"'),
    r"quatrain quantize .* --method \S+ --method\b": ("tests/compression/test_calibrated.py", '"quantize"'),
    r"quatrain prune .* --method \S+ --method\b": ("tests/compression/test_pruning.py", '"--method", "wanda"'),
    r"quatrain prompt (compare|search)\b": ("tests/cli/test_prompt.py", '"search"'),
    r"quatrain plan .*--verify\b": ("tests/planning/test_parallelism.py", "verify"),
    r"quatrain evaluate .*memorization:": ("tests/evaluation/test_safety.py", 'suite_class("memorization")'),
    r"quatrain evaluate --passport\b": ("tests/evaluation/test_suites.py", '"--passport"'),
    r"quatrain agent run .*--tool .?mcp=": ("tests/agents/test_mcp.py", "mcp="),
    r"quatrain (predict|chat) \S*picture-qa": ("tests/runs/test_vision_language.py", "picture-qa"),
    r"quatrain predict \S*clip-shapes": ("tests/runs/test_vision_stages.py", "candidate_labels"),
    r"lm_eval\b": ("tests/serving/test_lm_eval.py", "LocalCompletionsAPI("),
    r"quatrain doctor\b": ("tests/evaluation/test_doctor.py", '"doctor"'),
    r"quatrain label\b": ("tests/cli/test_label.py", '"label"'),
    r"make\b": ("tests/test_readme.py", "test_make_knows_its_targets"),
    r"QUATRAIN_LAB=small python tools/labs.py run\b": ("tests/test_labs.py", "tool.run("),
}
"""Commands that serve, ask people or train for minutes: the test that runs them, and a word of it."""


@dataclass(frozen=True)
class Shown:
    """A command of a page, without its comment, and why it is not run."""

    page: str
    line: str
    reason: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def without_comment(line: str) -> str:
    """A line of shell without the comment at its end; a # in quotes or inside a word begins none."""
    for match in re.finditer(r"(?:^|\s+)#", line):
        if line[: match.start()].count('"') % 2 == 0 and line[: match.start()].count("'") % 2 == 0:
            return line[: match.start()]
    return line


def shown(page: Path) -> Iterator[Shown]:
    """The commands of a page in order; a console block shows them behind a prompt."""
    for mark, kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        reason, _, only = mark.partition(": ")
        for line in body.replace("\\\n", " ").splitlines():
            if kind == "console" and not line.startswith("$ "):
                continue
            if line := without_comment(line.removeprefix("$ ").strip()):
                excused = bool(mark) and (not only or any(word.strip() in line for word in only.split(",")))
                yield Shown(page.name, line, reason if excused else "")


COMMANDS = [command for page in PAGES for command in shown(page)]


def elsewhere(command: Shown) -> str | None:
    """The test that runs a command in a process of its own."""
    return next((test for pattern, (test, _) in ELSEWHERE.items() if re.match(pattern, command.line)), None)


def is_of_a_recipe(command: Shown) -> bool:
    """Whether a shipped recipe is run or checked: the tests of recipes run each; its settings are read here."""
    from quatrain.runs.recipe import recipe_names

    words = command.words
    return words[:1] == ["quatrain"] and words[1] in ("run", "check") and words[2] in recipe_names()


def test_marks_give_one_of_the_reasons() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used = [mark for mark, _, _ in BLOCK.findall(text) if mark]
        assert MARK.findall(text) == used, f"{page.name}: a mark belongs right before a block of commands"
        assert [mark for mark in used if mark.partition(": ")[0] not in REASONS] == [], page.name
        for mark in (mark for mark in used if ": " in mark):
            words = [word.strip() for word in mark.partition(": ")[2].split(",")]
            lines = [command.line for command in shown(page) if command.reason]
            assert [word for word in words if not any(word in line for line in lines)] == [], f"{page.name}: {mark}"
    reasons = Counter(command.reason for command in COMMANDS if command.reason)
    assert sum(reasons.values()) < len(COMMANDS) / 5, reasons


def test_tests_that_run_commands_exist() -> None:
    for test, word in ELSEWHERE.values():
        assert word in (ROOT / test).read_text(encoding="utf-8"), f"{test} has no {word}"


def test_the_settings_of_recipes_are_read() -> None:
    from quatrain.runs.recipe import load

    for command in filter(is_of_a_recipe, COMMANDS):
        if not command.reason:
            load(command.words[2], [word for word in command.words[3:] if not word.startswith("-")])


WORDS = "It was a dark night and the rain fell on the old road to the sea while nobody came or went".split()
TEXT = (
    "ROMEO:\n"
    + "".join(" ".join(WORDS[i * j % len(WORDS)] for j in range(1, 12)) + ".\n" for i in range(1, 60))
    + "My dear Watson, it was his sister. " * 40
)
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 1024}  # fmt: skip
TALKERS = ("mine", "other", "quickstart", "sherlock", "my-text", "letters", "served", "instruct", "gpt-pretrain",
           "project", "tiny", "tool-sft", "agent", "sql-finetune", "soft-hard")  # fmt: skip
"""Runs whose model continues texts and chats."""
HEADED = {
    "sentiment": ("bert", "sequence_classification", ("0", "1")),
    "spam": ("bert", "sequence_classification", ("ham", "spam")),
    "toxic": ("bert", "sequence_classification", ("fine", "toxic")),
    "ner": ("bert", "token_classification", ("O", "B-PER", "I-PER")),
    "qa": ("bert", "question_answering", ()),
    "embed": ("bert", "embedding", ()),
    "bert-pretrain": ("bert", "masked", ()),
    "summarize": ("bart", None, ()),
}
VECTORS = [
    "data.source=my.txt",
    "evaluate.prompts=[]",
    "stage.word-vectors.dimensions=8",
    "stage.word-vectors.train.schedule=constant",
]
STEPS = ["epochs=none", "steps=2", "warmup_steps=0", "batch_tokens=96"]
CLASSIC = (
    ("ngram", ["data.source=my.txt", "evaluate.prompts=[]"]),
    ("tfidf", ["data.source=reviews.csv", "data.dev=none", "data.test=none", "data.validation=0.5"]),
    ("lstm", ["data.source=my.txt", "evaluate.prompts=[]", "model.hidden_size=8",
              *(f"stage.pretrain.train.{step}" for step in STEPS)]),
    ("pos-lstm", ["data.source=tags.conll", "data.dev=none", "data.test=none", "data.validation=0.3",
                  "model.hidden_size=8", "model.classic.num_filters=4", "model.max_position_embeddings=64",
                  "stage.finetune.train.evaluate_every=1",
                  *(f"stage.finetune.train.{step}" for step in STEPS)]),
    ("word2vec", [*VECTORS, "stage.word-vectors.train.epochs=1"]),
    ("word2vec", [*VECTORS, "stage.word-vectors.train.epochs=1", "name=sentences",
                  "stage.word-vectors.method=sent2vec"]),
)  # fmt: skip
"""Recipes of what came before transformers, with settings that make them small."""
FILES = {
    **dict.fromkeys(("my.txt", "mine.txt", "poems.txt", "train.txt", "letters.txt"), TEXT),
    "start.txt": "It was",
    "words.txt": "dark\nold\n",
    "passage.txt": "Jane Austen wrote the novel in 1813.",
    "reviews.csv": "review,label\n" + "A fine film.,1\nA dull one.,0\n" * 4,
    "cities.csv": "city,people\nOslo,700000\n",
    "prompts.jsonl": '{"prompt": "It was"}\n{"prompt": "the rain"}\n',
    "my-chats.jsonl": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
    "canaries.jsonl": '{"form": "the code is {digits:4}", "secret": "4711", "times": 1}\n',
    "crows_pairs_anonymized.csv": "sent_more,sent_less,bias_type\n" + "It is old,It is new,age\n" * 3,
    "tags.conll": "It PRON\nwas VERB\ndark ADJ\n\n" * 6,
    "others.jsonl": '{"question": "How many cities?", "query": "SELECT count(*) FROM city", "db_id": "shop"}\n',
    "notes/pooling.md": "# Pooling\n\nEmbeddings are pooled by their mean.\n\n" + TEXT[:400],
    "notes/other.txt": TEXT[:300],
}
"""What a reader has of their own."""
ANSWERS = {"quatrain new": "text\nmy.txt\nsmall\n", "quatrain generate mine -": "It was"}
"""What is typed, by command; otherwise a line of text."""
MODELS = {"--task ner": "runs/ner/model", "quatrain ask": "runs/mine/model"}
"""What MODEL stands for, by a part of the command; otherwise a classifier."""
SHORTER = {
    "ask": ["--max-new-tokens", "2"],
    "generate": ["--max-new-tokens", "2"],
    "chat": ["--max-new-tokens", "2"],
    "check": ["--no-measure"],
    "run": [
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "stage.pretrain.train.steps=2",
        "stage.pretrain.train.warmup_steps=1",
        "evaluate.max_new_tokens=2",
    ],
}
"""Options that the command of a page gets, unless it has them: it then ends sooner."""


def tiny_model(folder: Path, family: str, head: str | None, labels: tuple[str, ...] = ()) -> None:
    """A model folder of fresh weights with a tokenizer of the text above."""
    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    kind = "bpe" if family in ("llama", "bart") else "wordpiece"
    more = {"chat_template": "chatml"} if family == "llama" else {}
    tokenizer = Tokenizer.train(TEXT.splitlines(), kind=kind, vocab_size=400, **more)
    sizes: dict[str, Any] = SIZES | {"vocab_size": tokenizer.vocab_size} | ({"labels": labels} if labels else {})
    for role in ("pad", "bos", "eos"):
        if (token_id := getattr(tokenizer, f"{role}_id")) is not None:
            sizes[f"{role}_token_id"] = token_id
    model_folder.save(Model(fresh_config(family, sizes, head=head)).initialize(0), folder)
    tokenizer.save(folder)


def tiny_adapter(folder: Path, base: Path) -> None:
    """A LoRA over a classifier."""
    from quatrain.adapters.apply import apply_adapter
    from quatrain.adapters.peft_files import save_adapter
    from quatrain.adapters.settings import AdapterSettings
    from quatrain.loading.model import load_weights

    model = load_weights(base)
    apply_adapter(model, AdapterSettings(method="lora", rank=2))
    save_adapter(model, folder, base_model=str(base))


def tiny_vision(folder: Path) -> None:
    """A vision transformer of two classes, with its processor."""
    from quatrain.data.image_processor import ImageProcessor
    from quatrain.models.families import get_family
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model

    sizes = {key: SIZES[key] for key in list(SIZES)[:4]} | {"image_size": 8, "patch_size": 4, "model_type": "vit"}
    config = get_family("vit").from_hf(sizes | {"id2label": {"0": "3", "1": "4"}}, head="image_classification")
    model_folder.save(Model(config).initialize(0), folder)
    ImageProcessor.of(8).save(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has run the recipes of the pages."""
    import numpy as np

    from quatrain.data.images import to_png

    folder = tmp_path_factory.mktemp("reader")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (own,) = re.findall(r"```toml\n(name = .*?)```", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.DOTALL)
    (folder / "mine.toml").write_text(own.replace('name = "mine"', 'name = "own"'), encoding="utf-8")
    (folder / "big.jsonl.gz").write_bytes(gzip.compress(b'{"text": "A fine film."}\n' * 3))
    (folder / "picture.png").write_bytes(to_png(np.full((9, 9, 3), 200, np.uint8)))
    runs = folder / "runs"
    tiny_model(runs / "mine" / "model", "llama", None)
    for name in TALKERS[1:]:
        shutil.copytree(runs / "mine", runs / name)
    for name, (family, head, labels) in HEADED.items():
        tiny_model(runs / name / "model", family, head, labels)
    tiny_vision(runs / "digits" / "model")
    tiny_adapter(runs / "sentiment-lora" / "stages" / "03-finetune" / "adapter", runs / "sentiment" / "model")
    for run in runs.iterdir():
        (run / "recipe.toml").touch()
        (run / "run.json").write_text("{}")
    (folder / "databases" / "shop").mkdir(parents=True)
    for name in ("my", "shop", "databases/shop/shop", "runs/quickstart/shop", "runs/project/shop"):
        with sqlite3.connect(folder / f"{name}.sqlite") as database:
            database.execute("create table city (id integer primary key, name text, people integer)")
            database.executemany("insert into city values (?, ?, ?)", [(1, "Oslo", 700_000), (2, "Bern", 130_000)])
        database.close()
    return folder


def is_here(command: Shown) -> bool:
    """Whether the data sets of the catalog that a command names are on this machine."""
    from quatrain.data import catalog

    named = filter(None, map(catalog.find, (word for word in command.words if re.fullmatch(r"[a-z0-9-]+", word))))
    return all(catalog.locate(entry) is not None for entry in named)


def typed(command: Shown) -> list[str]:
    """The words of a command with a model for MODEL, and shorter."""
    model = next((each for words, each in MODELS.items() if words in command.line), "runs/sentiment/model")
    words = [model if word == "MODEL" else word for word in command.words[1:]]
    added = SHORTER.get(words[0], []) if words[0] != "ask" or "--model" in words else []
    return words if set(added) & set(words) else [*words, *added]


def called(words: list[str]) -> int:
    """The exit code of the command line in this process."""
    from quatrain.cli import main

    try:
        return main(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import quatrain
    from quatrain.core.progress import SilentReporter
    from quatrain.runs.recipe import load

    monkeypatch.chdir(place)
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    for name, settings in CLASSIC:
        quatrain.run(load(name, settings), reporter=SilentReporter())
    record = ["agent", "run", "runs/mine", "How many?", "--tool", "calculator", "--steps", "1", "--record", "run.jsonl"]
    assert called(record) in (0, 1)
    (place / "runs" / "agents").mkdir(exist_ok=True)
    shutil.copy(place / "run.jsonl", place / "runs/agents/agent-20261129-090000-000001.jsonl")
    failed, done = [], set()
    for command in COMMANDS:
        if command.reason or elsewhere(command) or is_of_a_recipe(command) or command.page == "README.md":
            continue  # tests/test_readme.py runs the README
        if command.line in done or not is_here(command):
            continue
        done.add(command.line)
        line = command.line.rpartition(" | ")[2]
        monkeypatch.setattr(sys, "stdin", io.StringIO(ANSWERS.get(line, "a fine film\n")))
        words = typed(Shown(command.page, line))
        right = (0, 1) if words[:2] == ["agent", "run"] else (0,)  # a tiny model gives no answer, which is 1
        code = called(words) if line.startswith("quatrain ") else -1
        output = capsys.readouterr()
        if code not in right:
            failed.append(f"{command.page}: {command.line}\n    ended with {code}: {(output.out + output.err)[-400:]}")
    assert not failed, f"{len(failed)} of {len(done)} commands failed:\n" + "\n".join(failed)
    assert len(done) > 60
