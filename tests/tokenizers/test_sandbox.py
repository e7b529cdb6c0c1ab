# ruff: noqa: E501 (a template stays on one line)
"""Chat templates of strangers end in time, in little memory, and with the limit that they hit."""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_set import some

from quatrain.core.errors import InputError
from quatrain.tokenizers.chat import render_text
from quatrain.tokenizers.sandbox import TemplateLimitError

MESSAGES = [{"role": "user", "content": "hello <world>"}, {"role": "assistant", "content": "x\ny"}]
NS = "{% set ns = namespace(x=[1], y=[1], t=(), s='ab') %}"

LOOPS = {
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "with a test": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "in a generation block": "{% generation %}{% for a in range(99999) %}{% for b in range(999) %}{{ 'aaaaaaaaa' }}"
                             "{% endfor %}{% endfor %}{% endgeneration %}",
    "in a filter block": "{% filter upper %}{% for a in range(99999) %}{% for b in range(999) %}aaaaaaaaaaa{% endfor %}"
                         "{% endfor %}{% endfilter %}",
    "static text in a set block": "{% set y %}{% for a in range(99999) %}" + "x" * 50_000 + "{% endfor %}{% endset %}",
    "recursive": "{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macro that branches": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "call": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% for i in range(99999) %}{% for j in range(999) %}"
            "a{% endfor %}{% endfor %}{% endcall %}",
    "range": "{% for a in range(10**9) %}{% endfor %}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "sorting": "{% for i in range(99999) %}{% set x = range(99999)|sort(reverse=true) %}{% endfor %}",
    "comparing texts": "{% set s = 'a'*4000000 %}{% set t = 'a'*4000000 %}{% for i in range(99999) %}{% if s == t %}"
                       "{% endif %}{% endfor %}",
    "searching lists": "{% set l = range(99999)|list %}{% for i in range(99999) %}{% if 'b' in l %}{% endif %}{% endfor %}",
    "a test": "{% set l = range(99999)|list %}{% for i in range(99999) %}{% if 'b' is in l %}{% endif %}{% endfor %}",
    "dict.fromkeys": "{% for i in range(99999) %}{% set x = dict.fromkeys(range(99999)) %}{% endfor %}",
}  # fmt: skip
TEXTS = {
    "*": "{{ 'a' * 10**10 }}",
    "* of a value": "{% set x = 'a' * 1000000 %}{{ x * 100000 }}",
    "* of a list": "{{ [1] * 10**9 }}",
    "**": "{{ 2 ** 1000000000 }}",
    "growing numbers": NS
    + "{% set ns.x = 9 %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "+": NS + "{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "~": NS + "{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "join": "{{ range(99999)|list|join('a' * 100000) }}",
    "join of a generator": "{{ (['a' * 5000000] * 1000)|select|join }}",
    "join, the method": "{{ ('a' * 1000000).join(['b'] * 100000) }}",
    "center": "{{ 'a'|center(10**10) }}",
    "center, a constant": "{{ 'a'|center(1000000000) }}",
    "center, the method": "{{ 'a'.center(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "indent": "{{ ('a\n' * 1000000)|indent(1000000) }}",
    "indent with a text": "{{ 'a\nb'|indent('x' * 100000000) }}",
    "replace": "{{ ('a' * 1000000)|replace('a', 'b' * 100000) }}",
    "replace, the method": "{{ ('a' * 1000000).replace('a', 'b' * 100000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 100000}) }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% by name": "{{ ('%(a)s' * 100000) % {'a': 'a' * 100000} }}",
    "% with a star": "{{ '%*d'|format(1000000000, 1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format, nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format, repeated": "{{ ('{0}' * 1000000).format('a' * 100000) }}",
    "tojson": "{{ [1, 2]|tojson(indent=1000000000) }}",
    "wordwrap": "{{ ('a b ' * 40000)|wordwrap(1, wrapstring='x' * 1000000) }}",
    "urlize": "{{ ('www.a.de ' * 100000)|urlize(target='x' * 100000) }}",
    "striptags": "{{ ('<!--' * 1000000)|striptags }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "round": "{{ 1.5|round(1000000000, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "int": "{{ ('f' * 4000000)|int(0, 16) }}",
    "list": "{{ ('aä' * 2000000)|list }}",
    "split": "{{ ('a ' * 2000000).split() }}",
    "rfind": "{{ ('a' * 4000000).rfind('b' + 'a' * 2000000) }}",
    "strip": "{{ ('a' * 4000000).strip('b' * 4000000) }}",
    "sum": "{{ ([[1] * 1000] * 100000)|sum(start=[]) }}",
    "slices": NS + "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{% set ns.x = [ns.x, s[1:]] %}{% endfor %}",
    "a constant in a test": "{% if 'a'|center(1000000000) == 'b' %}{% endif %}",
}
VALUES = {
    "doubled lists": NS + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "doubled by filters": NS + "{% for i in range(60) %}{% set ns.x = (ns.x*2)|batch(2)|list %}"
                               "{% set ns.y = (ns.y*2)|batch(2)|list %}{% endfor %}{{ ns.x == ns.y }}",
    "doubled namespaces": NS + "{% for i in range(60) %}{% set n = namespace() %}{% set n.a = ns.x %}{% set n.b = ns.x %}"
                               "{% set ns.x = n %}{% endfor %}{{ ns.x }}",
    "deep tuples as keys": NS + "{% for i in range(99999) %}{% set ns.t = (ns.t,) %}{% endfor %}{{ {ns.t: 1} }}",
    "deep tuples of arguments": NS + "{% macro m() %}{% set ns.t = varargs %}{% endmacro %}{% for i in range(99999) %}"
                                     "{{ m(ns.t) }}{% endfor %}{{ {ns.t: 1} }}",
    "tuples as keys": NS + "{% for i in range(15) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}{% for i in range(9999) %}"
                      "{% set x = {'a': 1}[ns.t] %}{% endfor %}",
    "deep lists": NS + "{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
}  # fmt: skip
SOURCES = {
    "deep attributes": "{{ messages" + ".a" * 20_000 + " }}",
    "brackets": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "not": "{{ " + "not " * 20_000 + "1 }}",
    "sums": "{{ " + "+".join("1" * 20_000) + " }}",
    "loops": "{% for x in [1] %}" * 60 + "{% endfor %}" * 60,
    "conditions": "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "digits": "{{ " + "9" * 10_000 + " }}",
    "size": "x" * 3_000_000,
}


TEMPLATES = [*LOOPS.values(), *TEXTS.values(), *VALUES.values()]


@pytest.mark.parametrize(
    "template", some(TEMPLATES, TEMPLATES[::4]), ids=[*LOOPS, *(f"text: {name}" for name in TEXTS), *VALUES]
)
def test_a_limit_is_hit_and_named(template: str) -> None:
    started = time.thread_time()
    with pytest.raises(TemplateLimitError, match="the chat template was stopped: "):
        render_text(template, MESSAGES)
    assert time.thread_time() - started < 8


@pytest.mark.parametrize("template", SOURCES.values(), ids=SOURCES)
def test_sources_that_cannot_be_compiled(template: str) -> None:
    started = time.thread_time()
    with pytest.raises(InputError, match="chat template"):
        render_text(template, MESSAGES)
    assert time.thread_time() - started < 8


@pytest.mark.parametrize("name", ["+", "~", "join of a generator", "format, repeated", "list", "split", "slices"])
def test_the_memory_is_bounded(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateLimitError):
            render_text(TEXTS[name], MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 400_000_000
    finally:
        tracemalloc.stop()


GROWING = ["'a' * N", "[1] * N", "'ab'|center(N)", "'a'.ljust(N)", "range(N)|list|join('x')", "('a' * N)|replace('a', 'bcd')",
           "'a\nb'|indent(N)", "'%Nd' % 1", "('%s' % 'a') * N", "('x' ~ 'y') * N", "('{:>N}').format('a')", "2 ** N",
           "('a' * N).upper()", "[('a' * N)]|tojson", "('a' * N).split('a')", "([messages] * N)|tojson",
           "messages|batch(N)|list", "range(N)|map('string')|join", "('a' * N)|e", "('a' * N)[1:] + ('b' * N)"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.sampled_from(GROWING), min_size=1, max_size=4),
    size=st.integers(0, 12).map(lambda power: 10**power),
    wrapped=st.sampled_from(["{}", "{{% for i in range(999) %}}{}{{% endfor %}}", "{{% set x %}}{}{{% endset %}}{{{{ x }}}}",
                             "{{% macro m() %}}{}{{% endmacro %}}{{{{ m() }}}}{{{{ m() }}}}"]),
)  # fmt: skip
def test_whatever_grows_ends_within_limits(parts: list[str], size: int, wrapped: str) -> None:
    body = "".join("{{ " + part.replace("N", str(size)) + " }}" for part in parts)
    started = time.thread_time()
    try:
        text, _ = render_text(wrapped.format(body), MESSAGES)
        assert len(text) < 10_000_000
    except InputError as error:
        assert "chat template" in error.message
    assert time.thread_time() - started < 12


def test_threads_have_a_limit_each() -> None:
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        template = LOOPS["nested"] if number % 2 else "{% for m in messages %}{{ m.content }}{% endfor %}"
        try:
            found[number] = render_text(template, MESSAGES)[0]
        except TemplateLimitError:
            found[number] = None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(6)] == ["hello <world>x\ny", None] * 3


PLAIN = [
    "{{ 'a'|center(9) }}|{{ 'b'.ljust(5) }}|{{ '%5.2f' % 1.5 }}|{{ '%s-%s'|format(1, 'x') }}|{{ '{:>4}{a}'.format(1, a=2) }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages[1:]|tojson(indent=2) }}{{ messages[::-1][0].role }}{{ (messages|last).content|indent(2) }}",
    "{% for k, v in messages[0]|dictsort %}{{ k }}={{ v }};{% endfor %}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem is defined }}{% else %}none{% endfor %}",
    "{% macro tool(t, deep=1) %}{{ t.role ~ deep }}{% if deep < 3 %}{{ tool(t, deep + 1) }}{% endif %}{% endmacro %}"
    "{{ tool(messages[0]) }}{% set x %}a{{ 1 }}{% endset %}{{ x|trim|upper }}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "{{ 'a,b,,c'.split(',') }}{{ 'x'.replace('x', 'yy') }}{{ ' a '.strip() }}{{ 'Ab'.lower()[0] }}{{ 'abc'[::-1] }}",
    "{{ [1, 2] + [3] }}{{ [0] * 3 }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ (1, 2) == (1, 2) }}{{ 1 < 2 < 3 }}{{ 'b' not in 'abc' }}",
    "{{ messages|groupby('role')|map('first')|list }}{{ [3, 1]|sort }}{{ [1, 1]|unique|list }}{{ range(5)|batch(2)|list }}",
    "{{ undefined_thing }}{{ messages[9] }}{{ messages[0].missing is defined }}{{ none }}{{ [none, true] }}{{ dict(a=1)|items|list }}",
    "{% filter upper %}abc{{ messages[0].role }}{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}{{ '<a>'|e }}{{ '<a>'|safe }}",
    "{{ messages[0]['content'] in ['hello <world>', 'b'] }}{{ 'role' in messages[0] }}{{ messages[0] == messages[1] }}",
    "{%- for m in messages -%}\n    {% if loop.first %}{% continue %}{% endif %}\n  {{ m.content }}\n{% break %}\n{%- endfor -%}",
]  # fmt: skip


@pytest.mark.parametrize("template", PLAIN)
def test_what_is_metered_gives_what_transformers_gives(template: str) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    expected = utilities.render_jinja_template([MESSAGES], chat_template=template)[0][0]
    assert render_text(template, MESSAGES)[0] == expected


def test_long_chats_are_within_the_limits() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " * 50} for i in range(2000)]
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}!{% endif %}{% endfor %}"
    assert len(render_text(template, messages)[0]) > 800_000
    quadratic = "{% for m in messages[:300] %}{% for n in messages %}{% if n.role == 'x' %}{{ n }}{% endif %}{% endfor %}{% endfor %}"
    render_text(quadratic, messages)
    large = [{"role": "user", "content": "word " * 4_000_000}]
    assert len(render_text("{{ messages[0].content | trim | upper }}", large)[0]) == 19_999_999
