"""The data card of a curation: sources, licences, counts, hashes and every setting, as a README for people.

`funnel.json` holds the same for programs, and `funnel.html` as a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from quatrain.core.atomic import write_json, write_text
from quatrain.core.reading import read_json
from quatrain.core.wording import format_bytes, printable
from quatrain.data.curation.funnel import Funnel, funnel_of, share
from quatrain.data.curation.page import funnel_page
from quatrain.data.curation.settings import CurationRecipe, to_dict

FUNNEL = "funnel.json"
MOST_BYTES = 1 << 28
"""Bytes of a funnel that are read back."""


def write_reports(folder: Path, recipe: CurationRecipe, funnel: Funnel, manifest: Mapping[str, Any]) -> None:
    """Writes `recipe.toml`, `funnel.json`, `funnel.html` and `README.md`."""
    write_text(folder / "recipe.toml", tomli_w.dumps(to_dict(recipe)))
    write_json(folder / FUNNEL, funnel.to_dict(), indent=None)
    write_text(folder / "funnel.html", funnel_page(funnel))
    write_text(folder / "README.md", data_card(recipe, funnel, manifest))


def read_funnel(folder: Path) -> Funnel:
    """The funnel of a finished curation."""
    return funnel_of(read_json(folder / FUNNEL, max_bytes=MOST_BYTES))


def data_card(recipe: CurationRecipe, funnel: Funnel, manifest: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    kept = funnel.kept
    lines = [f"# {_cell(recipe.name)}", ""]
    if recipe.description:
        lines += [recipe.description, ""]
    lines += [
        f"{kept.documents:,} documents, {kept.tokens:,} {funnel.unit}: "
        f"{share(kept.tokens / max(1, funnel.read.tokens))} of the {funnel.read.tokens:,} {funnel.unit} read.",
        "",
        "## Sources",
        "",
        *_table(("source", "licence", "documents kept", f"{funnel.unit} kept", "share"), [
            [source.title, source.stated_licence, *_amount(funnel, source.title, kept.tokens)]
            for source in recipe.source
        ]),
        "",
        *_table(("file", "bytes", "SHA-256"), [
            [row["path"], format_bytes(row["bytes"]) if "bytes" in row else "", row.get("sha256", "")]
            for row in manifest["sources"]
        ]),
        "",
        "## Funnel",
        "",
        *_table(funnel.columns, funnel.rows()),
        "",
        *(f"- {step.kind}: {step.about}" + (f" ({step.source})" if step.source else "") for step in funnel.steps),
        "",
        "## Result",
        "",
        *_table(("split", "documents", funnel.unit, "characters"), [
            [name, amount.documents, amount.tokens, amount.characters]
            for name, amount in sorted(funnel.outputs.items())
        ]),
        "",
        *_table(("file", "SHA-256"), [[name, digest] for name, digest in manifest["files"].items()]),
        "",
    ]  # fmt: skip
    if funnel.faults:
        lines += ["## Not read", "", *_table(("why", "count", "first places"), [
            [reason, count, ", ".join(funnel.places[reason])] for reason, count in sorted(funnel.faults.items())
        ]), ""]  # fmt: skip
    lines += ["## Settings", "", "```toml", tomli_w.dumps(to_dict(recipe)).rstrip(), "```", ""]
    return "\n".join(lines)


def _amount(funnel: Funnel, title: str, tokens: int) -> list[object]:
    amount = funnel.sources.get(title)
    if amount is None:
        return [0, 0, share(0)]
    return [amount.documents, amount.tokens, share(amount.tokens / max(1, tokens))]


def _table(columns: tuple[str, ...], rows: list[list[object]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append(
            "| " + " | ".join(_cell(f"{value:,}" if isinstance(value, int) else value) for value in row) + " |"
        )
    return lines


def _cell(value: object) -> str:
    return printable(str(value)).replace("|", "\\|").replace("\n", " ")
