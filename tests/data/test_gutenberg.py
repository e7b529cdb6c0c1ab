"""Project Gutenberg's wrapping comes off; everything else stays to the letter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.data.gutenberg import strip_pieces

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
BOOK = "CHAPTER I\n\nIt was a dark night.\n\n*** A line of stars ***\n\nThe end of the project.\n"

NEW = f"""The Project Gutenberg eBook of A Book

Title: A Book
Credits: Someone and the Online Distributed Proofreading Team

*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***



Produced by Someone and
the Online Distributed Proofreading Team at https://www.pgdp.net


{BOOK}

*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***

Updated editions will replace the previous one.
"""
OLDER = f"""Project Gutenberg's A Book, by A. Writer

***START OF THIS PROJECT GUTENBERG EBOOK A BOOK WITH A LONG TITLE
THAT GOES OVER THE LINE***


E-text prepared by Someone


{BOOK}

End of the Project Gutenberg EBook of A Book, by A. Writer

***END OF THIS PROJECT GUTENBERG EBOOK A BOOK***
"""
OLDEST = f"""The Project Gutenberg Etext of A Book

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*


{BOOK}

End of Project Gutenberg Etext of A Book
"""


def strip_gutenberg(text: str) -> str:
    return "".join(strip_pieces([text]))


@pytest.mark.parametrize("text", [NEW, OLDER, OLDEST], ids=["new", "older", "oldest"])
def test_header_and_footer_come_off(text: str) -> None:
    assert strip_gutenberg(text) == BOOK


@pytest.mark.parametrize("text", [NEW, OLDER, OLDEST], ids=["new", "older", "oldest"])
@pytest.mark.parametrize("size", [1, 7, 100, 4000])
def test_however_it_comes(text: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(strip_pieces(pieces)) == BOOK


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.text() | st.sampled_from(["\n\n", "*** ", "Project Gutenberg", "Produced by X\n"])))
def test_other_texts_stay_untouched(pieces: list[str]) -> None:
    assert "".join(strip_pieces(pieces)) == "".join(pieces)


def test_a_text_about_gutenberg_stays_untouched() -> None:
    text = "x\n" * 40_000 + "*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n" + BOOK
    assert strip_gutenberg(text) == text
    mention = "The Project Gutenberg is a library.\n\nEnd of Project Gutenberg week.\n"
    assert strip_gutenberg(mention) == mention


def test_a_long_book_flows_and_a_lost_footer_does_no_harm() -> None:
    header = "*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n\n"
    line = "a line of the book\n"
    pieces = [header, *[line * 50] * 200]
    out = list(strip_pieces(pieces))
    assert "".join(out) == line * 10_000
    assert max(map(len, out)) < 10_000 and len(out) > 150
    unbroken = [header, *["word " * 1000] * 50]
    out = list(strip_pieces(unbroken))
    assert "".join(out) == "word " * 50_000 and max(map(len, out)) < 25_000


@pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
def test_the_real_sherlock() -> None:
    text = (DATA / "text/sherlock_holmes_adventures.txt").read_text("utf-8-sig")
    book = strip_gutenberg(text)
    assert book.startswith("THE ADVENTURES OF SHERLOCK HOLMES\n\nby\n\nSIR ARTHUR CONAN DOYLE\n")
    assert book.endswith("I believe that she has met with considerable success.\n")
    assert "gutenberg" not in book.lower()
    assert book.rstrip("\n") in text
    assert strip_gutenberg(book) == book
