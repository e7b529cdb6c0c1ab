"""Splits text of any script into words, for ROUGE and for the choice of BLEU's tokenizer.

ASCII text is split as by Google's rouge-score: runs of letters and digits in lower case. In other scripts a word is a
run of letters with their marks, and digits. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
Tibetan) each character is a token. (Hasan et al. 2021, arXiv 2106.13822, use segmenters there; characters need none and
rank summaries alike.)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),  # Khmer symbols
    (0x3005, 0x3007),  # 々, 〆, 〇
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Burmese extended
    (0xAA60, 0xAA7F),  # Burmese extended
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x1AFF0, 0x1B16F),  # Kana extensions
    (0x20000, 0x3FFFF),  # Han, extensions B and later
)
_HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_ASCII = re.compile(r"[a-z0-9]+")
_ZERO_WIDTH_SPACE = "\u200b"


def words(text: str, stem: Callable[[str], str] | None = None) -> list[str]:
    """The words of a text, in lower case. `stem` shortens ASCII words of more than three letters, as rouge-score does.

    Accented letters are composed first (NFC), so that both of their encodings are equal.
    """
    if text.isascii():
        split = _ASCII.findall(text.lower())
    else:
        split = list(_unicode_words(unicodedata.normalize("NFC", text.casefold())))
    if stem is None:
        return split
    stemmed = (stem(word) if len(word) > 3 and word.isascii() else word for word in split)
    return [word for word in stemmed if word]


def _unicode_words(text: str) -> Iterable[str]:
    word = ""
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf" and character != _ZERO_WIDTH_SPACE:
            continue  # joiners, soft hyphens and direction marks do not end a word
        if kind[0] == "M" and word:
            word += character
            continue
        alone = _within(character, _UNSPACED)
        if word and (alone or kind[0] not in "LMN" or _within(word[0], _UNSPACED)):
            yield word
            word = ""
        if kind[0] in "LMN":
            word += character
    if word:
        yield word


def _within(character: str, ranges: Iterable[tuple[int, int]]) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ranges)


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """BLEU's tokenizer for these texts: `zh` if most letters are Chinese, `char` for other scripts without spaces,
    otherwise `13a`, with which a Chinese sentence would be one token.
    """
    han = unspaced = letters = 0
    for text in texts:
        if text.isascii():
            letters += len(text)
            continue
        for character in text:
            if character.isalpha():
                letters += 1
                unspaced += _within(character, _UNSPACED)
                han += _within(character, _HAN)
    if unspaced * 2 <= letters:
        return "13a"
    return "zh" if han * 10 >= unspaced * 9 else "char"
