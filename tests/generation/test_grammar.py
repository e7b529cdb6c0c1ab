"""Constrained output always matches, whatever the model wants; what cannot be followed is refused, never ignored."""

import json
import os
import re
import string
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model

from quatrain.core.errors import InputError
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.constraints import GenerationRules
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.params import MAX_GRAMMAR
from quatrain.generation.requests import SequenceState
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = string.printable * 2 + "The cat sat on the mat; é 日本語 {\"name\": [1, 2, true, null]} 'Don't'"
KINDS = {
    "byte-level": {"kind": "bpe", "vocab_size": 340},
    "bytes as a fallback": {"kind": "unigram", "vocab_size": 420},
    "characters": {"kind": "char"},
}
TOKENIZERS = {name: Tokenizer.train([TEXT] * 20, **options) for name, options in KINDS.items()}
FUZZ = settings(
    deadline=None, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")), suppress_health_check=list(HealthCheck)
)


def written(tokenizer, seed=0, *, limit=400, ends=True, **params):
    """A completion under random logits that favour the end and the closing of what is open."""
    size = tokenizer.vocab_size + 7
    end = size - 1
    chooser = TokenChooser(tokenizer=tokenizer)
    asked = SamplingParams(max_new_tokens=limit, temperature=1.0, **params)
    chooser.check(asked, size)
    state = SequenceState([1], asked, limit, seed, (end,) if ends else ())
    generator = torch.Generator().manual_seed(seed)
    bias = torch.zeros(size)
    bias[end] = 3.0
    for closing in '"}])':
        if (token := tokenizer.token_to_id(closing)) is not None:
            bias[token] = 4.0
    while state.finished is None:
        logits = torch.randn(1, size, generator=generator) + bias
        choice = chooser.choose(logits, [state])
        choice.append_to([state])
    text = tokenizer.decode(state.ids[:-1] if state.ended else state.ids)
    return text, state.finished


# ---- JSON schemas ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "name", "é", "x y", 'q"', "日本", "back\\slash"])
LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 3},
        {"type": "string", "minLength": 2, "maxLength": 4},
        {"type": "integer", "minimum": -3, "maximum": 120},
        {"enum": ["red", 3, None, True, "é\n"]},
        {"const": {"deep": [1]}},
        {"type": ["string", "null"]},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
    ]
)


def _larger(inner):
    objects = st.dictionaries(NAMES, inner, max_size=3).flatmap(
        lambda properties: st.builds(
            lambda required, more: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": more,
            },
            st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
            st.just(False),
        )
    )
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    return objects | arrays | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))


SCHEMAS = st.recursive(LEAVES, _larger, max_leaves=6)
TYPES = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def accepts(schema, value):
    """Whether a value is valid, for the keywords above."""
    if "anyOf" in schema:
        return any(accepts(option, value) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return any(json.dumps(value) == json.dumps(each) for each in schema.get("enum", [schema.get("const")]))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(
        (number and (name == "number" or isinstance(value, int) or value.is_integer())) if name in ("number", "integer")
        else isinstance(value, TYPES[name])
        for name in named
    ):  # fmt: skip
        return False
    if number:
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return fits and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, list):
        fits = schema["minItems"] <= len(value) <= schema["maxItems"]
        return fits and all(accepts(schema["items"], each) for each in value)
    if isinstance(value, dict):
        known = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(known) and all(accepts(known[k], value[k]) for k in value)
    return True


@given(schema=SCHEMAS, seed=st.integers(0, 99), kind=st.sampled_from(sorted(TOKENIZERS)), ends=st.booleans())
@FUZZ
def test_json_is_valid_for_its_schema(schema, seed, kind, ends):
    text, finished = written(TOKENIZERS[kind], seed, ends=ends, json_schema=schema)
    if finished == "stop":
        assert accepts(schema, json.loads(text)), text
    else:
        assert len(text) >= 100, "cut only at its limit"


def test_any_json_and_recursive_schemas():
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
    }
    for seed in range(5):
        for schema in (True, {}, {"type": "object"}, json.dumps({"type": "array"}), tree):
            text, finished = written(TOKENIZERS["byte-level"], seed, json_schema=schema)
            assert finished == "length" or json.loads(text) is not NotImplemented


# ---- regular expressions and grammars --------------------------------------------------------------------------------

CHARACTERS = st.sampled_from(["a", "b", " ", "é", "日", '"', "\\.", "\\n", "[a-f0-9]", "[^a-z]", "."])
EXPRESSIONS = st.recursive(
    CHARACTERS,
    lambda inner: (
        st.builds(lambda parts: "".join(parts), st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda parts: "(" + "|".join(parts) + ")", st.lists(inner, min_size=1, max_size=3))
        | st.builds(
            lambda part, times: f"({part}){times}", inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{0,40}"])
        )
    ),
    max_leaves=8,
)


@given(expression=EXPRESSIONS, seed=st.integers(0, 99), kind=st.sampled_from(sorted(TOKENIZERS)))
@FUZZ
def test_a_text_matches_its_expression(expression, seed, kind):
    try:
        text, finished = written(TOKENIZERS[kind], seed, limit=120, regex=expression)
    except InputError as error:
        assert "too many expressions" in str(error), "only what explodes, and then in words"
        return
    assert finished == "length" or re.fullmatch(expression, text), (expression, text)


@given(expression=st.text(st.sampled_from("ab[]^-(){}|*+?.\\d0,$é"), max_size=30), seed=st.integers(0, 9))
@FUZZ
def test_any_expression_is_followed_or_refused(expression, seed):
    try:
        text, finished = written(TOKENIZERS["byte-level"], seed, limit=40, regex=expression)
    except InputError:
        return
    assert finished == "length" or re.fullmatch(_of_python(expression), text), (expression, text)


def _of_python(expression):
    """Rust's classes have set operations, its digits are Unicode's, and a + after a quantifier is no possessive one."""
    try:
        re.compile(expression)
    except re.error:
        return r"[\s\S]*"  # Rust's syntax only: that it is followed is enough
    return expression if not re.search(r"\[.*[\[&~-].*\]|\\d|[$^]|[?*+}]\+", expression) else r"[\s\S]*"


@given(words=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6), seed=st.integers(0, 99))
@FUZZ
def test_a_choice_is_one_of_the_texts(words, seed):
    text, finished = written(TOKENIZERS["byte-level"], seed, limit=200, choice=words)
    assert finished == "stop" and text in words


def balanced(text):
    while "()" in text:
        text = text.replace("()", "")
    return not text


def test_a_grammar_is_followed():
    for kind, tokenizer in TOKENIZERS.items():
        for seed in range(5):
            text, finished = written(tokenizer, seed, grammar='start: pair*\npair: "(" pair* ")"')
            assert finished == "length" or balanced(text), (kind, text)
            text, _ = written(tokenizer, seed, grammar='start: NAME ("," NAME)* "."\nNAME: /[a-z]{1,4}/')
            assert re.fullmatch(r"[a-z]{1,4}(,[a-z]{1,4})*\.", text)


@given(
    grammar=st.text(st.sampled_from('start: ab"/|()*+?\n[]A~1.%{}<>@'), max_size=40).map(lambda rest: "start: " + rest)
)
@FUZZ
def test_any_grammar_is_followed_or_refused(grammar):
    try:
        written(TOKENIZERS["byte-level"], limit=30, grammar=grammar)
    except InputError as error:
        assert str(error)


# ---- refused, not crashed --------------------------------------------------------------------------------------------


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chained(count):
    definitions = {f"a{place}": {"$ref": f"#/$defs/a{place + 1}"} for place in range(count)}
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{count}": {"type": "string"}}}


LONG_CHAIN = "start: a0\n" + "\n".join(f"a{place}:a{place + 1}" for place in range(14000)) + '\na14000: "x"'


@pytest.mark.parametrize(
    "asked",
    [
        {"json_schema": nested(900)},
        {"json_schema": {"type": "strng"}},
        {"json_schema": False},
        {"json_schema": {"not": {"type": "string"}}},
        {"json_schema": {"type": "number", "minimum": 3, "maximum": 2}},
        {"json_schema": {"$ref": "#/nowhere"}},
        {"json_schema": {"type": "string", "pattern": "(?=a)b"}},
        {"json_schema": "{"},
        {"json_schema": "[1]"},
        {"json_schema": {"enum": [float("nan")]}},
        {"json_schema": {"enum": ["x" * MAX_GRAMMAR]}},
        {"json_schema": "[" * 100_000},
        {"regex": "(" * 50_000 + "a" + ")" * 50_000},
        {"regex": "[unclosed"},
        {"regex": ".*" * 3000},
        {"regex": r"(a)\1"},
        {"regex": "a(?=b)"},
        {"regex": "\ud800"},
        {"regex": ""},
        {"regex": r"[^\s\S]"},
        {"grammar": "start: (" * 20_000},
        {"grammar": "start: start"},
        {"grammar": "nothing"},
        {"grammar": "start: @missing"},
        {"grammar": 'start: A\nA: A "x" | "y"'},
        {"grammar": 'start: %json {"type": "strng"}'},
        {"choice": [""]},
        {"choice": [1]},
        {"choice": ["\ud800"]},
        {"regex": "a", "choice": ["a"]},
        {"regex": "a", "stop": "b"},
        {"regex": "a", "ignore_eos": True},
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_what_cannot_be_followed_is_refused_before_a_token(asked):
    with pytest.raises(InputError):
        params = SamplingParams(**asked)
        chooser = TokenChooser(tokenizer=TOKENIZERS["byte-level"])
        chooser.check(params, 500)


@pytest.mark.parametrize(
    "asked",
    [
        {"json_schema": chained(3000)},
        {"json_schema": nested(120)},
        {"grammar": LONG_CHAIN},
        {"regex": "(a{1,1000}){1,1000}"},
        {"regex": "(x+x+)+y"},
        {"regex": "(a|b)*a(a|b){18}"},
        {"regex": "a" * 50_000},
        {"choice": ["same"] * 50_000},
        {"choice": [f"v{place}" for place in range(9000)]},
        {"json_schema": {"enum": [f"v{place}" for place in range(9000)]}},
        {"json_schema": {"type": "string", "minLength": 100_000}},
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_what_is_large_or_explosive_is_followed_in_time(asked):
    written(TOKENIZERS["byte-level"], limit=5, **asked)


def test_a_row_that_becomes_too_complex_fails_alone():
    tokenizer = TOKENIZERS["byte-level"]
    options = [{"type": "object", "properties": {f"k{place}": {"type": "string"}}} for place in range(2500)]
    complex_one = SamplingParams(20, json_schema={"anyOf": options})
    plain = SamplingParams(20, choice=["yes", "no"])
    chooser = TokenChooser(tokenizer=tokenizer)
    states = [SequenceState([1], params, 20, 0) for params in (complex_one, plain)]
    failed = None
    for step in range(10):
        active = [state for state in states if state.finished is None]
        logits = torch.randn(len(active), tokenizer.vocab_size, generator=torch.Generator().manual_seed(step))
        choice = chooser.choose(logits, active)
        failed = failed or choice.problems[0]
        if failed or not active:
            break
        choice.append_to(active)
    assert isinstance(failed, InputError) and "cannot be followed further" in str(failed)
    assert choice.problems[1:] in ([], [None])


# ---- together with the rest ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    tokenizer = TOKENIZERS["byte-level"]
    return Engine(random_model(llama(vocab_size=tokenizer.vocab_size + 1)), tokenizer, end_ids=[tokenizer.vocab_size])


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def test_rows_of_a_batch_follow_their_own_grammars(engine):
    params = SamplingParams(60, temperature=1.0, seed=0, json_schema=SCHEMA, num_return_sequences=3)
    together = engine.generate([[5], [6, 7]], params)
    for prompt, completion in zip(([5], [6, 7]), together, strict=True):
        (alone,) = engine.generate([prompt], params)
        assert alone.ids == completion.ids
        for each in (completion, *completion.alternatives):
            assert each.finish_reason == "length" or accepts(SCHEMA, json.loads(each.text)), each.text
    pieces = list(engine.stream([5], SamplingParams(60, regex="[a-c]{3}-[0-9]{2}")))
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", "".join(pieces)) and pieces[-1].completion.finish_reason == "stop"


def test_beams_follow_a_grammar(engine):
    params = SamplingParams(40, num_beams=4, num_return_sequences=4, choice=["yes", "no", "yes indeed", "never"])
    (best,) = engine.generate([[5, 6]], params)
    texts = [each.text for each in (best, *best.alternatives)]
    assert set(texts) <= set(params.choice) and len(set(texts)) == len(texts) > 1
    (schema,) = engine.generate([[5, 6]], SamplingParams(60, num_beams=3, json_schema=SCHEMA))
    assert schema.finish_reason == "length" or accepts(SCHEMA, json.loads(schema.text))


def test_tokens_that_are_taken_back_are_forgotten(engine):
    tokenizer = engine.tokenizer
    params = SamplingParams(30, regex="(ab|cd)+e")
    chooser, state = TokenChooser(tokenizer=tokenizer), SequenceState([1], params, 30, 0)
    logits = torch.zeros(1, tokenizer.vocab_size)
    first, second = tokenizer.token_to_id("a"), tokenizer.token_to_id("c")
    assert chooser.process(logits, [state])[0, second] == 0
    state.append(first, 0.0)
    assert chooser.process(logits, [state])[0, second] == float("-inf")
    state.truncate(0)
    assert chooser.process(logits, [state])[0, second] == 0


def test_rules_of_the_model_do_not_break_a_grammar():
    """A forced first token is not part of the text, and a forced end does not cut it."""
    tokenizer = TOKENIZERS["byte-level"]
    end = tokenizer.vocab_size
    rules = GenerationRules(forced_bos_token_id=0, forced_eos_token_id=(end,), min_length=9)
    chooser = TokenChooser(rules, encoder_decoder=True, tokenizer=tokenizer)
    for params in (SamplingParams(12, choice=["yes", "no"]), SamplingParams(2, choice=["yes", "no"])):
        state = SequenceState([1, 2], params, params.max_new_tokens, 0, (end,), (0,))
        while state.finished is None:
            chooser.choose(torch.zeros(1, end + 1), [state]).append_to([state])
        assert state.ids[0] == 0
        assert tokenizer.decode(state.ids) in ("yes", "no") or state.finished == "length"
        assert end not in state.ids


def test_the_first_space_that_decoding_drops():
    """SentencePiece's decoders drop the space of the first token: its text is what must match."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    pieces = ["<unk>", "▁", "▁yes", "yes", "▁no", "n", "o", "y", "e", "s", "▁y"]
    backend = Backend(models.BPE({piece: place for place, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>"])
    tokenizer = Tokenizer(backend)
    chooser = TokenChooser(tokenizer=tokenizer)
    state = SequenceState([1], SamplingParams(9, choice=["yes", "no"]), 9, 0)
    allowed = chooser.process(torch.zeros(1, 11), [state])[0].isfinite().nonzero()[:, 0].tolist()
    assert [pieces[token] for token in allowed] == ["▁yes", "yes", "n", "y", "▁y"], "no token is n with a space"
    for first, rest in ((2, []), (10, ["e", "s"]), (3, [])):
        state = SequenceState([1], SamplingParams(9, choice=["yes", "no"]), 9, 0)
        for token in [first, *map(pieces.index, rest)]:
            bias = torch.zeros(1, 11)
            bias[0, token] = 1
            chooser.choose(bias, [state]).append_to([state])
        assert tokenizer.decode(state.ids) == "yes" and state.finished == "stop"


def test_a_tokenizer_that_lacks_a_character_is_refused_before_a_token():
    tokenizer = Tokenizer.train(["only small letters"] * 9, kind="char")
    chooser = TokenChooser(tokenizer=tokenizer)
    with pytest.raises(InputError, match="json_schema: no token of this model can begin such a text"):
        chooser.check(SamplingParams(json_schema={"type": "object"}), 99)
    chooser.check(SamplingParams(regex="[a-z ]+"), 99)
    for wrong in ({"regex": "only sméll"}, {"regex": "(on|ly) ?(X|[0-9])"}, {"choice": ("only!", "small?")}):
        with pytest.raises(
            InputError, match=r"cannot write any such text to its end|no token of this model can begin such"
        ):
            chooser.check(SamplingParams(**wrong), 99)
    for fine in ({"regex": "only sm(é|a)ll"}, {"regex": "(on|ly)*"}, {"choice": ("only!", "small")}):
        chooser.check(SamplingParams(**fine), 99)
    with pytest.raises(InputError, match="cannot be used with this model"):
        TokenChooser().check(SamplingParams(regex="a"), 99)


def test_beams_follow_schemas(engine):
    generator = torch.Generator().manual_seed(0)
    for number, schema in enumerate([SCHEMA, {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, {}]):
        prompt = torch.randint(0, 200, (3,), generator=generator).tolist()
        params = SamplingParams(30, num_beams=3, num_return_sequences=3, json_schema=schema)
        if number == 1:
            params = SamplingParams(
                30, num_beams=4, num_beam_groups=2, diversity_penalty=1.0, num_return_sequences=4, json_schema=schema
            )
        (best,) = engine.generate([prompt], params)
        for each in (best, *best.alternatives):
            assert each.finish_reason == "length" or json.loads(each.text) is not NotImplemented


def test_threads_compile_and_follow_side_by_side(engine):
    """More schemas than are kept, submitted by several threads while another one steps."""
    choices = [(f"a{place}", f"b{place}", "c") for place in range(90)]
    found = {}

    def submit(part):
        for number in range(part, len(choices), 3):
            request = engine.submit([5, number], SamplingParams(9, choice=choices[number]))
            found[number] = request.result().text

    threads = [threading.Thread(target=submit, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(choices)
    assert all(found[number] in choices[number] for number in found)
