"""Recipes: strictness, messages, overrides, and that what is written loads as it was."""

from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.core.settings import format_place, parse
from quatrain.models.transformer.settings import FamilyName
from quatrain.runs.recipe import Recipe, changes, dumps, load, loads, recipe_names, to_dict
from quatrain.runs.stages import specs

FAMILIES = ", ".join(typing.get_args(FamilyName))
FULL = Path(__file__).parent / "recipes" / "full.toml"
"""Every kind of stage once. The shipped recipes' numbers are tuned, these stay."""

MINIMAL = """
name = "tiny"
[data]
source = "book.txt"
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = { steps = 10, warmup_steps = 2 }
"""


def problems(*overrides: str, recipe: Path | str = FULL) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(recipe, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def problems_of(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        loads(text)
    return caught.value.problems


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_right_and_described(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.next
    assert loads(dumps(recipe)) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage[1].train.lerning_rate=1.0", "stage[1].train.lerning_rate: unknown; did you mean learning_rate?"),
        ("stage.pretrain.train.lerning_rate=1.0", "stage[1].train.lerning_rate: unknown; did you mean learning_rate?"),
        ("stage.pretrain.train.clip=1.0", "stage[1].train.clip: unknown; did you mean max_grad_norm?"),
        ("stage.pretrain.train.spike=3.0", "stage[1].train.spike: unknown; did you mean loss_spike_factor?"),
        ("stage.pretrain.hidden=0.3", "stage[1].hidden: unknown; did you mean mask_ratio?"),
        ("tokenizer.chat_template=chatlm", 'tokenizer.chat_template: "chatlm" is neither Jinja source'),
        ("seed=x", 'seed: "x" is text; must be a whole number'),
        ("seed=1.5", "seed: 1.5 is a number; must be a whole number"),
        ("seed=true", "seed: true is true or false; must be a whole number"),
        ("seed=-1", "seed: -1; must be at least 0"),
        (f"evaluate.examples={2**63}", f"evaluate.examples: {2**63}; must be at most {2**63 - 1:,}"),
        (f"data.examples={10**30}", f"data.examples: {10**30}; must be at most {2**63 - 1:,}"),
        ("stage.pretrain.train.learning_rate=-1.0", "stage[1].train.learning_rate: -1.0; must be greater than 0"),
        ("stage.pretrain.train.beta1=1", "stage[1].train.beta1: 1; must be less than 1"),
        (
            "model.family=lama",
            'model.family: "lama"; must be one of ' + ", ".join(typing.get_args(FamilyName)) + "; did you mean llama?",
        ),
        (
            "model.family=LLAMA",
            'model.family: "LLAMA"; must be one of ' + ", ".join(typing.get_args(FamilyName)) + "; did you mean llama?",
        ),
        ("model.rope_theta=inf", "model.rope_theta: inf; must be a finite number"),
        ("model.tie_word_embeddings=yes", 'model.tie_word_embeddings: "yes" is text; must be true or false'),
        (
            "stage[4].kind=quantise",
            f'stage[4].kind: "quantise"; must be one of {", ".join(specs())}; did you mean quantize?',
        ),
        ("modle.family=llama", "modle: unknown; did you mean model?"),
        ('evaluate.temperatures=[0.5, "hot"]', 'evaluate.temperatures[1]: "hot" is text; must be a number'),
        (
            "stage.2.adapter.target_modules=3",
            "stage[2].adapter.target_modules: 3 is a whole number; must be text or a list, such as",
        ),
        ("stage.2.adapter.length=3", "stage[2].adapter.length: unknown; did you mean num_virtual_tokens?"),
        ("stage.2.adapter=lora", 'stage[2].adapter: "lora" is text; must be a table of keys'),
        ("name=a/b", 'name: "a/b"; must be a name for the run\'s folder'),
        ("name=..", 'name: ".."; must be a name for the run\'s folder'),
    ],
)
def test_one_problem_is_named_with_its_place_and_remedy(override: str, message: str) -> None:
    (found,) = problems(override)
    assert found.startswith(message)


def test_all_problems_come_at_once_those_between_keys_too() -> None:
    found = problems(
        "stage[1].train.lerning_rate=1.0",
        "seed=x",
        "model.family=lama",
        "stage.pretrain.train.learning_rate=-1",
        "data.source=abc.txt",
        "model.num_attention_heads=3",
        "stage.1.train.steps=300",
        "stage.1.train.epochs=2",
        "stage.9.train.steps=3",
        "nonsense",
    )
    text = "\n".join(found)
    assert len(found) == 9
    for part in (
        "lerning_rate: unknown",
        'seed: "x"',
        'model.family: "lama"',
        "learning_rate: -1;",
        "exactly one of source, database and task",
        "exactly one of steps and epochs",
        "model.hidden_size: 256; must be divisible by num_attention_heads = 3",
        "no stage[9]",
        '"nonsense": must have the form key=value',
    ):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["stage.1.train.steps=300", "stage.1.train.epochs=2"],
            "stage[1].train: steps = 300 and epochs = 2.0; must have exactly one",
        ),
        (["stage.1.train.steps=none"], "stage[1].train: has neither steps nor epochs"),
        (["data.database=none"], "data: has neither source, database nor task, which stage[0] (tokenizer) needs"),
        (["stage.1.context=1024"], "stage[1].context: 1024; must be at most model.max_position_embeddings = 256"),
        (["stage.1.train.batch_tokens=10"], "stage[1].train.batch_tokens: 10; must be at least 128"),
        (
            ["stage.1.train.steps=300", "stage.1.train.warmup_steps=301"],
            "stage[1].train.warmup_steps: 301; must be at most steps = 300",
        ),
        (["model.num_key_value_heads=3"], "model.num_key_value_heads: 3; must divide num_attention_heads = 4: one of"),
        (["model.hidden_size=12"], "need an even width, such as hidden_size = 16"),
        (["stage.0.kind=evaluate"], "stage[1]: pretrain needs a tokenizer"),
        (
            ["tokenizer.kind=unigram", "tokenizer.spaces=free"],
            'tokenizer.spaces: "free"; only kind = "bpe" has this setting, not "unigram"',
        ),
        (["model.folder=base"], "stage[0]: tokenizer must be left out"),
        (
            ["model.family=gpt2"],
            'stage[4]: quantize cannot follow model.family = "gpt2", whose files fuse or transpose',
        ),
    ],
)
def test_keys_that_disagree(overrides: list[str], part: str) -> None:
    found = problems(*overrides)
    assert any(part in problem for problem in found), found


@pytest.mark.parametrize(
    ("stages", "part"),
    [
        (["quantize"], "stage[0]: quantize needs a model"),
        (["tokenizer", "pretrain", "quantize", "finetune"], "stage[3]: finetune cannot follow stage[2] (quantize)"),
        (["pretrain"], "stage[0]: pretrain needs a tokenizer"),
        (["tokenizer", "pretrain", "tokenizer"], "stage[2]: tokenizer must come before"),
        (["evaluate"], "stage[0]: evaluate needs a model"),
    ],
)
def test_stages_in_the_wrong_order(stages: list[str], part: str) -> None:
    head = 'name = "x"\n[data]\nsource = "a.txt"\n'
    train = {"pretrain": "train = { steps = 100 }\n", "finetune": "train = { epochs = 1 }\n"}
    text = head + "".join(f'[[stage]]\nkind = "{kind}"\n{train.get(kind, "")}' for kind in stages)
    assert any(part in problem for problem in problems_of(text))


def test_missing_keys_say_what_belongs_there() -> None:
    found = problems_of('description = "nothing else"')
    assert found[0].startswith("name: missing; a name for the run's folder")
    assert found[1].startswith("stage: missing")


def test_overrides_reach_any_depth() -> None:
    recipe = load(
        FULL,
        [
            "stage.pretrain.train.steps=10",
            "stage[1].train.warmup_steps=1",
            "stage.2.adapter.rank=4",
            "stage.dpo.adapter.rank=2",
            "data.database=none",
            "data.source=1661",
            "data.preferences=pairs.jsonl",
            'next=["a", "b"]',
            "description=two words",
            "stage.finetune.adapter.alpha=8",
        ],
    )
    assert recipe.stage[1].train.steps == 10
    assert recipe.stage[1].train.warmup_steps == 1
    assert recipe.stage[2].adapter.rank == 4
    assert recipe.stage[2].adapter.alpha == 8.0
    assert recipe.stage[3].adapter.rank == 2
    assert recipe.data.source == "1661"
    assert recipe.next == ("a", "b")
    assert recipe.description == "two words"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed", "must have the form key=value"),
        ("=3", "must have the form key=value"),
        ("stage.pretrian.train.steps=1", "did you mean pretrain?"),
        ("stage[7].train.steps=1", "no stage[7]; must be one of 0 (tokenizer), 1 (pretrain)"),
        ("stage[-1].train.steps=1", "no stage[-1]"),
        ("seed.deeper=1", "seed has no keys below it"),
        ("a[[=1", '"a[[" is not a key'),
        ("data.=1", "ends with a dot"),
        ("stage[0]=1", "a whole stage cannot be replaced"),
    ],
)
def test_overrides_that_name_nothing(override: str, part: str) -> None:
    assert any(part in problem for problem in problems(override))


def test_a_kind_that_comes_twice_is_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "twice.toml"
    path.write_text(MINIMAL + '[[stage]]\nkind = "pretrain"\ntrain = { steps = 10, warmup_steps = 2 }\n')
    assert "there are 2 pretrain stages" in problems("stage.pretrain.train.steps=5", recipe=str(path))[0]


def test_the_name_of_a_recipe_is_that_of_its_file_unless_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL.replace('name = "tiny"\n', ""))
    assert load(path).name == "mine"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'name = "x"\nseed = = 3\n', "bad.toml:2: no valid TOML"),
        (b'name = "x"\n[data\n', "bad.toml:2: no valid TOML"),
        (b'name = """x', "bad.toml:1: no valid TOML"),
        (b'name = "x"\nname = "y"\n', "bad.toml:2: no valid TOML"),
        (b"\xff\xfe\x00", "begins like UTF-16 but is not"),
        (b'name = "x"\nseed = \xe4', "line 2: byte 0xe4 at 18 is not UTF-8"),
        (b"x = 1\n" * 300_000, "it must be a recipe in TOML, saved as UTF-8, of at most 1 MB"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path)
    assert part in str(caught.value)


def test_an_unknown_recipe_lists_the_shipped_ones_nearest_first(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load("sherlok")
    assert "did you mean sherlock?" in str(caught.value)
    assert "Shipped recipes: sherlock, activity, agent, arithmetic-grpo" in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)


def test_changes_name_each_key_that_matters() -> None:
    old = load(FULL)
    ignored = ["name=other", "description=x", "stage.1.train.log_every=1"]
    new = load(
        FULL, ["seed=3", "stage.1.train.steps=7", "stage.1.train.warmup_steps=1", "tokenizer.path=t.json", *ignored]
    )
    assert changes(old, new) == [
        "seed: 0 -> 3",
        "stage[1].train.steps: 300 -> 7",
        "stage[1].train.warmup_steps: 20 -> 1",
        'tokenizer.path: not set -> "t.json"',
    ]
    assert changes(old, old) == []


def test_changes_in_the_list_of_stages() -> None:
    old = to_dict(load(FULL))
    new = to_dict(load(FULL))
    new["stage"] = [*new["stage"][:3], {"kind": "evaluate"}]
    lines = changes(parse(Recipe, old), parse(Recipe, new))
    assert lines == ["stage[3]: dpo -> evaluate", "stage[4]: quantize -> nothing"]


texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Raw recipes of every kind of stage and with values at the edges, all of them right."""
    heads = draw(st.sampled_from([1, 2, 4]))
    train = st.fixed_dictionaries(
        {"steps": st.integers(1000, 10**9), "learning_rate": st.floats(1e-300, 10)},
        optional={
            "optimizer": st.sampled_from(["adamw", "adamw8bit", "muon"]),
            "schedule": st.sampled_from(["constant", "linear", "cosine", "wsd"]),
            "max_grad_norm": st.floats(0, 1e308),
            "weight_decay": st.integers(0, 10),
            "batch_tokens": st.integers(4096, 2**62),
        },
    )
    adapter = st.fixed_dictionaries(
        {}, optional={"rank": st.integers(1, 10**6), "target_modules": st.one_of(texts, st.lists(texts, max_size=3))}
    )
    stages: list[dict[str, Any]] = [{"kind": "tokenizer"}, {"kind": "pretrain", "train": draw(train)}]
    if draw(st.booleans()):
        stages.append({"kind": "finetune", "train": draw(train), "adapter": draw(adapter)})
    if draw(st.booleans()):
        stages.append({"kind": "dpo", "train": draw(train), "beta": draw(st.floats(1e-9, 1e9)), "evaluate": False})
    if draw(st.booleans()):
        stages.append({"kind": "quantize"})
    return {
        "name": draw(names),
        "description": draw(texts),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "data": {"database": draw(texts.filter(bool)), "validation": draw(st.floats(0, 1, exclude_max=True))},
        "model": {"hidden_size": 8 * heads, "num_attention_heads": heads, "tie_word_embeddings": draw(st.booleans())},
        "stage": stages,
        "evaluate": {"prompts": draw(st.lists(texts, max_size=3)), "temperatures": draw(st.lists(st.floats(0, 10)))},
        "next": draw(st.lists(texts, max_size=2)),
    }


@given(recipes())
@settings(max_examples=150, deadline=None)
def test_what_is_written_loads_as_it_was(raw: dict[str, Any]) -> None:
    recipe = parse(Recipe, raw)
    again = loads(dumps(recipe))
    assert again == recipe
    assert dumps(again) == dumps(recipe)
    assert changes(recipe, again) == []


@given(recipes(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_misspelt_key_anywhere_is_found_at_its_place(raw: dict[str, Any], data: st.DataObject) -> None:
    tables = list(_tables(raw, ()))
    place, table = data.draw(st.sampled_from(tables))
    table["unknown_key_x"] = 1
    with pytest.raises(InputError) as caught:
        parse(Recipe, raw)
    assert caught.value.problems[0].startswith(f"{format_place((*place, 'unknown_key_x'))}: unknown; ")
    assert len(caught.value.problems) == 1


def _tables(value: Any, place: tuple[str | int, ...]) -> Any:
    if isinstance(value, dict):
        yield place, value
        for key, item in value.items():
            yield from _tables(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _tables(item, (*place, index))


def test_no_optional_key_has_a_default_that_toml_cannot_take_away() -> None:
    """None is written by leaving a key out, which only works where None is also the default.

    Records of agents are JSON, which has a null of its own."""

    def classes(cls: type) -> Any:
        for sub in cls.__subclasses__():
            yield sub
            yield from classes(sub)

    from quatrain.agents import recorder
    from quatrain.core.settings import Settings

    load(FULL)
    found = [cls for cls in classes(Settings) if cls.__module__.startswith("quatrain.")]
    found = [cls for cls in found if cls.__module__ != recorder.__name__]
    assert len(found) > 10
    for cls in found:
        for name, field in cls.model_fields.items():
            takes_none = type(None) in typing.get_args(field.annotation)
            assert not takes_none or field.default is None, f"{cls.__name__}.{name}"


def test_checking_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys, quatrain.runs.recipe as r; r.load('quickstart', ['seed=1']); "
        "heavy = {'torch', 'numpy', 'rich', 'tokenizers', 'jinja2', 'safetensors'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_guide_holds(tmp_path: Path) -> None:
    """The recipe and the Python code of docs/recipes.md."""
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipe = loads(page.split("```toml\n")[1].split("```")[0])
    assert recipe.name == "mine"
    exec(page.split("```python\n")[1].split("```")[0], {})
    shown = page.split("```text\n")[1].split("```")[0]
    shown = shown.replace("llama, gpt2, mistral, qwen2, qwen3, …", FAMILIES).splitlines()
    with pytest.raises(InputError) as caught:
        load("quickstart", ["seed=x", "model.family=lama", "stage[1].train.lerning_rate=1"])
    assert f"error: {caught.value}".splitlines() == shown
    keys = set(Recipe.model_fields) | {
        key for field in ("data", "tokenizer", "evaluate") for key in type(getattr(recipe, field)).model_fields
    }
    assert {
        key for key in keys if f"`{key}" not in page and f"[[{key}]]" not in page and f"[{key}]" not in page
    } == set()
