"""Masks personal data: addresses, cards, bank accounts, telephone and social security numbers, and names.

Patterns find candidates, and checks drop what only looks like one: a card needs a right check digit (Luhn), an IBAN a
right remainder (ISO 13616), a telephone number the shape of one beside a word such as "call", or a country code. Names
are masked where the text says that a name follows ("my name is", "Dr."), and where a common given name precedes another
capitalized word.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Step, StepContext, StepSettings

Kind = Literal["email", "card", "iban", "ssn", "phone", "ip", "name"]

EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
CARD = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_VERSION = re.compile(r"\b(?:v|ver|version|release|section|chapter)\.?\s*$", re.IGNORECASE)
_NUMBER = r"(?:\(\d{2,5}\)|\d{2,5})(?:[ .\-/]?\d{2,5}){1,5}"
PHONE = re.compile(rf"(?<![\w.,+-])(?:(?:\+|00)[1-9]\d{{0,2}}[ .\-]?(?:\(0\))?)?{_NUMBER}(?![\w-]|[.,]\d)")
NORTH_AMERICAN = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}")
_NEAR_PHONE = re.compile(
    r"(?:\b(?:tel|phone|telephone|mobile|cell|call|fax|whatsapp|sms|text|ring|dial)\b|☎)[\w\s:.,'()]{0,24}$",
    re.IGNORECASE,
)
_WORD = r"[A-Z][a-z]+(?:[-'][A-Z][a-z]+)?"
_FULL = rf"{_WORD}(?: [A-Z]\.)?(?: {_WORD}){{0,2}}"
SAID = re.compile(
    r"(?P<before>\b(?:[Mm]y name is|I am called|[Nn]ame:|[Cc]ontact:|[Ww]ritten by|[Ss]igned,?|Dear|"
    rf"Mr\.?|Mrs\.?|Ms\.?|Miss|Dr\.?|Prof\.?|Professor)\s+)(?P<name>{_FULL})"
)
GIVEN = re.compile(rf"\b(?P<first>[A-Z][a-z]+)(?: [A-Z]\.)? {_WORD}\b")
NO_NAMES = frozenset(
    "Sir Madam All Editor Reader Readers Customer Customers Friend Friends Team Everyone Santa".split()
)
"""Words that follow "Dear" and are no names."""
NO_SURNAMES = frozenset(
    "Street Road Avenue Lane Park River Lake Beach City County State University College School Church Hospital Hotel "
    "Square Bridge Island Valley Hill Mountain Museum Airport Station Award Prize Day Show Band Company Group And Or "
    "The Is Was Has In On At Of For To With From By".split()
)
"""Words that make a given name the name of a place or a thing."""
GIVEN_NAMES = frozenset(
    """Aaron Adam Alan Albert Alex Alexander Alexandra Alice Alison Amanda Amber Amy Andrea Andrew Angela Ann Anna
    Anne Anthony Antonio Arthur Ashley Barbara Benjamin Bernard Beth Betty Beverly Bill Billy Bob Bonnie
    Brandon Brenda Brian Bruce Bryan Carl Carlos Carol Caroline Carolyn Catherine Charles Charlotte Cheryl
    Chris Christian Christina Christine Christopher Claire Craig Crystal Cynthia Dan Daniel Danielle David
    Dawn Deborah Debra Dennis Diana Diane Donald Donna Dorothy Douglas Edward Eleanor Elena Elizabeth Ellen
    Emily Emma Eric Erica Ethan Eugene Evelyn Frances Francis Frank Fred Gabriel Gary George Gerald Gloria
    Gordon Grace Graham Greg Gregory Hannah Harold Harry Heather Helen Henry Howard Ian Isabella Jack Jacob
    Jacqueline James Jamie Jane Janet Janice Jason Jean Jeff Jeffrey Jennifer Jeremy Jerry Jesse Jessica Jim
    Joan Joe Joel John Johnny Jonathan Jose Joseph Joshua Joyce Juan Judith Judy Julia Julie Justin Karen
    Katherine Kathleen Kathryn Katie Keith Kelly Kenneth Kevin Kimberly Kyle Larry Laura Lauren Lawrence Leo
    Linda Lisa Louis Louise Lucas Lucy Luis Margaret Maria Marie Marilyn Mark Martha Martin Mary Matthew
    Megan Melissa Michael Michelle Mike Mohamed Mohammed Monica Nancy Natalie Nathan Nicholas Nicole Noah
    Nora Olivia Oscar Pamela Patricia Patrick Paul Peter Philip Philippa Rachel Ralph Raymond Rebecca
    Richard Robert Robin Roger Ronald Rosa Rose Roy Russell Ruth Ryan Samantha Samuel Sandra Sara Sarah
    Scott Sean Sharon Shirley Simon Sofia Sophia Stephanie Stephen Steve Steven Stuart Susan Teresa Theresa
    Thomas Tim Timothy Tom Tyler Vanessa Victoria Vincent Walter Wayne Wendy William Zachary""".split()
)


class PersonalDataSettings(StepSettings):
    """`kinds` are what is masked, as `[EMAIL]`. `names` are given names beside the common English ones.

    A document with more than `most` findings is removed: it is a list of people.
    """

    kind: Literal["personal_data"] = "personal_data"
    kinds: Listing[Kind] = Field(default=("email", "card", "iban", "ssn", "phone", "ip", "name"), min_length=1)
    names: Listing[str] = ()
    most: int | None = Field(default=None, ge=0)


class PersonalData(Step):
    """Replaces what it finds by its kind in brackets; counts stay in the field `masked`."""

    Settings = PersonalDataSettings
    about = "personal data masked"

    def __init__(self, settings: PersonalDataSettings, context: StepContext):
        super().__init__(settings, context)
        self.given = GIVEN_NAMES | frozenset(settings.names)
        self.maskers = [self._maskers()[kind] for kind in ORDER if kind in settings.kinds]

    def apply(self, document: SourceDocument) -> Removal | None:
        text, found = document.text, 0
        for mask in self.maskers:
            text, count = mask(text)
            found += count
        if self.settings.most is not None and found > self.settings.most:
            return Removal(f"personal data above {self.settings.most}")
        if found:
            document.text = text
            document.fields["masked"] = found
        return None

    def _maskers(self) -> dict[str, Callable[[str], tuple[str, int]]]:
        return {
            "email": lambda text: masked(text, EMAIL, "EMAIL", sign="@"),
            "card": lambda text: masked(text, CARD, "CARD", lambda match: is_card(match.group())),
            "iban": lambda text: masked(text, IBAN, "IBAN", lambda match: is_iban(match.group())),
            "ssn": lambda text: masked(text, SSN, "SSN", sign="-"),
            "phone": lambda text: masked(text, PHONE, "PHONE", is_phone),
            "ip": lambda text: masked(text, IP, "IP", is_address, sign="."),
            "name": self._names,
        }

    def _names(self, text: str) -> tuple[str, int]:
        count = 0

        def said(match: re.Match[str]) -> str:
            nonlocal count
            name = match["name"]
            if name.split()[0] in NO_NAMES:
                return match.group()
            count += 1
            return f"{match['before']}[NAME]"

        def given(match: re.Match[str]) -> str:
            nonlocal count
            if match["first"] not in self.given or match.group().split()[-1] in NO_SURNAMES:
                return match.group()
            count += 1
            return "[NAME]"

        text = SAID.sub(said, text)
        return GIVEN.sub(given, text), count


ORDER = ("email", "iban", "card", "ssn", "ip", "phone", "name")
"""Longer numbers come first, so that no part of a card is taken for a telephone number."""


def masked(
    text: str, pattern: re.Pattern[str], name: str, check: Callable[[re.Match[str]], bool] = lambda match: True,
    sign: str = "",
) -> tuple[str, int]:  # fmt: skip
    """The text with `[NAME]` for what the pattern finds and the check confirms, and how much that is.

    A text without `sign` has nothing to find.
    """
    if sign not in text:
        return text, 0
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if not check(match):
            return match.group()
        count += 1
        return f"[{name}]"

    return pattern.sub(replace, text), count


def is_card(text: str) -> bool:
    """Whether digits are a card's: 13 to 19 of them, the first of a known network, with the check digit of Luhn."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) == 1:
        return False
    doubled = (2 * digit - 9 * (digit > 4) if place % 2 else digit for place, digit in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the remainder of an account number is right (ISO 13616)."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1


def is_address(match: re.Match[str]) -> bool:
    """Whether numbers are the address of somebody: versions and private networks are not."""
    if _VERSION.search(match.string[max(0, match.start() - 20) : match.start()]):
        return False
    try:
        return ipaddress.ip_address(match.group()).is_global
    except ValueError:
        return False


def is_phone(match: re.Match[str]) -> bool:
    """Whether a number is somebody's: with a country code, in North American form, or after a word such as "call"."""
    text = match.group()
    digits = sum(letter.isdigit() for letter in text)
    if not 7 <= digits <= 15:
        return False
    if text.startswith(("+", "00")) and digits >= 9:
        return True
    if NORTH_AMERICAN.fullmatch(text):
        return True
    return _NEAR_PHONE.search(match.string[max(0, match.start() - 40) : match.start()]) is not None


STEP = PersonalData
