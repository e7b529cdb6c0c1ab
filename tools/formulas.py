"""Formulas of the guide as drawings: TeX between dollar signs becomes an inline SVG, in the colour of the text.

The site needs no script and no other host for it. matplotlib's mathtext knows most of TeX's mathematics; what it does
not know is shown as TeX.
"""

from __future__ import annotations

import html
import re
from typing import Any

CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$((?:[^$\n]|\n(?!\n))+?)\$", re.DOTALL)
REPLACED = (
    (r"\\(d?)t?frac\s*(\w)\s*(\w)(?!\w)", r"\\\1frac{\2}{\3}"),
    (r"\\tfrac", r"\\frac"),
    (r"\\underbrace\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}_\{\\text\{[^}]*\}\}", r"\1"),
    (r"\\(?:text|operatorname)\{", r"\\mathrm{"),
    (r"_\\mathrm\{([^{}]*)\}", r"_{\\mathrm{\1}}"),
    (r"\\mathcal\s+(\w)", r"\\mathcal{\1}"),
    (r"\\[lr]vert\b", "|"),
    (r"\\top\b", r"T"),
    (r"\\big\b", ""),
    (r"\\!|\\,", " "),
    (r"\\(?:dots|ldots)\b", r"\\ldots"),
    (r"\s+", " "),
)
"""What mathtext calls otherwise or does not know."""
SIZE, EM = 11, 10
"""The size of the letters, and that of the page's own (1 em), in units of the drawing: thin letters look smaller."""


def drawn(text: str) -> str:
    """A page with its formulas drawn; code stays as it is."""
    parts = CODE.split(text)
    return "".join(part if at % 2 else FORMULA.sub(_formula, part) for at, part in enumerate(parts))


def _formula(match: re.Match[str]) -> str:
    tex = (match[1] or match[2]).strip()
    picture = svg(tex.replace("\\frac", "\\dfrac") if match[1] else tex)
    if match[1]:
        return f'<p style="text-align: center; overflow-x: auto">{picture}</p>'
    return picture


def svg(tex: str) -> str:
    """One formula as an SVG element on one line; as code if mathtext cannot parse it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath, TextToPath

    for pattern, replacement in REPLACED:
        tex = re.sub(pattern, replacement, tex)
    own = FontProperties(size=SIZE, math_fontfamily="cm")
    try:
        width, height, depth = TextToPath().get_text_width_height_descent(f"${tex}$", own, ismath=True)
        path = TextPath((0, 0), f"${tex}$", prop=own)
    except (ValueError, RuntimeError):
        return f"<code>{html.escape(tex)}</code>"
    width += 2  # slanted letters end beyond their box
    size = f'width="{width / EM:.2f}em" height="{height / EM:.2f}em"'
    place = f'style="vertical-align: {-depth / EM:.2f}em"'
    box = f'viewBox="0 {depth - height:.1f} {width:.1f} {height:.1f}"'
    label = f'role="img" aria-label="{html.escape(tex, quote=True)}"'
    return f'<svg {size} {place} {box} {label}><path fill="currentColor" d="{_outline(path)}"/></svg>'


def _outline(path: Any) -> str:
    """A path of matplotlib, whose y goes up, as SVG's commands."""
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    steps = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        shown = " ".join(f"{x:.2f} {-y:.2f}" for x, y in zip(points[::2], points[1::2], strict=True))
        steps.append("Z" if code == 79 else letters[code] + shown)
    return "".join(steps)
