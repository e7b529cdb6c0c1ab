"""Checks a data file before training: reports all faults with place, field and fix.

The report also describes the data: format, rows, labels and lengths.
"""

from __future__ import annotations

import array
import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.corpus import Corpus, FileSource
from quatrain.data.decoding import explain_byte, read_blocks, read_text, suffix_of
from quatrain.data.preference_summary import PreferenceSummary
from quatrain.data.records import (
    AnyRecord,
    Choice,
    Fault,
    LabelledText,
    Preference,
    RatedAnswer,
    TaggedTokens,
)
from quatrain.data.rules import DuplicateFinder, Finding, TagChecker, check_record
from quatrain.data.sources import skipped_files
from quatrain.data.unread import UnreadFields
from quatrain.tokenizers.templates import templates_at

LIMIT = 100
"""Limit on the faults, and on the warnings, that a report lists; all are counted."""

DEFAULT_TEMPLATE = "chatml"
"""The chat template with which chats are checked."""

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)

QUANTILES = (("least", 0.0), ("quarter", 0.25), ("median", 0.5), ("three quarters", 0.75), ("95 %", 0.95),
             ("99 %", 0.99), ("most", 1.0))  # fmt: skip


@dataclass
class CheckReport:
    """The result of a check: the first faults and warnings, their counts, and a description of the data.

    `preferences` has the counts of `PreferenceSummary` for pairs and rated answers, otherwise it is empty.

    `rows` counts the rows of the files, `records` the records without a fault that they hold.
    """

    source: str
    format: str
    described: str
    rows: int = 0
    records: int = 0
    faults: list[Finding] = field(default_factory=list)
    fault_count: int = 0
    warnings: list[Finding] = field(default_factory=list)
    warning_count: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    scheme: str | None = None
    unit: str = "characters"
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    preferences: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    left_out_count: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no faults. Warnings do not count."""
        return not self.fault_count

    def add(self, finding: Finding) -> None:
        """Add a fault or a warning."""
        if finding.warning:
            self.warning_count += 1
            if len(self.warnings) < LIMIT:
                self.warnings.append(finding)
        else:
            self.fault_count += 1
            if len(self.faults) < LIMIT:
                self.faults.append(finding)

    def to_dict(self) -> dict[str, Any]:
        """The report for programs."""
        return {"ok": self.ok, **asdict(self)}


def check(
    source: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    count: Callable[[str], int] = len,
    unit: str = "characters",
    template: str | None = None,
    **options: Any,
) -> CheckReport:
    """Read all of `source` and report its faults. `count` measures the length of a text, in `unit`.

    Chats are rendered with `template` (a name such as "chatml", the default; a Jinja file; or a model folder), and
    fields without effect are reported. `options` are those of `Corpus`. Raises InputError if the source, its format or
    the template is unknown.
    """
    templates = templates_at(template or DEFAULT_TEMPLATE)
    corpus = Corpus(source, format=format, columns=columns, reader=read_anyway, **options)
    report = CheckReport(corpus.source, corpus.format, corpus.layout.describe(), unit=unit)
    left = skipped_files(source)
    report.left_out, report.left_out_count = left.lines(source), left.count
    if left.count > left.read:
        text = f"{left.count:,} files are left out and {left.read:,} are read; name the files with the data"
        report.add(Finding(str(source), text))
    if isinstance(corpus.origin, FileSource):
        for path in corpus.origin.files:
            for finding in wrong_bytes(path):
                report.add(finding)
    unread = None
    if corpus.format in ("chat", "preference", "rated"):
        unread = UnreadFields(templates, template or DEFAULT_TEMPLATE, corpus.convert)
    _Check(corpus, report, count, unread).run()
    if unread is not None:
        if unread.refusal is not None:
            place, text = unread.refusal
            report.add(Finding(place, f"{text} ({unread.refused:,} rows)", None, template is None))
        for place, name, text in unread.findings():
            report.add(Finding(place, text, name, True))
    order = {str(path): number for number, path in enumerate(getattr(corpus.origin, "files", []))}
    for findings in (report.faults, report.warnings):
        findings.sort(key=lambda finding: _position(finding.place, order))
    return report


def _position(place: str, order: Mapping[str, int]) -> tuple[int, int]:
    path, _, line = place.rpartition(":")
    number = line.removeprefix("row ")
    return order.get(path, 0), int(number) if number.isdigit() else 0


class _Check:
    """Reads the rows of a corpus and fills a report."""

    def __init__(self, corpus: Corpus, report: CheckReport, count: Callable[[str], int], unread: UnreadFields | None):
        self.corpus, self.report, self.count, self.unread = corpus, report, count, unread
        self.tags = TagChecker(LIMIT)
        self.repeated = DuplicateFinder()
        self.lengths: dict[str, array.array[int]] = {}
        self.labels = Counter[str]()
        self.firsts: dict[str, str] = {}
        self.preferences = PreferenceSummary(count)

    def run(self) -> None:
        """Run all checks."""
        try:
            for row in self.corpus.rows():
                self.report.rows += 1
                try:
                    records = self.corpus.convert(row)
                except Fault as fault:
                    for single in fault.all:
                        self.report.add(Finding(row.place, str(single), single.field))
                    continue
                if self.unread is not None:
                    self.unread.add(row, records)
                if self.corpus.format == "preference" and not records:
                    self.preferences.tie()
                for record in records:
                    before = self.report.fault_count
                    self._check_record(row, record)
                    self.report.records += self.report.fault_count == before
        except InputError as error:
            self.report.add(Finding(self.corpus.origin.name, error.message))
        if not self.report.records and not self.report.fault_count:
            self.report.add(Finding(self.corpus.origin.name, "it has no rows; write at least one"))
        self._labels()
        self.report.preferences = self.preferences.to_dict()
        for name, values in self.lengths.items():
            self.report.lengths[name] = quantiles(values)

    def _check_record(self, row: Any, record: AnyRecord) -> None:
        for finding in check_record(row, record):
            self.report.add(finding)
        again = self.repeated.add(row, record)
        if again is not None:
            self.report.add(again)
        if isinstance(record, TaggedTokens):
            self.tags.add(row, record)
        elif isinstance(record, Preference | RatedAnswer):
            self.preferences.add(record)
        elif (isinstance(record, LabelledText) and not self.corpus.layout.scores) or isinstance(record, Choice):
            self._label(str(record.label), row.place)
        for name, text in record.parts():
            self.lengths.setdefault(name, array.array("q")).append(self.count(text))

    def _label(self, label: str, place: str) -> None:
        self.labels[label] += 1
        self.firsts.setdefault(label, place)

    def _labels(self) -> None:
        """Report rare or nearly equal labels, and invalid tag sequences."""
        report = self.report
        findings, count_of_faults = self.tags.findings()
        for finding in findings:
            report.add(finding)
        report.fault_count += count_of_faults - len(findings)
        report.scheme = self.tags.scheme
        counts, firsts = (self.tags.count, self.tags.firsts) if self.tags.count else (self.labels, self.firsts)
        report.labels = dict(counts.most_common())
        word = "tag" if self.tags.count else "label"
        if self.corpus.format not in ("labelled", "tagged"):
            return
        alike: dict[str, str] = {}
        for label, count in counts.items():
            if count == 1 and sum(counts.values()) > len(counts):
                text = f"the {word} {label!r} occurs once, which is too rare to learn; add examples or correct it"
                report.add(Finding(firsts[label], text, word, True))
            other = alike.setdefault("".join(label.casefold().split()), label)
            if other != label:
                text = f"the {word}s {label!r} and {other!r} differ only in case or spaces; use one of them"
                report.add(Finding(firsts[label], text, word, True))
        if len(counts) == 1 and sum(counts.values()) > 1:
            only = next(iter(counts))
            report.add(Finding(firsts[only], f"{only!r} is the only {word}, so nothing can be learned", word, True))


def quantiles(values: array.array[int]) -> dict[str, int]:
    """The QUANTILES by nearest rank, so each is a value that occurs."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {name: ordered[round(share * last)] for name, share in QUANTILES}


def read_anyway(path: Path) -> Iterator[str]:
    """The text of a file in chunks, with "�" for invalid UTF-8, so that the rest can be checked too."""
    head = next(read_blocks(path), b"")
    if head.startswith(_OTHER_MARKS):
        yield from read_text(path)
        return
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    pending = ""
    for block in read_blocks(path):
        text = pending + decoder.decode(block)
        # "\r\n" across two blocks is one line end
        pending = "\r" if text.endswith("\r") else ""
        yield text[: len(text) - len(pending)].replace("\r\n", "\n").replace("\r", "\n")
    yield (pending + decoder.decode(b"", True)).replace("\r\n", "\n").replace("\r", "\n")


def wrong_bytes(path: Path) -> Iterator[Finding]:
    """A finding for each line that is not UTF-8, with its first wrong byte and the offset in the file."""
    if suffix_of(path) == ".parquet":
        return
    offset = 0
    for number, line in enumerate(_byte_lines(path), 1):
        if number == 1 and line.startswith(_OTHER_MARKS):
            return
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Finding(f"{path}:{number}", explain_byte(path, error, "utf-8", offset + error.start))
        offset += len(line)


def _byte_lines(path: Path) -> Iterator[bytes]:
    pending = b""
    for block in read_blocks(path):
        *whole, pending = (pending + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if pending:
        yield pending
