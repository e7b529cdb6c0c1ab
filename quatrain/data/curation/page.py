"""The funnel as one self-contained HTML page: kept and lost tokens, samples on either side of each threshold, sliders.

Nothing is loaded from the network, and only the page's own script may run, which its hash names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from quatrain.data.curation.funnel import SAMPLES, Funnel, FunnelStep, Sample, borderline, share

EXAMPLES = 3
"""Samples of a step that are shown where it has no threshold."""
DETAILS = 20
"""Things that a step found that are named."""


def funnel_page(funnel: Funnel) -> str:
    """The page's HTML; the same funnel gives the same bytes."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = files("quatrain.data.curation")
    template = Environment(autoescape=True).from_string(here.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    script = here.joinpath("page.js").read_text(encoding="utf-8")
    return template.render(
        funnel=funnel,
        total=max(1, funnel.read.tokens),
        rules=[_rules(step) for step in funnel.steps],
        samples=[_samples(step) for step in funnel.steps],
        most=SAMPLES,
        share=share,
        examples=_examples,
        most_frequent=_most_frequent,
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _rules(step: FunnelStep) -> list[dict[str, Any]]:
    """One entry for each threshold, with the samples nearest to it."""
    found = []
    for limit in step.limits:
        kept, removed = borderline(step, limit)
        for side, threshold in (("least", limit.least), ("most", limit.most)):
            if threshold is not None:
                found.append({"limit": limit, "side": side, "threshold": threshold, "kept": kept, "removed": removed})
    return found


def _samples(step: FunnelStep) -> dict[str, Any]:
    """What the sliders need of a step."""
    rows = [
        {"tokens": sample.tokens, "measures": sample.measures, "removed": sample.removed}
        for sample in step.counts.samples
        if sample.measures
    ]
    return {"limits": [limit.__dict__ for limit in step.limits], "samples": rows}


def _examples(step: FunnelStep, removed: bool) -> list[Sample]:
    return [sample for sample in step.counts.samples if (sample.removed is not None) == removed][:EXAMPLES]


def _most_frequent(details: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(details.items(), key=lambda item: (-item[1], item[0]))[:DETAILS]
