"""PEFT's configurations: every key of its classes is honoured, harmless or refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_set import some
from tiny_models import llama, save_random

from quatrain.adapters import peft_files, peft_patterns
from quatrain.adapters.peft_config import (
    HARMLESS,
    HONOURED,
    REFUSED,
    TYPES,
    base_folder,
    problems_of,
    read_config,
    written_base,
)  # fmt: skip
from quatrain.adapters.peft_prompts import TYPES as PROMPT_TYPES
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.loading.model import load_model

peft = pytest.importorskip("peft", reason="the reference is not installed")
transformers = pytest.importorskip("transformers", reason="the reference is not installed")
from peft.tuners.tuners_utils import check_target_module_exists  # noqa: E402
from peft.utils.other import get_pattern_key  # noqa: E402
from peft.utils.peft_types import PeftType, TaskType  # noqa: E402

ALL = {str(kind.value): cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
READ = sorted({kind for kind in (*TYPES.values(), *PROMPT_TYPES.values()) if kind in ALL})
MORE: dict[str, dict[str, Any]] = {
    "IA3": {"target_modules": ["q_proj"], "feedforward_modules": []},
    **{kind: {"target_modules": ["q_proj"]} for kind in ("LORA", "LOHA", "LOKR")},
    **{kind: {"num_virtual_tokens": 3} for kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")},
}
IDS = torch.tensor([[5, 6, 7, 8]])
ENDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")
PATHS = [f"model.layers.{number}.{end}" for number in (0, 1, 10, 11) for end in ENDS]


def written(kind: str, folder: Path, **options: Any) -> dict[str, Any]:
    """What PEFT writes of a configuration."""
    ALL[kind](**MORE[kind] | options).save_pretrained(folder)
    config: dict[str, Any] = read_json(folder / "adapter_config.json")
    return config


@pytest.mark.parametrize("kind", READ)
def test_every_key_of_pefts_classes_is_in_one_table(kind: str, tmp_path: Path) -> None:
    known = [*HONOURED, *HARMLESS, *REFUSED, "init_lora_weights"]
    assert len(known) == len(set(known))
    assert {each.name for each in dataclasses.fields(ALL[kind])} - set(known) == set()
    assert list(problems_of(written(kind, tmp_path))) == []


def test_no_key_is_in_a_table_that_peft_does_not_know() -> None:
    fields = {each.name for kind in READ for each in dataclasses.fields(ALL[kind])}
    assert {*HONOURED, *HARMLESS, *REFUSED} - fields == set()
    assert {task.value for task in TaskType} == set(peft_files.TASKS.values())


def test_every_other_method_is_refused_by_name() -> None:
    for kind in (str(each.value) for each in PeftType if each.value not in READ):
        assert [f'peft_type: "{kind}"' in problem for problem in problems_of({"peft_type": kind})] == [True]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"), ("bias", "lora_only"), ("lora_bias", True), ("layer_replication", [[0, 1]]),
        ("target_parameters", ["experts.weight"]), ("alora_invocation_tokens", [1]), ("use_qalora", True),
        ("arrow_config", {"top_k": 2}), ("kasa_config", {"beta": 1.0}), ("monteclora_config", {"x": 1}),
        ("use_bdlora", {"nblocks": 2}), ("megatron_config", {"x": 1}), ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"), ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"), ("init_lora_weights", "lora_ga"), ("init_lora_weights", "of_tomorrow"),
        ("init_lora_weights", 3), ("of_tomorrow", 0.5), ("task_type", "NOTHING"),
    ],
)  # fmt: skip
def test_what_changes_the_result_is_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    problems = list(problems_of(written("LORA", tmp_path) | {key: value}))
    assert len(problems) == 1 and key in problems[0].partition(":")[0], problems


@pytest.mark.parametrize("beginning", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_beginnings_that_leave_the_base_are_read(beginning: Any, tmp_path: Path) -> None:
    assert list(problems_of(written("LORA", tmp_path) | {"init_lora_weights": beginning, "of_tomorrow": None})) == []


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from([10**30, -(10**30), 2**63]),
    st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=5), st.just("("), st.just("a" * 5000),
    st.lists(st.one_of(st.none(), st.text(max_size=2), st.integers()), max_size=2),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(), st.text(max_size=2)), max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(READ), st.data())
def test_any_value_at_any_keys_ends_in_problems_that_name_them(kind: str, data: st.DataObject) -> None:
    cls = ALL[kind]
    config = json.loads(json.dumps({"peft_type": kind} | MORE[kind] | {"r": 4, "lora_alpha": 8, "alpha": 8}))
    keys = data.draw(st.lists(st.sampled_from([each.name for each in dataclasses.fields(cls)]), max_size=3))
    config |= {key: data.draw(WRONG) for key in keys}
    for problem in problems_of(config):
        assert any(key in problem for key in (*keys, "layers_to_transform", "layers_pattern"))


def test_wrong_types_are_all_told_at_once(tmp_path: Path) -> None:
    config = written("LORA", tmp_path) | {
        "r": "8", "lora_alpha": float("nan"), "lora_dropout": -1, "target_modules": 3, "use_dora": "yes",
        "rank_pattern": {"q_proj": 0}, "alpha_pattern": [1], "modules_to_save": {"a": 1},
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        read_config(tmp_path)
    named = {problem.partition(":")[0] for problem in caught.value.problems}
    assert len(caught.value.problems) == 8 and named == {
        "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "rank_pattern", "alpha_pattern",
        "modules_to_save",
    }  # fmt: skip


# Patterns

ATOMS = st.sampled_from(
    [".*", r"layers\.1", "layers.1", "1", r"\.", "q_proj", "k_proj", "up", "[qk]_proj", "(q|k)_proj", "^model", "$",
     "self_attn", r"\d+", "mlp.up", "model.layers.0.self_attn.q_proj", "x", "|", r"\d{2}", "(1.)?"]
)  # fmt: skip
PATTERN = st.lists(ATOMS, min_size=1, max_size=4).map("".join)


def compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
        re.compile(pattern)
    except re.error:
        return False
    return True


GOOD = PATTERN.filter(compiles)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(GOOD, st.integers(1, 9), max_size=4))
def test_patterns_choose_as_peft_does(patterns: dict[str, int]) -> None:
    expected = {path: patterns.get(get_pattern_key(patterns.keys(), path), 0) for path in PATHS}
    assert peft_patterns.first_matching(patterns, PATHS, 0) == expected


NAMES = st.lists(st.sampled_from(["q_proj", "self_attn.k_proj", "up", "proj", "model.layers.1.mlp.up", "1.mlp.up"]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_targets_are_those_of_peft(data: st.DataObject) -> None:
    options = {
        "target_modules": data.draw(st.one_of(NAMES, GOOD)),
        "exclude_modules": data.draw(st.one_of(st.none(), NAMES, GOOD)),
        "modules_to_save": data.draw(st.one_of(st.none(), NAMES)),
    }
    if isinstance(options["target_modules"], list):
        number = st.integers(0, 11)
        options["layers_to_transform"] = data.draw(st.one_of(st.none(), number, st.lists(number)))
        if options["layers_to_transform"] is not None:
            options["layers_pattern"] = data.draw(st.sampled_from([None, [], "layers", ["h", "layers"], "h"]))
    config = peft.LoraConfig(**options)
    expected = {path for path in PATHS if check_target_module_exists(config, path)}
    assert peft_patterns.targeted(options, PATHS) == expected


SLOW_PATTERNS = ["(a+)+$", r"(.*)*\.x", r"(\w+)*_?!", ".*.*.*.*.*.*.*.*.*.*.*.*!"]


@pytest.mark.parametrize("pattern", some(SLOW_PATTERNS, SLOW_PATTERNS[:1]))
def test_a_pattern_that_takes_forever_is_stopped(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_patterns, "SECONDS", 1)
    paths = ["a" * 60 + "!."]
    try:
        assert peft_patterns.targeted({"target_modules": pattern}, paths) == set()
    except InputError as error:
        assert error.problems == [json.dumps(pattern)]


# SavedModules models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(llama(num_hidden_layers=3), tmp_path_factory.mktemp("base"))


def theirs(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base).eval()


def made_by_peft(base: Path, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": False} | options
    model = peft.get_peft_model(theirs(base), peft.LoraConfig(task_type="CAUSAL_LM", **wanted)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"alpha_pattern": {r".*layers\.1\..*q_proj": 64}},
        {"alpha_pattern": {r"^model\.layers\.[02]\..*": 1, "q_proj": 32}, "rank_pattern": {r"layers\.(1|2)\..*": 2}},
        {"rank_pattern": {"(q|k)_proj": 3}, "use_rslora": True, "target_modules": ["q_proj", "k_proj"]},
        {"target_modules": r".*\.(q|up)_proj", "exclude_modules": r".*layers\.0\..*"},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"layers_to_transform": 1},
        {"modules_to_save": ["lm_head", "layers.1.mlp.up_proj"]},
    ],
)
def test_options_over_layers_give_pefts_logits(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    model = made_by_peft(base, tmp_path / "adapter", **options)
    ours, _ = load_model(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0], model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [
    {"target_modules": ["query_key_value", "lm_head"], "alpha_pattern": {"lm_head": 64}},
    {"target_modules": ["query_key_value"], "modules_to_save": ["lm_head"]},
], ids=["adapter", "whole"])  # fmt: skip
def test_a_head_under_its_newer_name_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "base")
    model = made_by_peft(tmp_path / "base", tmp_path / "adapter", **options)
    ours, _ = load_model(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0], model(IDS).logits, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(GOOD, st.integers(1, 60), max_size=3), st.dictionaries(GOOD, st.integers(1, 6), max_size=3),
    st.booleans(), st.sampled_from([["q_proj", "up_proj"], r".*layers\.[01]\..*_proj", "all-linear"]),
)  # fmt: skip
def test_random_patterns_give_pefts_logits(
    base: Path, tmp_path_factory: pytest.TempPathFactory, alphas: dict[str, int], ranks: dict[str, int], root: bool,
    targets: Any,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("adapter")
    alphas, ranks = dict(sorted(alphas.items())), dict(sorted(ranks.items()))  # as PEFT writes them; the first counts
    model = made_by_peft(
        base, folder, alpha_pattern=alphas, rank_pattern=ranks, use_rslora=root, target_modules=targets
    )
    ours, _ = load_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0], model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exclude_modules": ["q_proj"]}, "leave it out"),
        ({"layers_to_transform": [0]}, "leave it out"),
        ({"target_modules": ["q_proj", "k_proj"]}, "its weights are missing"),
        ({"modules_to_save": ["norm"]}, "missing, and modules_to_save names it"),
        ({"rank_pattern": {"q_proj": 3}}, "r and rank_pattern say 3"),
        ({"r": 3}, "r and rank_pattern say 3"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(
    base: Path, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made_by_peft(base, tmp_path)
    place = tmp_path / "adapter_config.json"
    place.write_text(json.dumps(read_json(place) | change))
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert all(said in problem for problem in caught.value.problems) and caught.value.problems


# Broken files beside it


@pytest.mark.parametrize("how", ["empty", "number", "whole numbers", "not a number", "wider", "flat"])
def test_broken_weights_are_refused_by_name(base: Path, how: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made_by_peft(base, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = {
        "empty": tensors[name][:0], "number": torch.zeros(()), "whole numbers": tensors[name].int(),
        "not a number": tensors[name] * float("nan"), "wider": torch.zeros(4, 99), "flat": tensors[name].flatten(),
    }[how]  # fmt: skip
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert name.partition(".lora")[0] in str(caught.value.problems)


@pytest.mark.parametrize("labels", ["{", "[]", "3", '{"labels": 3}', '{"labels": [1]}', '{"labels": []}',
                                    '{"labels": ["a"], "problem_type": "none"}',
                                    '{"problem_type": "single_label"}'])  # fmt: skip
def test_broken_labels_are_refused(base: Path, labels: str, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path)
    place = tmp_path / "adapter_config.json"
    place.write_text(json.dumps(read_json(place) | {"task_type": "SEQ_CLS"}))
    (tmp_path / "labels.json").write_text(labels)
    with pytest.raises(InputError, match=r"labels\.json"):
        load_model(tmp_path)


def test_token_ids_beyond_all_measure_are_refused(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path, trainable_token_indices=[1, 2])
    place = tmp_path / "adapter_config.json"
    for ids in ([1, 10**9], [1, 2**31 - 1], [1, 10**30], [1, 1], [1], [-1, 2], [], {"nothing": [1, 2]}):
        place.write_text(json.dumps(read_json(place) | {"trainable_token_indices": ids}))
        with pytest.raises(InputError):
            load_model(tmp_path)


# Where the base is


def test_the_base_is_found_from_anywhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "model").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    made_by_peft(base, tmp_path / "adapter")
    model, _ = load_model("adapter")
    for given_as in ("model", "../model", str(base)):
        peft_files.save_adapter(model, "written", base_model=given_as)
        said = read_json(tmp_path / "written" / "adapter_config.json")["base_model_name_or_path"]
        assert Path(said).is_absolute()
        monkeypatch.chdir(tmp_path / "here")
        assert base_folder("../written").samefile(base)
        assert peft.AutoPeftModelForCausalLM.from_pretrained("../written") is not None
        monkeypatch.chdir(tmp_path)
    assert written_base(tmp_path, "org/name") == "org/name"
    assert written_base(tmp_path, "") is None


def test_absolute_then_beside_the_adapter_then_here(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_peft(base, tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(read_json(place) | {"base_model_name_or_path": "model"}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(base)
    assert base_folder("adapter") == Path("model")
    (tmp_path / "adapter" / "model").symlink_to(base)
    assert base_folder("adapter") == (tmp_path / "adapter" / "model").resolve()
    for name in ("no such folder", "\0", "a" * 5000, "~nosuch/x"):
        place.write_text(json.dumps(read_json(place) | {"base_model_name_or_path": name}))
        with pytest.raises(InputError):
            base_folder("adapter")
