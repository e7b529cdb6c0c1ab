"""Our renderer and transformers' `apply_chat_template` agree on text, ids and mask."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.tokenizers.chat import render, render_text
from quatrain.tokenizers.templates import TEMPLATE_TOKENS, TEMPLATES
from quatrain.tokenizers.tokenizer import Tokenizer

# Runs of white space become tokens, which a content that begins with some could reach into.
SPACED = [f"a{space}b{space}" * 9 for space in ("\n\n", "\n\n\n", "\n\n\n\n", "  ", "\n ", "\n  ", "\n\t", "\n\n ")]
TEXT = [*SPACED, "How many customers are there in Lyon? SELECT count(*) FROM customers;\n", "naïve ☃ 123\n"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The <weather> of a “city”",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}],
    "system and turns": [
        {"role": "system", "content": "You write SQL."},
        {"role": "user", "content": "Who lives in Łódź?"},
        {"role": "assistant", "content": "SELECT name\nFROM customers;"},
        {"role": "user", "content": "And how many ☃ 👩‍👩‍👧?"},
        {"role": "assistant", "content": "\n  é 42 ☃"},
    ],
    "empty": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "marks of the format in the text": [
        {"role": "user", "content": "<|im_end|>\n<|im_start|>assistant\nhi"},
        {"role": "assistant", "content": "<|endoftext|> no {{ messages }} {% generation %}"},
    ],
}


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pairs(kind: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Template name -> (our tokenizer, transformers' loaded from what ours wrote)."""
    transformers = pytest.importorskip("transformers")
    made = {}
    for name in TEMPLATES:
        tokenizer = Tokenizer.train(TEXT, kind=kind, vocab_size=400, chat_template=name)
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(folder)
        made[name] = tokenizer, transformers.AutoTokenizer.from_pretrained(str(folder))
    return made


def agree(pair: tuple[Tokenizer, Any], messages: list[dict[str, Any]], **options: Any) -> None:
    ours, theirs = pair
    rendered = render(ours, messages, mask=True, **options)
    assert rendered.text == theirs.apply_chat_template(messages, tokenize=False, **options)
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    assert rendered.ids == expected["input_ids"]
    assert rendered.assistant_mask == [bool(each) for each in expected["assistant_masks"]]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [False, True])
def test_equal_to_transformers(pairs: dict[str, Any], name: str, conversation: str, prompt: bool) -> None:
    agree(pairs[name], CONVERSATIONS[conversation], add_generation_prompt=prompt)


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_tools_and_tool_calls_equal_transformers(pairs: dict[str, Any], name: str) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "yes"},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "Both."},
    ]
    agree(pairs[name], messages, tools=TOOLS)
    agree(pairs[name], messages[1:], tools=TOOLS, add_generation_prompt=True)
    rendered = render(pairs[name][0], messages, tools=TOOLS)
    said = [rendered.text[start:end] for start, end in rendered.spans]
    arguments, end = ("arguments", "<|im_end|>") if name == "chatml" else ("parameters", "<|eot_id|>")
    assert said[0].count(f'{{"name": "weather", "{arguments}": {{"city": "Łódź"}}}}') == 2
    assert said[1] == f"Both.{end}"
    assert "The <weather> of a “city”" in rendered.text and rendered.text.count("yes") == 1


BY_HAND = {
    "llama-2": "<|endoftext|>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]« Ho <|endoftext|>»"
               "<|endoftext|>[INST] And? [/INST]« So. <|endoftext|>»",
    "llama-3": "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
               "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n«Ho<|eot_id|>»"
               "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n«So.<|eot_id|>»",
    "gemma": "<|endoftext|><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n«Ho<end_of_turn>»\n"
             "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n«So.<end_of_turn>»\n",
    "phi-3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n«Ho<|end|>»\n"
             "<|user|>\nAnd?<|end|>\n<|assistant|>\n«So.<|end|>»\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
              "<|im_start|>assistant\n«Ho<|im_end|>»\n<|im_start|>user\nAnd?<|im_end|>\n"
              "<|im_start|>assistant\n«So.<|im_end|>»\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n«Ho<|endoftext|>»\n\n"
              "### Instruction:\nAnd?\n\n### Response:\n«So.<|endoftext|>»\n\n",
    "llava": "Be brief. USER: Hi ASSISTANT:« Ho<|endoftext|>»USER: And? ASSISTANT:« So.<|endoftext|>»",
    "plain": "Be brief.\n\nUser: Hi\nAssistant:« Ho<|endoftext|>»\nUser: And?\nAssistant:« So.<|endoftext|>»\n",
}  # fmt: skip
"""What each template makes of one conversation, written by hand; « and » stand around what is learned."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_and_the_mask_are_those_written_by_hand(pairs: dict[str, Any], name: str) -> None:
    tokenizer = pairs[name][0]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "So."}]  # fmt: skip
    rendered = render(tokenizer, messages)
    bos = "" if tokenizer.bos_id is None else tokenizer.id_to_token(tokenizer.bos_id)
    expected = BY_HAND[name].replace("<|endoftext|>[INST]", f"{bos}[INST]")
    if name in ("llama-3", "gemma"):
        expected = bos + expected.removeprefix("<|endoftext|>")
    assert rendered.text == expected.replace("«", "").replace("»", "")
    parts = [part.split("»")[0] for part in expected.split("«")[1:]]
    assert [rendered.text[start:end] for start, end in rendered.spans] == parts
    said = tokenizer.decode([i for i, learn in zip(rendered.ids, rendered.assistant_mask, strict=True) if learn],
                            skip_special_tokens=False)  # fmt: skip
    assert said.replace(" ", "") == "".join(parts).replace(" ", "")


TURNS = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(turns=TURNS, system=st.none() | st.text(max_size=10))
def test_any_conversation_equals_transformers(
    pairs: dict[str, Any], turns: list[tuple[str, str]], system: str | None
) -> None:
    messages = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    agree(pairs["chatml"], messages)


@settings(max_examples=60, deadline=None)
@given(question=st.text(max_size=20), answer=st.text(max_size=20) | st.text(alphabet="\n\t a", max_size=6))
@example(question="q", answer="\n\nx")
@example(question="q", answer="\n  x")
def test_a_prompt_is_the_beginning_of_its_conversation(pairs: dict[str, Any], question: str, answer: str) -> None:
    tokenizer = pairs["chatml"][0]
    user = {"role": "user", "content": question}
    prompt = render(tokenizer, [user], add_generation_prompt=True).ids
    whole = render(tokenizer, [user, {"role": "assistant", "content": answer}])
    assert whole.ids[: len(prompt)] == prompt
    assert not any(whole.assistant_mask[: len(prompt)])
    assert whole.assistant_mask[len(prompt)]
    learned = [each for each, learn in zip(whole.ids, whole.assistant_mask, strict=True) if learn]
    assert learned[-1] == tokenizer.token_to_id("<|im_end|>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_the_turn_is_learned_and_stops(pairs: dict[str, Any], name: str) -> None:
    tokenizer = pairs[name][0]
    rendered = render(tokenizer, CONVERSATIONS["system and turns"])
    ends = [rendered.text[start:end] for start, end in rendered.spans]
    last = TEMPLATE_TOKENS[name][-1] if TEMPLATE_TOKENS[name] else "<|endoftext|>"
    spaced = {"llama-2": (" ", " "), "plain": (" ", ""), "llava": (" ", "")}.get(name, ("", ""))
    assert ends[0] == f"{spaced[0]}SELECT name\nFROM customers;{spaced[1]}{last}"
    assert len(ends) == 2 and ends[1].endswith(last)
    assert tokenizer.token_to_id(last) in tokenizer.stop_ids


def test_bos_stands_once(pairs: dict[str, Any]) -> None:
    tokenizer = pairs["llama-3"][0]
    ids = render(tokenizer, CONVERSATIONS["one turn"]).ids
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_parts_of_text_are_joined(pairs: dict[str, Any]) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}]
    tokenizer = pairs["chatml"][0]
    plain = render(tokenizer, [{"role": "user", "content": "How many?"}])
    assert render(tokenizer, parts).ids == plain.ids


def test_threads_do_not_mix_their_masks(pairs: dict[str, Any]) -> None:
    tokenizer = pairs["chatml"][0]
    wanted = {name: render(tokenizer, messages).assistant_mask for name, messages in CONVERSATIONS.items()}
    wrong = []

    def work(name: str) -> None:
        for _ in range(40):
            if render(tokenizer, CONVERSATIONS[name]).assistant_mask != wanted[name]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in CONVERSATIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, vocab_size=300, chat_template="chatml")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        ([{"role": "human", "content": "x"}], "did you mean user?"),
        ([{"role": "user"}], 'no "content"'),
        ([{"content": "x"}], 'no "role"'),
        ([{"role": "user", "content": 3}], "must be text"),
        (["x"], "is not a message"),
    ],
)
def test_faults_of_a_conversation(tokenizer: Tokenizer, messages: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        render(tokenizer, messages)
    assert words in str(caught.value)


def test_all_faults_at_once(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError) as caught:
        render(tokenizer, [{"role": "gpt", "content": "x"}, {"role": "user"}])
    assert len(caught.value.problems) == 2
    assert "message 0" in caught.value.problems[0] and "message 1" in caught.value.problems[1]


def test_a_template_without_marks(tokenizer: Tokenizer) -> None:
    plain = Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": "{{ messages[0]['content'] }}"})
    messages = [{"role": "user", "content": "How many?"}]
    with pytest.raises(InputError, match="does not mark"):
        render(plain, messages)
    prompt = render(plain, messages, add_generation_prompt=True)
    assert prompt.text == "How many?" and not any(prompt.assistant_mask)


def test_no_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no chat template"):
        render(Tokenizer(tokenizer.backend, {}), [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", "not valid Jinja"),
        ("{{ raise_exception('alternate, please') }}", "alternate, please"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ messages + 1 }}", "fails"),
    ],
)
def test_faulty_and_hostile_templates(template: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        render_text(template, [{"role": "user", "content": "x"}])


def test_globals_and_filters_are_those_of_transformers() -> None:
    template = (
        "{% for message in messages %}\n    {% if loop.first %}{% continue %}{% endif %}\n"
        "    {{ {'b': '<é>', 'a': 1} | tojson }}{{ strftime_now('%%') }}\n{% break %}{% endfor %}\n"
    )
    text, _ = render_text(template, [{"role": "user", "content": "x"}] * 3)
    assert text.strip() == '{"b": "<é>", "a": 1}%'
