"""Each step does what it says: compared with brute force, with its library, or with cases that the course names."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.settings import CurationRecipe
from quatrain.data.curation.step import Step, StepContext
from quatrain.data.curation.steps import steps
from quatrain.data.curation.steps.mix import MixSettings, mixed_copies
from quatrain.data.curation.steps.near_duplicates import NearDuplicatesSettings, Signatures, connected
from quatrain.data.curation.steps.personal_data import is_card, is_iban
from quatrain.data.curation.words import WordHashes, window_hashes

Curated = Callable[..., Any]
WORDS = [
    f"{first}{second}" for first in "ba ke li mo nu ra se ti vo zu".split() for second in "lan mer dos kit pen".split()
]


def text_of(number: int, words: int = 80) -> str:
    """A text that its number decides."""
    numbers = random.Random(number)
    return " ".join(numbers.choice(WORDS) for _ in range(words))


def step_of(kind: str, tmp_path: Path = Path(), **settings: Any) -> Step:
    """A step with these settings, prepared."""
    cls = steps()[kind]
    context = StepContext(tmp_path)
    chosen = parse(cls.Settings, {"kind": kind, **settings})
    cls.prepare(chosen, context)
    step = cls(chosen, context)
    assert isinstance(step, Step)
    return step


def applied(step: Step, text: str, **fields: Any) -> tuple[SourceDocument, str | None]:
    """The document after a step, and why it was removed."""
    document = SourceDocument("0", text, fields=fields)
    removal = step.apply(document)
    return (
        document,
        None if removal is None else f"{removal.reason}: {removal.detail}" if removal.detail else removal.reason,
    )


# Duplicates


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = text.split()
    return frozenset(zip(*(words[start:] for start in range(5)), strict=False))


def varied(number: int) -> list[str]:
    """Texts of which many are copies of others with some words changed."""
    numbers = random.Random(number)
    texts = [text_of(number * 1000 + each, 100) for each in range(40)]
    for _ in range(160):
        words = numbers.choice(texts[:60]).split()
        for _ in range(numbers.choice([0, 1, 1, 2, 3, 5, 8])):
            words[numbers.randrange(len(words))] = numbers.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def test_near_duplicates_against_brute_force(tmp_path: Path) -> None:
    """Pairs that are surely alike are linked, and none that surely is not: 0.1 on either side of the threshold."""
    pytest.importorskip("rensa")
    texts = varied(1)
    signatures = Signatures(5, 128, seed=0)
    for text in texts:
        signatures.add(SourceDocument("0", text))
    groups = connected([signatures.arrays()], 16, 8, 0.7, StepContext(tmp_path))
    sets = [shingles(text) for text in texts]
    likeness = {pair: len(sets[pair[0]] & sets[pair[1]]) / len(sets[pair[0]] | sets[pair[1]])
                for pair in combinations(range(len(texts)), 2)}  # fmt: skip
    alike = [pair for pair, value in likeness.items() if value >= 0.8]
    found = sum(groups[one] == groups[other] for one, other in alike)
    assert len(alike) > 100
    assert found / len(alike) >= 0.98
    chained = _chains(len(texts), [pair for pair, value in likeness.items() if value >= 0.6])
    linked = [pair for pair in likeness if groups[pair[0]] == groups[pair[1]]]
    right = sum(chained[one] == chained[other] for one, other in linked)
    assert right / len(linked) >= 0.99


def _chains(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The connected components of exact links."""
    groups = list(range(count))
    for one, other in pairs:
        first, second = groups[one], groups[other]
        if first != second:
            groups = [first if group == second else group for group in groups]
    return groups


def test_order_of_input_does_not_change_what_is_kept(curated: Curated) -> None:
    pytest.importorskip("rensa")
    texts = [*varied(2), *varied(2)[:20]]
    shuffled = random.Random(0).sample(texts, len(texts))
    kept = []
    for rows in (texts, shuffled):
        _, left = curated(rows, {"kind": "exact_duplicates"}, {"kind": "near_duplicates"})
        kept.append(sorted(row["text"] for row in left))
    assert kept[0] == kept[1]
    assert 40 <= len(kept[0]) < 200


def test_exact_duplicates_ignore_case_and_space_unless_told(curated: Curated) -> None:
    rows = ["The  Cat", "the cat\n", "a dog", "The  Cat"]
    assert [row["text"] for row in curated(rows, {"kind": "exact_duplicates"})[1]] == ["The  Cat", "a dog"]
    _, left = curated(rows, {"kind": "exact_duplicates", "exactly": True})
    assert [row["text"] for row in left] == rows[:3]


def test_repeated_passages_are_cut_out(curated: Curated, monkeypatch: pytest.MonkeyPatch) -> None:
    passage = text_of(7, 60)
    rows = [f"{text_of(1)} {passage} {text_of(2)}", f"{text_of(3)}\n{passage}\n{text_of(4)}", f"Well, {passage} so",
            text_of(5) + " " + text_of(5)]  # fmt: skip
    expected = [rows[0], f"{text_of(3)}\n\n{text_of(4)}", text_of(5)]
    _, left = curated(rows, {"kind": "substring_duplicates"}, unit_megabytes=0.0005)
    assert [row["text"] for row in left] == expected
    monkeypatch.setattr("quatrain.data.curation.steps.substring_duplicates.AT_ONCE", 50)
    _, left = curated(rows, {"kind": "substring_duplicates"})
    assert [row["text"] for row in left] == expected


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_hashes_of_windows_tell_windows_apart(words: list[int], size: int) -> None:
    hashes = window_hashes(np.array(words, dtype=np.uint64), size)
    windows = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows))


def test_words_are_compared_without_case_and_marks() -> None:
    hashes = WordHashes()
    assert hashes.of("“The cat's,” -- END.").tolist() == hashes.of("the cats end").tolist()
    assert hashes.spans(" The -- cat.")[1] == [(1, 4), (8, 12)]


# Decontamination


def test_contaminated_document_is_removed_and_named(tmp_path: Path) -> None:
    items = tmp_path / "exam.jsonl"
    rows = [
        {"question": text_of(1, 20), "answer": "7"},
        {"question": text_of(2, 9), "answer": "x"},
        {"question": "short"},
    ]
    items.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    plain = tmp_path / "lines.txt"
    plain.write_text(text_of(3, 30) + "\n", encoding="utf-8")
    sets = [{"path": str(items), "columns": ["question"]}, {"path": str(plain), "name": "poem"}]
    step = step_of("decontaminate", tmp_path, sets=sets)
    around = (text_of(8), text_of(9))
    for text, name in ((text_of(1, 20), "exam.jsonl:1"), (text_of(2, 9).upper() + "!", "exam.jsonl:2"),
                       (" ".join(text_of(3, 30).split()[10:25]), "poem:1")):  # fmt: skip
        assert applied(step, f"{around[0]}\n{text} {around[1]}")[1] == f"an evaluation item: {name}"
    assert applied(step, around[0])[1] is None
    assert applied(step, " ".join(text_of(1, 20).split()[:12]))[1] is None, "12 words are fewer than the 13 of a run"


def test_phrases_of_many_items_do_not_count(tmp_path: Path) -> None:
    items = tmp_path / "exam.txt"
    phrase = text_of(1, 14)
    items.write_text("\n".join(f"{phrase} {text_of(10 + number, 14)}" for number in range(20)), encoding="utf-8")
    step = step_of("decontaminate", tmp_path, sets=[{"path": str(items)}])
    assert applied(step, phrase)[1] is None
    assert applied(step, text_of(12, 14))[1] == "an evaluation item: exam.txt:3"


# Personal data

MADE_UP = {
    "[EMAIL]": ["jane.doe+news@mail.example.co.uk", "o_brien99@example.org"],
    "[CARD]": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005"],
    "[IBAN]": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000"],
    "[SSN]": ["219-09-9999"],
    "[PHONE]": ["(212) 555-0147", "212-555-0147", "+44 20 7946 0958", "+49 (0)30 901820", "0049 30 901820"],
    "[IP]": ["8.8.8.8"],
    "[NAME]": ["Robert Quimby", "Sarah J. Holloway"],
}
ORDINARY = [
    "In 1999-2003 there were 1,234,567 people, 12.5 % of 10 000 000.",
    "Pi is 3.14159265358979 and the order was 4111 1111 1111 1112.",
    "ISBN 978-3-16-148410-0, 2021-03-04 12:30:00, version 8.8.8.8, host 192.168.1.1.",
    "The years 1914 1918 1939 1945, room 555-0147, item 123456789012, 00012345.",
    "Victoria Street, Dear Sir, Mark the page, Grace and Rose, May Day. x@y and @home.",
]


def test_made_up_personal_data_is_masked() -> None:
    step = step_of("personal_data")
    for mask, secrets in MADE_UP.items():
        for secret in secrets:
            text = applied(step, f"I wrote {secret} on the wall.")[0].text
            assert text == f"I wrote {mask} on the wall."
    text = applied(step, "My name is Zorblax Quimbleton. Call 020 7946 0958, tel.: 555 0199, ask Dr. Ndiaye.")[0].text
    assert text == "My name is [NAME]. Call [PHONE], tel.: [PHONE], ask Dr. [NAME]."


def test_ordinary_numbers_stay() -> None:
    step = step_of("personal_data")
    for text in ORDINARY:
        assert applied(step, text)[0].text == text


def test_lists_of_people_are_removed_if_asked() -> None:
    step = step_of("personal_data", most=2, kinds=["email"])
    assert applied(step, "a@example.org b@example.org")[1] is None
    assert applied(step, "a@example.org b@example.org c@example.org")[1] == "personal data above 2"


@given(st.integers(0, 10**15 - 1), st.integers(0, 9))
def test_one_wrong_digit_makes_no_card(number: int, other: int) -> None:
    digits = f"4{number:015d}"[:15]
    check = next(str(last) for last in range(10) if is_card(digits + str(last)))
    assert is_card(digits + check)
    assert is_card(digits + str(other)) == (str(other) == check)


def test_account_numbers_are_checked() -> None:
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB83WEST12345698765432")


# Text


def test_unicode_is_repaired() -> None:
    pytest.importorskip("ftfy")
    step = step_of("unicode")
    right = "schön, “quoted” café — naïve"
    assert applied(step, right.encode().decode("cp1252", "replace").replace("\ufffd", ""))[0].text.startswith("schön")
    assert applied(step, right)[0].text == right
    assert applied(step, "plain ASCII")[0].text == "plain ASCII"


def test_languages() -> None:
    pytest.importorskip("lingua")
    step = step_of("language", languages=["en", "fr"])
    assert applied(step, "This is a nice day, and I would like to walk.")[0].fields["language"] == "en"
    assert applied(step, "C'est une belle journée, et je voudrais me promener.")[1] is None
    assert applied(step, "Das ist ein schöner Tag, und ich möchte gehen.")[1] == "confidence in the language below 0.65"
    with pytest.raises(InputError, match='"xx"; must be an ISO 639-1 code'):
        step_of("language", languages=["xx"])


def test_main_text_of_a_page() -> None:
    pytest.importorskip("trafilatura")
    step = step_of("html")
    story = "This is the main text of the page, and it is long enough to be found. " * 6
    menu, footer = "<nav><a href='/'>Home</a></nav>", "<footer>Legal</footer>"
    page = f"<html><body>{menu}<article><p>{story}</p></article>{footer}</body></html>"
    assert applied(step, page)[0].text.strip() == story.strip()
    assert applied(step, "no page: 1 < 2")[0].text == "no page: 1 < 2"
    assert applied(step, "<html><body></body></html>")[1] == "no main text"


def test_wiki_dump(curated: Curated, tmp_path: Path) -> None:
    pytest.importorskip("gensim")
    dump = tmp_path / "wiki.xml"
    cat = "'''Cats''' are [[animal|animals]].{{cn}}\n\n== Life ==\n* They [[sleep]].\n== References ==\n<ref>x</ref>"
    pages = [("Cat", "0", cat),
             ("Talk", "1", "chatter"), ("Kitty", "0", "#REDIRECT [[Cat]]")]  # fmt: skip
    body = "".join(
        f"<page><title>{title}</title><ns>{space}</ns><text>{text.replace('<', '&lt;')}</text></page>"
        for title, space, text in pages
    )
    dump.write_text(
        f"<mediawiki xmlns='http://www.mediawiki.org/xml/export-0.10/'>{body}</mediawiki>", encoding="utf-8"
    )
    result, rows = curated([], {"kind": "wiki_markup"}, source=[{"path": str(dump)}])
    assert [(row["title"], row["text"]) for row in rows] == [("Cat", "Cats are animals.\n\nLife\nThey sleep.")]
    assert set(result.funnel.steps[0].counts.reasons) == {"a redirect"}


def test_lists_of_addresses_and_words(tmp_path: Path) -> None:
    listed = tmp_path / "domains.txt"
    listed.write_text("# bad\nbad.example.com\n", encoding="utf-8")
    step = step_of("url", domain_file=str(listed), words=["casino", "pills"], min_words=2)
    assert applied(step, "x", url="https://www.bad.example.com/a")[1] == "a listed domain: bad.example.com"
    assert applied(step, "x", url="https://good.org/casino-and-pills")[1] == "listed words: casino, pills"
    for url in ("https://notbad.example.com/", "https://good.org/casino", "", "https://[broken"):
        assert applied(step, "x", url=url)[1] in (None, "a broken address")
    words = step_of("word_list", words=["bad", "very bad"], most=1)
    assert applied(words, "A bad day at Badminton.")[1] is None
    assert applied(words, "Bad, very bad.")[1] == "listed words above 1: bad, very bad"
    with pytest.raises(InputError, match="must have words or a file"):
        step_of("word_list")


# Learned from examples


@pytest.fixture
def examples(tmp_path: Path) -> dict[str, Any]:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    numbers = random.Random(0)
    for path, words in ((good, WORDS[:30]), (bad, WORDS[20:])):
        texts = [" ".join(numbers.choice(words) for _ in range(40)) for _ in range(60)]
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return {"good": {"path": str(good)}, "bad": {"path": str(bad)}}


def test_quality_classifier_learns_from_examples(examples: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    step = step_of("quality_classifier", tmp_path, **examples)
    assert applied(step, " ".join(WORDS[:20]))[1] is None
    assert applied(step, " ".join(WORDS[30:]))[1] == "quality score below 0.5"
    about = json.loads((tmp_path / "classifier.json").read_text())
    assert about["examples"] == 120 and about["accuracy_held_out"] == 1


def test_paretos_rule_keeps_some_texts_of_any_score(
    examples: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-3 keeps a text of score p with the probability (2 - p) ** -9."""
    pytest.importorskip("sklearn")
    cls = steps()["quality_classifier"]
    step = cls(parse(cls.Settings, {**examples, "rule": "pareto"}), StepContext(tmp_path))
    for score in (0.6, 0.9):
        monkeypatch.setattr(step, "score", lambda text, score=score: score)
        kept = sum(applied(step, str(number))[1] is None for number in range(1000)) / 1000  # type: ignore[arg-type]
        assert kept == pytest.approx((2 - score) ** -9, abs=0.05)


def test_perplexity_follows_the_reference(examples: dict[str, Any], tmp_path: Path) -> None:
    step = step_of("perplexity", tmp_path, reference=examples["good"], order=2)
    most = step.limits()[0].most
    assert most is not None and 20 < most < 60
    assert applied(step, json.loads(Path(examples["good"]["path"]).read_text().splitlines()[0])["text"])[1] is None
    assert applied(step, " ".join(WORDS[30:]))[1] == f"perplexity above {most:g}"


# Mixing and splitting


@given(st.lists(st.integers(1, 50), min_size=40, max_size=80), st.floats(0.1, 0.9), st.integers(1, 3))
def test_mix_has_the_wanted_shares(words: list[int], share: float, most: int) -> None:
    sizes = np.array(words)
    sources = np.arange(len(words)) % 2
    keys = np.random.default_rng(0).permutation(len(words)).astype(np.uint64)
    copies = mixed_copies(sizes, keys, sources, np.array([share, 1 - share]), MixSettings(max_copies=most))
    mixed = np.bincount(sources, sizes * copies, minlength=2)
    assert copies.max() <= most
    largest = sizes.max() / min(share, 1 - share)
    assert abs(mixed[0] - share * mixed.sum()) <= largest
    have = np.bincount(sources, sizes, minlength=2) * most
    assert (mixed >= have - 2 * largest).any(), "the scarcest source is used up"


def test_mix_of_two_sources(curated: Curated, tmp_path: Path) -> None:
    paths = []
    for name, first in (("domain", 0), ("general", 1000)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"text": text_of(first + each)}) for each in range(100)), encoding="utf-8")
        paths.append({"path": str(path), "weight": 0.51 if name == "domain" else 0.49})
    result, rows = curated([], {"kind": "mix"}, source=paths)
    counts = Counter(row["source"] for row in rows)
    assert counts["domain"] / len(rows) == pytest.approx(0.51, abs=0.01)
    assert len(rows) >= 190
    assert result.funnel.sources["domain"].documents == counts["domain"]
    with pytest.raises(InputError, match='mix needs a weight for the source "general"'):
        parse(CurationRecipe, {"source": [paths[0], {"path": paths[1]["path"]}], "step": [{"kind": "mix"}]})


def test_split_keeps_near_copies_on_one_side(curated: Curated) -> None:
    pytest.importorskip("rensa")
    texts = varied(3)
    result, _ = curated(texts, {"kind": "split", "validation": 0.3, "test": 0.2})
    sides = {}
    for path in sorted((result.folder / "data").iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            sides[json.loads(line)["text"]] = path.name.partition("-")[0]
    assert set(sides.values()) == {"train", "validation", "test"}
    sets = {text: shingles(text) for text in sides}
    for one, other in combinations(sides, 2):
        if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= 0.6:
            assert sides[one] == sides[other]


def test_near_duplicate_settings_are_checked() -> None:
    with pytest.raises(InputError, match=r"threshold: 1\.5; must be at most 1"):
        parse(NearDuplicatesSettings, {"threshold": 1.5})
