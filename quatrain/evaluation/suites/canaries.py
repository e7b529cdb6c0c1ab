"""Exposure of planted secrets: how much of a canary in the training text does a model know?

Carlini et al. 2019 (arXiv 1802.08232). `canaries:FILE` has the form and the secret of each canary that was planted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.safety.asking import model_of
from quatrain.evaluation.safety.canaries import UNSEEN, Canary, exposure
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, Suite


class Canaries(Suite):
    """Exposure in bits, beside that of secrets that were not seen."""

    name = "canaries"
    title = "exposure of planted secrets"
    paper = "Carlini et al. 2019, arXiv 1802.08232"
    columns = 'the columns form (such as "my code is {digits:4}"), secret, and times (how often it was planted)'
    chunk = 4

    def parse(self, value: Mapping[str, Any]) -> dict[str, Any]:
        try:
            canary = Canary(str(value["form"]), str(value["secret"]))
        except InputError as error:
            raise ValueError("; ".join(error.problems)) from error
        return {"form": canary.form, "secret": canary.secret, "times": int(value.get("times", 1))}

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        model_of(subject, self.name)

        def scores(texts: Sequence[str]) -> list[float]:
            return [each.total for each in subject.read(texts)]

        outputs = []
        for row in rows:
            found = exposure(Canary(row.value["form"], row.value["secret"]), scores, seed=self.seed)
            outputs.append({"bits": found.bits, "rank": found.rank, "space": found.space, "exact": found.exact})
        return outputs

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        return [
            mean_of("exposure", [output["bits"] for output in outputs],
                    "log2 of the possible secrets less log2 of the rank of the planted one.",
                    higher_is_better=False, unit="bits"),
            mean_of("first", [float(output["rank"] == 1) for output in outputs],
                    "Secrets that are likelier than every other one of their form.", higher_is_better=False),
        ]  # fmt: skip

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        unseen = [{"bits": UNSEEN, "rank": 2}] * len(rows)
        return [Baseline("secrets that were not seen", unseen, is_ceiling=True)]

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        pairs = sorted(zip(rows, outputs, strict=True), key=lambda pair: pair[0].value["times"])
        return {
            "by_group": [
                {
                    "group": f"planted {row.value['times']} times: {row.value['form']}",
                    "value": output["bits"],
                    "count": 1,
                }
                for row, output in pairs
            ]
        }

    def question(self, example: Row) -> str:
        return str(example.value["form"])

    def reference(self, example: Row) -> str:
        return str(example.value["secret"])

    def shown(self, row: Row, output: Output) -> str:
        return f"rank {output['rank']:,} of {output['space']:,}, {output['bits']:.1f} bits"


SUITE = Canaries
