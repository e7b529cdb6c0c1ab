# ruff: noqa: E501 (a template stays on one line)
"""Conversations with every field, through templates as models have them: as transformers' `apply_chat_template`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data.corpus import Corpus
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.templates import TEMPLATES
from quatrain.tokenizers.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
DATA = Path(os.environ.get("QUATRAIN_DATA", "nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")

TOOL = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}

LLAMA = """\
{{- bos_token }}{%- set tools = tools if tools is defined else none %}
{%- if messages[0].role in ['system', 'developer'] %}{%- set told = messages[0].content %}
  {%- set messages = messages[1:] %}
{%- else %}{%- set told = '' %}{%- endif %}
{{- '<|system|>' + (told if told is string else '') }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- for t in tools %}
  {{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}
{%- for message in messages %}
  {%- if not (message.role in ['ipython', 'tool'] or 'tool_calls' in message) %}
    {{- '<|' + message.role + '|>\\n' }}{%- if message.role == 'assistant' %}
      {%- generation %}
        {{- (message.content | trim if message.content is string else 'parts') + '<|eot|>' }}{%- endgeneration %}
    {%- else %}{{- message['content'] | trim if message.content is string else 'parts' }}{%- endif %}
  {%- elif 'tool_calls' in message %}
    {%- if message.content is defined and message.content is none %}{{- 'NONE' }}{%- endif %}
    {%- generation %}{%- for call in message.tool_calls %}
      {{- '{"name": "' + call.function.name + '", "parameters": ' }}
      {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}{{- '}' }}
    {%- endfor %}{{- '<|eom|>' }}{%- endgeneration %}
  {%- else %}
    {{- '<|ipython|>' + (message.name or '') + (message.tool_call_id | default('?')) }}
    {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
    {%- else %}{{- message.content }}{%- endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""

QWEN = """\
{%- macro text_of(content) %}{%- if content is string %}
  {{- content }}{%- elif content is iterable and content is not mapping %}
{%- for item in content %}{%- if item.type == 'image' or 'image' in item %}
  {{- '<|image|>' }}{%- elif 'text' in item %}{{- item.text }}
{%- endif %}{%- endfor %}{%- elif content is none or content is undefined %}{{- '' }}{%- else %}
  {{- raise_exception('no text') }}
{%- endif %}{%- endmacro %}
{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
  {{- '\\n</tools>' }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.open and message.role == 'user' %}{%- set ns.open = false %}{%- set ns.last = index %}{%- endif %}
  {%- endfor %}
{%- for message in messages %}{%- set content = text_of(message.content) | trim %}
  {%- if message.role == 'assistant' %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}{%- set reasoning = content.split('</think>')[0].rstrip('\\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
    {{- '<|im_start|>assistant\\n' }}{%- generation %}
    {%- if loop.index0 > ns.last and (loop.last or reasoning) and enable_thinking is not false %}
      {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}{{- content }}
    {%- for tool_call in message.tool_calls or [] %}{%- if tool_call.function %}
      {%- set tool_call = tool_call.function %}{%- endif %}
      {{- '\\n<tool_call>' + tool_call.name }}
      {%- if tool_call.arguments is mapping %}{%- for k, v in tool_call.arguments | items %}
        {{- k ~ '=' ~ (v | string) }}{%- endfor %}
      {%- else %}{{- tool_call.arguments }}{%- endif %}{%- endfor %}{{- '<|im_end|>' }}{%- endgeneration %}
        {{- '\\n' }}
  {%- elif message.role == 'tool' %}
    {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
      {{- '\\n<r>' + content + '</r>' }}
    {%- if not loop.last and loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
  {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

MISTRAL = """\
{{- bos_token }}{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
  {%- if message.role == 'user' %}
    {%- if tools is not none and message == users[-1] %}{{- '[AVAILABLE_TOOLS] [' }}{%- for tool in tools %}
      {%- for key, value in tool.items() if key != 'return' %}{{- '"' + key + '": ' }}
      {%- if value is string %}{{- '"' + value + '"' }}{%- else %}{{- value | tojson }}{%- endif %}{%- endfor %}
      {{- ', ' if not loop.last }}{%- endfor %}{{- '][/AVAILABLE_TOOLS]' }}{%- endif %}
    {{- '[INST] ' ~ message.content ~ '[/INST]' }}
  {%- elif message.tool_calls is defined and message.tool_calls is not none %}
    {%- generation %}{{- '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}
      {%- set out = call.function | tojson %}
    {{- out[:-1] }}{{- ', "id": "' ~ call.id ~ '"}' }}{%- endfor %}{{- ']' + eos_token }}{%- endgeneration %}
  {%- elif message.role == 'assistant' %}{%- generation %}{{- ' ' ~ message.content ~ eos_token }}{%- endgeneration %}
  {%- elif message.role in ['tool', 'tool_results'] %}
    {{- '[TOOL_RESULTS] {"content": ' ~ message.content ~ ', "call_id": "' ~
    message.tool_call_id ~ '"}' }}
  {%- else %}{{- message | tojson(sort_keys=true) }}{%- endif %}
{%- endfor %}{%- if documents %}{%- for d in documents %}{{- d.title ~ ': ' ~ d.text }}{%- endfor %}{%- endif %}
{{- '' if date is not defined else date }}"""

PARTS = """\
{%- for message in messages %}{{- '<' ~ message['role'] ~ '>' }}
{%- for part in message['content'] %}
  {%- if part is string %}{{- part }}
  {%- elif part['type'] == 'text' %}{%- if message['role'] == 'assistant' %}{%- generation %}
    {{- part['text'] }}{%- endgeneration %}
  {%- else %}{{- part['text'] }}{%- endif %}
  {%- else %}{{- '[' ~ part['type'] ~ ']' }}{%- endif %}
{%- endfor %}
  {{- message.thinking or '' }}{{- message.refusal or '' }}{{- message.weight if message.weight is defined }}
{%- endfor %}"""

MODELS = {"chatml": TEMPLATES["chatml"], "llama": LLAMA, "qwen": QWEN, "mistral": MISTRAL, "parts": PARTS}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Template name -> our tokenizer, and transformers' from what ours wrote."""
    made = {}
    for name, template in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        Tokenizer.train(["<|im_start|> how many [INST] are there?\n"] * 3, vocab_size=300, chat_template=template,
                        special_tokens=["<|im_start|>", "<|im_end|>", "<|eot|>", "<|eom|>"]).save(folder)  # fmt: skip
        made[name] = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    return made


WORDS = st.text("ab é\n<{\"'", max_size=12)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | WORDS, lambda inner: st.lists(inner, max_size=2)
                    | st.dictionaries(WORDS, inner, max_size=2), max_leaves=4)  # fmt: skip
ARGUMENTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=2)
CALLS = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries(
        {"name": st.sampled_from(["rain", "sun"]), "arguments": ARGUMENTS | ARGUMENTS.map(json.dumps)})},
    optional={"id": st.sampled_from(["c1", "abcdefghi"])},
)  # fmt: skip
PART = st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}) | st.just({"type": "image", "url": "a.png"})
TEXT_PART = st.fixed_dictionaries({"type": st.just("text"), "text": WORDS})
TOOLS = st.none() | st.just([]) | st.just([TOOL]) | st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries(
        {"name": st.just("f"), "description": WORDS, "parameters": JSON})}), max_size=2)  # fmt: skip


def chats(content: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Conversations whose turns have any of the fields of the formats."""
    more = st.fixed_dictionaries({}, optional={"name": st.none() | WORDS, "extra": JSON, "weight": st.just(1)})
    asked = st.builds(lambda role, said, rest: {"role": role, "content": said, **rest},
                      st.sampled_from(["user", "system", "developer"]), content, more)  # fmt: skip
    said = st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": content},
        optional={"reasoning_content": st.none() | WORDS, "thinking": st.none() | WORDS, "reasoning": st.none() | WORDS,
                  "refusal": st.none() | WORDS, "weight": st.just(1), "tool_calls": st.none() | st.just([])},
    )  # fmt: skip
    called = st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.lists(CALLS, min_size=1, max_size=2)},
        optional={"content": st.none() | content, "reasoning_content": WORDS},
    )
    answered = st.fixed_dictionaries({"role": st.just("tool"), "content": content},
                                     optional={"tool_call_id": st.just("c1"), "name": st.just("rain")})  # fmt: skip
    return st.lists(asked | said | called | answered, min_size=1, max_size=5)


def agree(pair: tuple[Tokenizer, Any], messages: Any, **options: Any) -> None:
    """Text, ids and mask equal those of transformers; what it refuses is refused."""
    ours, theirs = pair
    try:
        expected = theirs.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception:
        with pytest.raises(InputError):
            render(ours, messages, **options)
        return
    rendered = render(ours, messages, **options)
    assert rendered.text == expected
    whole = theirs.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True, **options)
    assert rendered.ids == whole["input_ids"]
    mask = [bool(each) for each in whole["assistant_masks"]]
    if all(rendered.text[end - 1] < "\x80" and rendered.text[start] < "\x80" for start, end in rendered.spans):
        assert rendered.assistant_mask == mask


@pytest.mark.parametrize("name", [name for name in MODELS if name != "parts"])
@settings(max_examples=80, deadline=None)
@given(messages=chats(WORDS), tools=TOOLS, prompt=st.booleans(), documents=st.none() | st.just(
    [{"title": "t", "text": "x"}]), variables=st.sampled_from([{}, {"enable_thinking": False}, {"date": "1 May"}]))  # fmt: skip
def test_every_field_as_transformers(pairs, name, messages, tools, prompt, documents, variables) -> None:
    agree(pairs[name], messages, tools=tools, add_generation_prompt=prompt, documents=documents, **variables)


@pytest.mark.parametrize("name", ["qwen", "parts"])
@settings(max_examples=80, deadline=None)
@given(messages=chats(st.lists(PART, max_size=3)), tools=TOOLS)
def test_parts_as_transformers_where_the_template_reads_them(pairs, name, messages, tools) -> None:
    agree(pairs[name], messages, tools=tools)


@pytest.mark.parametrize("name", ["chatml", "mistral"])
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.lists(TEXT_PART, min_size=1, max_size=3), min_size=1, max_size=3))
def test_parts_are_joined_for_a_template_that_reads_text(pairs, name, parts) -> None:
    roles = ("user", "assistant", "user")
    written = [{"role": role, "content": each} for role, each in zip(roles, parts)]
    plain = [{"role": role, "content": "".join(part["text"] for part in each)} for role, each in zip(roles, parts)]
    assert render(pairs[name][0], written) == render(pairs[name][0], plain)


@settings(max_examples=60, deadline=None)
@given(
    messages=chats(WORDS),
    tools=TOOLS,
    as_text=st.booleans(),
    documents=st.none() | st.just([{"title": "t", "text": "x"}]),
)
def test_a_row_of_a_file_is_rendered_as_transformers_renders_it(
    pairs, tmp_path_factory, messages, tools, as_text, documents
) -> None:
    messages = [*messages, {"role": "assistant", "content": "Yes."}]
    row = {"messages": messages, "chat_template_kwargs": {"date": "2 May"}}
    row |= {"tools": json.dumps(tools) if as_text and tools is not None else tools, "documents": documents}
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (record,) = Corpus(path, format="chat")
    ours, theirs = pairs["mistral"]
    options = {"tools": tools, "documents": documents, "date": "2 May"}
    try:
        expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    except Exception:
        with pytest.raises(InputError):
            render(ours, record.messages)
        return
    assert render(ours, record.messages).text == expected


@needs_data
@pytest.mark.parametrize("name", ["chatml", "qwen", "llama"])
def test_real_rows_with_tools(pairs, name) -> None:
    records = list(Corpus(DATA / "instruct/glaive_toolcall_300.json.gz"))
    assert sum(bool(record.tools) for record in records) > 100
    for record in records[:60]:
        agree(pairs[name], record.messages, tools=record.tools)
        rendered = render(pairs[name][0], record.messages)
        assert all(tool["name"] in rendered.text for tool in record.tools or [])


@pytest.mark.parametrize("name", MODELS)
def test_weight_0_is_rendered_and_not_learned(pairs, name) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "first", "weight": 0},
             {"role": "user", "content": "x"}, {"role": "assistant", "content": "second", "weight": 1},
             {"role": "user", "content": "x"}, {"role": "assistant", "content": "third"}]  # fmt: skip
    if name == "parts":
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    ours = pairs[name][0]
    rendered, whole = render(ours, turns), render(ours, [{**turn, "weight": 1} for turn in turns])
    learned = [rendered.text[start:end] for start, end in rendered.spans]
    assert len(learned) == 2 and "second" in learned[0] and "third" in learned[1] and "first" in rendered.text
    if name != "parts":  # that one prints the weight
        assert rendered.ids == whole.ids and rendered.spans == whole.spans[1:]
        assert sum(rendered.assistant_mask) < sum(whole.assistant_mask)


def test_a_turn_of_weight_0_with_reasoning_and_calls_in_several_blocks() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.reasoning_content }};{% endgeneration %}"
        "|{% generation %}{{ m.content }}.{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = Tokenizer.train(["abc"], vocab_size=300, chat_template=template)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "t", "weight": 0},
             {"role": "assistant", "content": "b", "reasoning": "u"}]  # fmt: skip
    rendered = render(tokenizer, turns)
    assert rendered.text == "qt;|a.u;|b."
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["u;", "b."]


def test_weights_that_cannot_be_honoured_are_refused() -> None:
    template = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    tokenizer = Tokenizer.train(["abc"], vocab_size=300, chat_template=template)
    turns = [{"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match="weight 0"):
        render(tokenizer, turns)
    with pytest.raises(InputError, match="allowed are 0"):
        render(tokenizer, [{"role": "assistant", "content": "a", "weight": 0.5}])


NAMED = [{"name": "default", "template": "D{% for m in messages %}{{ m.content }}{% endfor %}"},
         {"name": "tool_use", "template": "T{{ tools | tojson }}"}, {"name": "rag", "template": "R{{ documents | tojson }}"}]  # fmt: skip
TALK = [{"role": "user", "content": "a"}]


def write_templates(folder: Path, form: str) -> None:
    """The named templates in one of the forms of model folders."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if form == "list":
        config["chat_template"] = NAMED
    elif form == "list without a default":
        config["chat_template"] = NAMED[1:]
    else:
        config["chat_template"] = "old{{ messages }}"
        (folder / "additional_chat_templates").mkdir()
        if form == "files":
            (folder / "chat_template.jinja").write_text(NAMED[0]["template"])
        for each in NAMED[1:]:
            (folder / "additional_chat_templates" / f"{each['name']}.jinja").write_text(each["template"])
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("form", ["list", "list without a default", "files", "additional files alone"])
def test_named_templates_are_chosen_and_kept_as_transformers_does(tmp_path: Path, form: str) -> None:
    Tokenizer.train(["abc"], vocab_size=300).save(tmp_path / "a")
    write_templates(tmp_path / "a", form)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    ours = Tokenizer.load(tmp_path / "a")
    ours.save(tmp_path / "b")
    ours.extended(["<x>"]).save(tmp_path / "c")
    ours.save(tmp_path / "a")  # over the files that it came from
    for tokenizer in (ours, *(Tokenizer.load(tmp_path / name) for name in "abc")):
        for options in ({}, {"tools": [TOOL]}, {"tools": []}, {"documents": [{"title": "t", "text": "x"}]}):
            for name in (None, "rag", "tool_use", "default"):
                try:
                    expected = theirs.apply_chat_template(TALK, chat_template=name, tokenize=False, **options)
                except Exception:
                    expected = None
                if name is not None and name not in theirs.chat_template:
                    expected = None  # transformers takes an unknown name for a template
                if expected is None:
                    with pytest.raises(InputError, match="template"):
                        render(tokenizer, TALK, template=name, mask=False, **options)
                else:
                    assert render(tokenizer, TALK, template=name, mask=False, **options).text == expected
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "b"))
    assert again.chat_template == theirs.chat_template


@pytest.mark.parametrize(
    "written",
    [
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"boi_token": "<boi>"},
        {"additional_special_tokens": ["<boi>"]},
        {"extra_special_tokens": ["<boi>"], "image_token": "<image>"},
        {"bos_token": None},
        {"eos_token": "<boi>", "pad_token": "<image>"},
    ],
)
def test_tokens_reach_a_template_under_the_names_of_transformers(tmp_path: Path, written: dict[str, Any]) -> None:
    template = (
        "{{ image_token }}|{{ boi_token }}|{{ extra_special_tokens }}|{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    )
    Tokenizer.train(["abc"], vocab_size=300, special_tokens=["<image>", "<boi>"], chat_template=template).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | written))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    expected = theirs.apply_chat_template(TALK, tokenize=False)
    assert render(Tokenizer.load(tmp_path), TALK, mask=False).text == expected


def test_setting_a_template_replaces_all(tmp_path: Path) -> None:
    Tokenizer.train(["abc"], vocab_size=300).save(tmp_path)
    write_templates(tmp_path, "list")
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.chat_template = TEMPLATES["chatml"]
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_templates == {"default": TEMPLATES["chatml"]}


@pytest.mark.parametrize("written", [5, [5], [{"name": "default"}], {"default": 3}, [["a", "b"]], True])
def test_templates_of_a_wrong_type_are_refused(tmp_path: Path, written: Any) -> None:
    Tokenizer.train(["abc"], vocab_size=300).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": written}))
    with pytest.raises(InputError, match="chat_template"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["chatlm", "llama3", "", "{ messages }", "my template"])
def test_a_mistyped_name_is_no_template(name: str) -> None:
    tokenizer = Tokenizer.train(["abc"], vocab_size=300)
    with pytest.raises(InputError, match="neither Jinja source"):
        Tokenizer.train(["abc"], vocab_size=300, chat_template=name)
    with pytest.raises(InputError, match="neither Jinja source"):
        tokenizer.extended(chat_template=name)
    with pytest.raises(InputError, match="neither Jinja source"):
        tokenizer.chat_template = name
    assert tokenizer.chat_template is None
    with pytest.raises(InputError, match="did you mean chatml"):
        tokenizer.extended(chat_template="chatlm")
