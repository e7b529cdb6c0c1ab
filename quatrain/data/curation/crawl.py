"""A raw crawl to learn on: good pages among junk of every kind, with the truth about each page.

Pages are made of passages of a source, of phrases, and of a seed. Because the kind of every page is known, precision
and recall of each step can be said (`assessment`). All names, addresses and numbers are made up: telephone numbers are
those that are reserved for fiction, cards are test numbers, addresses are of example domains.
"""

from __future__ import annotations

import html
import json
import random
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from quatrain.core.atomic import atomic_write, write_text
from quatrain.core.errors import InputError
from quatrain.data.documents import read_documents

SHARES = {
    "good": 0.34, "page": 0.06, "boilerplate": 0.08, "spam": 0.08, "list": 0.06, "exact copy": 0.06, "near copy": 0.08,
    "pasted passage": 0.04, "damaged encoding": 0.04, "foreign": 0.06, "personal data": 0.04, "evaluation item": 0.03,
    "fragment": 0.03,
}  # fmt: skip
"""Kinds of pages and their shares."""
WORTH = frozenset({"good", "page", "pasted passage", "damaged encoding", "personal data"})
"""Kinds of which a text should be left."""
FOREIGN = {
    "de": """Der Zug nach Norden hatte gestern wieder eine Stunde Verspätung. Viele Menschen warteten auf dem
    Bahnsteig und froren. Im Sommer fahren wir gern an den See und bleiben bis zum Abend. Die Gemeinde
    will die alte Brücke im nächsten Jahr erneuern. Meine Großmutter backt jeden Sonntag einen Kuchen mit
    Äpfeln aus dem Garten. Das Museum zeigt Bilder, die lange niemand gesehen hat. Nach dem Regen roch
    die Straße nach Staub und Laub. Er schrieb ihr einen langen Brief, den sie nie bekam.""",
    "fr": """Le marché du village ouvre tôt le matin et ferme avant midi. Les enfants jouent dans la cour pendant que
    leurs parents parlent. La rivière a débordé deux fois cet hiver, et les champs sont restés sous
    l'eau. Nous avons mangé des poires et du fromage près de la fenêtre. Le directeur de l'école a promis
    de réparer le toit. Elle lisait des romans jusque tard dans la nuit. Le train partit sans lui, et il
    dut attendre jusqu'au soir. Une vieille horloge sonnait les heures dans le couloir.""",
    "es": """La plaza estaba llena de gente y de música aquella noche. El panadero abre su tienda antes de que salga
    el sol. Los vecinos quieren plantar árboles a lo largo de la avenida. Mi hermana trabaja en un
    hospital cerca de la costa. Hacía mucho calor y nadie quería salir a la calle. El profesor explicó la
    lección dos veces y luego borró la pizarra. Compramos naranjas, pan y un poco de queso. El barco
    llegó al puerto con tres días de retraso.""",
    "it": """La nonna preparava il sugo ogni domenica mattina. I ragazzi correvano lungo la spiaggia fino al vecchio
    faro. Il treno per Milano parte tra dieci minuti dal secondo binario. Abbiamo trovato una lettera
    dentro un libro di storia. La pioggia cadeva piano sui tetti della città. Il medico gli disse di
    riposare per qualche giorno. Al mercato si vendono pesche, fichi e formaggi. Nessuno sapeva di chi
    fosse quella casa gialla.""",
}
BOILERPLATE = (
    "We use cookies to give you the best experience on our website",
    "By continuing to browse this site you agree to our use of cookies and to our privacy policy",
    "Please enable Javascript in your browser to view this page",
    "All rights reserved, no part of this site may be reproduced without permission",
    "Click here to subscribe to our newsletter",
    "Read our terms of use before you register",
    "Share this page on your favourite network",
    "Skip to content",
    "Sign in to leave a comment",
    "Your cart is empty",
    "You may also like",
    "Follow us",
)
MENU = (
    "Home About Contact Shop Blog News Login Register Help FAQ Careers Press Search Categories Archive Sitemap".split()
)
SPAM = ("cheap watches online", "best casino bonus", "buy pills without prescription", "free download full version",
        "work from home and earn cash", "hot singles near you", "replica handbags outlet", "payday loans approved fast",
        "lose weight in ten days", "lowest price guaranteed")  # fmt: skip
FIRST = "Zelda Orson Mirabel Thaddeus Ottilie Barnaby Cordelia Lysander Philippa Leopold Robert Sarah Daniel".split()
LAST = "Quimby Ravenscroft Holloway Pettigrew Marchbanks Okonjo Vandermeer Castellano Thistlewood Abernathy".split()
CARDS = ("4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011111111111117")
IBANS = ("GB82 WEST 1234 5698 7654 32", "DE89 3704 0044 0532 0130 00")
THINGS = "apples tickets marbles coins books stamps eggs bottles chairs candles".split()
ACCENTS = ("café", "naïve", "“well”", "it’s", "façade", "—", "über", "señor", "£20", "…")


@dataclass
class Page:
    """A page of the crawl, and what is known about it.

    `group` is the number of the passage that it shows: copies have the same. `secrets` are made-up personal data that
    must not be left, `numbers` ordinary ones that must. `passage` is the text that is worth keeping, `item` the number
    of the evaluation item that it holds.
    """

    kind: str
    text: str
    url: str = ""
    group: int | None = None
    passage: str = ""
    secrets: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    item: int | None = None


class _Maker:
    """Makes the pages of a crawl, one after the other, from its random numbers."""

    def __init__(self, passages: Iterator[str], seed: int):
        self.numbers = random.Random(seed)
        self.passages = passages
        self.shown: list[tuple[int, str]] = []
        self.items: list[dict[str, str]] = []
        self.kinds: dict[str, Callable[[], Page]] = {
            "good": self.good, "page": self.page, "boilerplate": self.boilerplate, "spam": self.spam, "list": self.list,
            "exact copy": self.exact_copy, "near copy": self.near_copy, "pasted passage": self.pasted,
            "damaged encoding": self.damaged, "foreign": self.foreign, "personal data": self.personal,
            "evaluation item": self.evaluation, "fragment": self.fragment,
        }  # fmt: skip

    def make(self, kind: str) -> Page:
        """A page of a kind, with an address."""
        page = self.kinds[kind]()
        place = f"{self.numbers.choice(THINGS)}/{self.numbers.randrange(10**6)}"
        page.url = page.url or f"https://www.example.{self.numbers.choice(['com', 'org', 'net'])}/{place}"
        return page

    def passage(self) -> tuple[int, str]:
        """A passage that no page showed before. Raises InputError if the source has none left."""
        text = next(self.passages, None)
        if text is None:
            raise InputError(
                f"the source has only {len(self.shown)} passages, too few for so many pages; ask for fewer documents, "
                "or give a larger source"
            )
        self.shown.append((len(self.shown), text))
        return self.shown[-1]

    def good(self) -> Page:
        group, text = self.passage()
        return Page("good", text, group=group, passage=text)

    def page(self) -> Page:
        """A passage as a page of HTML with menus."""
        group, text = self.passage()
        menu = "".join(f'<li><a href="/{name.lower()}">{name}</a></li>' for name in self.numbers.sample(MENU, 8))
        body = "".join(f"<p>{html.escape(part)}</p>\n" for part in text.split("\n") if part.strip())
        footer = ". ".join(self.numbers.sample(BOILERPLATE, 3))
        content = (
            "<!DOCTYPE html>\n<html><head><title>Stories</title><script>var a = {b: 1};</script></head><body><nav><ul>"
            f"{menu}</ul></nav>\n<main><article>\n{body}</article></main>\n<footer>{footer}</footer></body></html>"
        )
        return Page("page", content, group=group, passage=text)

    def boilerplate(self) -> Page:
        lines = [self.numbers.choice(BOILERPLATE) + self.numbers.choice(["", "", "."]) for _ in range(14)]
        lines[3:3] = self.numbers.sample(MENU, 12)
        return Page("boilerplate", "\n".join(lines))

    def spam(self) -> Page:
        phrases = self.numbers.sample(SPAM, 2)
        words = [self.numbers.choice(phrases) for _ in range(self.numbers.randrange(30, 80))]
        place = "-".join(phrases[0].split())
        return Page("spam", " ".join(words) + "!", f"https://www.{place}.example.com/{self.numbers.randrange(10**6)}")

    def list(self) -> Page:
        rows = [f"- {self.numbers.choice(THINGS)} #{self.numbers.randrange(999)} ..." for _ in range(60)]
        return Page("list", "\n".join(rows))

    def exact_copy(self) -> Page:
        group, text = self._shown()
        return Page("exact copy", text, group=group, passage=text)

    def near_copy(self) -> Page:
        """A page that was shown, with a few words changed and a line before it."""
        group, text = self._shown()
        words = text.split(" ")
        for _ in range(max(1, len(words) // 60)):
            words[self.numbers.randrange(len(words))] = self.numbers.choice(["indeed", "perhaps", "often", "scarcely"])
        head = f"Posted by a reader on day {self.numbers.randrange(1, 29)}.\n"
        return Page("near copy", head + " ".join(words), group=group, passage=text)

    def pasted(self) -> Page:
        """A new passage with 90 words of another page in it."""
        _, other = self._shown()
        group, text = self.passage()
        words = other.split()
        start = self.numbers.randrange(max(1, len(words) - 90))
        piece = " ".join(words[start : start + 90])
        return Page("pasted passage", f"{text}\n{piece}", group=group, passage=text)

    def damaged(self) -> Page:
        """UTF-8 that was read as Windows-1252."""
        group, text = self.passage()
        words = text.split(" ")
        for _ in range(max(4, len(words) // 40)):
            words.insert(self.numbers.randrange(len(words)), self.numbers.choice(ACCENTS))
        right = " ".join(words)
        wrong = right.encode("utf-8").decode("cp1252", "ignore")
        return Page("damaged encoding", wrong, group=group, passage=right)

    def foreign(self) -> Page:
        name = self.numbers.choice(sorted(FOREIGN))
        sentences = " ".join(FOREIGN[name].split()).split(". ")
        self.numbers.shuffle(sentences)
        return Page("foreign", ". ".join(sentences + self.numbers.sample(sentences, 3)) + ".")

    def personal(self) -> Page:
        """A passage with made-up personal data and with ordinary numbers."""
        group, text = self.passage()
        first, last = self.numbers.choice(FIRST), self.numbers.choice(LAST)
        mail = f"{first.lower()}.{last.lower()}{self.numbers.randrange(99)}@example.org"
        phone = f"(212) 555-01{self.numbers.randrange(100):02d}"
        british = f"+44 20 7946 0{self.numbers.randrange(1000):03d}"
        card, iban = self.numbers.choice(CARDS), self.numbers.choice(IBANS)
        ordinary = [
            str(self.numbers.randrange(1700, 2020)),
            f"{self.numbers.randrange(10, 99)},{self.numbers.randrange(1000):03d}",
            f"{self.numbers.randrange(100)}.{self.numbers.randrange(10**4):04d}",
            "978-3-16-148410-0",
            "4111 1111 1111 1112",
        ]
        lines = [
            f"My name is {first} {last}, and you can write to {mail}.",
            f"Call me at {phone} or {british} after six.",
            f"I paid with my card {card}, and the rest from my account {iban}.",
            f"In {ordinary[0]} there were {ordinary[1]} people, or {ordinary[2]} per cent; see ISBN {ordinary[3]}.",
            f"The order number was {ordinary[4]}.",
        ]
        secrets = [f"{first} {last}", mail, phone, british, card, iban]
        return Page("personal data", text + "\n" + " ".join(lines), group=group, passage=text, secrets=secrets,
                    numbers=ordinary)  # fmt: skip

    def evaluation(self) -> Page:
        """A passage with a question of the evaluation set and its answer."""
        group, text = self.passage()
        first, last = self.numbers.choice(FIRST), self.numbers.choice(LAST)
        many, few, price = self.numbers.randrange(50, 999), self.numbers.randrange(2, 50), self.numbers.randrange(2, 20)
        thing = self.numbers.choice(THINGS)
        question = (
            f"{first} {last} brought {many} {thing} to the market and gave {few} of them to a neighbour before selling "
            f"all the others for {price} pence each. How many pence did {first} earn that day?"
        )
        self.items.append({"question": question, "answer": str((many - few) * price)})
        return Page("evaluation item", f"{text}\n{question} {(many - few) * price}", group=group, passage=text,
                    item=len(self.items))  # fmt: skip

    def fragment(self) -> Page:
        return Page("fragment", " ".join(self.numbers.sample(MENU, self.numbers.randrange(1, 8))))

    def _shown(self) -> tuple[int, str]:
        if not self.shown:
            self.passage()
        return self.numbers.choice(self.shown)


def passages_of(source: str, words: int, column: str = "text") -> Iterator[str]:
    """Passages of about `words` words of a source, cut between sentences; shorter documents are one.

    Wrapped lines are joined up to a line that ends a sentence.
    """
    for text in read_documents(source, column=column):
        lines: list[str] = []
        begun: list[str] = []
        size = 0
        for line in text.splitlines():
            parts = line.split()
            begun += parts
            size += len(parts)
            if begun and (not parts or parts[-1][-1] in '.?!"'):
                lines.append(" ".join(begun))
                begun = []
                if size >= words:
                    yield "\n".join(lines)
                    lines, size = [], 0
        if begun:
            lines.append(" ".join(begun))
        if size >= words // 2:
            yield "\n".join(lines)


def make_pages(passages: Iterator[str], documents: int, seed: int = 0) -> tuple[list[Page], list[dict[str, str]]]:
    """The pages in random order, and the items of the evaluation set."""
    maker = _Maker(passages, seed)
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * documents))]
    maker.numbers.shuffle(kinds)
    return [maker.make(kind) for kind in kinds], maker.items


def write_crawl(
    folder: Path, *, source: str = "british-novels", documents: int = 2000, words: int = 250, seed: int = 0
) -> dict[str, int]:
    """Writes `crawl.jsonl`, `truth.jsonl`, `evaluation.jsonl` and a recipe for them; returns the pages of each kind.

    `source` gives the passages; those after the last page's stay unused, so that they can be held out.
    """
    pages, items = make_pages(passages_of(source, words), documents, seed)
    with atomic_write(folder / "crawl.jsonl") as crawl, atomic_write(folder / "truth.jsonl") as truth:
        for number, page in enumerate(pages):
            row = {"id": number, "url": page.url, "text": page.text}
            crawl.write(json.dumps(row, ensure_ascii=False) + "\n")
            known: dict[str, Any] = {key: value for key, value in page.__dict__.items() if key not in ("text", "url")}
            truth.write(json.dumps({"id": number, **known}, ensure_ascii=False) + "\n")
    with atomic_write(folder / "evaluation.jsonl") as evaluation:
        for item in items:
            evaluation.write(json.dumps(item, ensure_ascii=False) + "\n")
    write_text(folder / "recipe.toml", tomli_w.dumps(crawl_recipe(folder)))
    counts: dict[str, int] = {}
    for page in pages:
        counts[page.kind] = counts.get(page.kind, 0) + 1
    return dict(sorted(counts.items()))


def crawl_recipe(folder: Path) -> dict[str, Any]:
    """A recipe with every step that the crawl has junk for."""
    kinds: Sequence[dict[str, Any]] = (
        {"kind": "url", "words": [word for phrase in SPAM for word in phrase.split()[:2]], "min_words": 2},
        {"kind": "html"},
        {"kind": "unicode"},
        {"kind": "language"},
        {"kind": "length"},
        {"kind": "gopher_quality", "min_alphabetic_words": 0.7},  # dialogue has many marks
        {"kind": "gopher_repetition"},
        {"kind": "fineweb_quality"},
        {"kind": "decontaminate", "sets": [{"path": str((folder / "evaluation.jsonl").resolve())}]},
        {"kind": "personal_data"},
        {"kind": "exact_duplicates"},
        {"kind": "near_duplicates"},
        {"kind": "substring_duplicates"},
    )
    return {
        "name": folder.name,
        "description": textwrap.shorten("A generated crawl with known junk", 80),
        "unit_megabytes": 2,
        "source": [{"path": str((folder / "crawl.jsonl").resolve()), "licence": "generated; passages of the source"}],
        "step": list(kinds),
        "output": {"removed": True},
    }


def passages_shown(folder: Path) -> int:
    """How many passages of its source the pages of a crawl show."""
    with open(folder / "truth.jsonl", encoding="utf-8") as handle:
        groups = [json.loads(line)["group"] for line in handle]
    return 1 + max((group for group in groups if group is not None), default=-1)


def held_out(source: str, words: int, skip: int, count: int) -> list[str]:
    """Passages after the first `skip`, which no page of the crawl shows."""
    return list(islice(passages_of(source, words), skip, skip + count))
