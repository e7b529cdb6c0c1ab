"""Four areas of knowledge as topics: MMLU's questions (Hendrycks et al. 2021, arXiv 2009.03300) without their choices.

The area of each of the 57 subjects is that of the paper's appendix. One row in five, by a hash of the question, is for
the test. A model that trained on these questions must not be scored on MMLU.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quatrain.data.rows import read_records

AREAS = {
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory
        professional_law world_religions""",
    "social sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "science": """abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "other": """business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
AREA = {subject: area for area, subjects in AREAS.items() for subject in subjects.split()}


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"text": question, "label": area} of the part "train" or "test"; each question once."""
    seen = set()
    for path in paths:
        for record in read_records(path):
            question = str(record.value["question"]).strip()
            if question in seen:
                continue
            seen.add(question)
            is_test = zlib.crc32(question.encode()) % 5 == 0
            if is_test == (part == "test"):
                yield {"text": question, "label": AREA[record.value["subject"]]}
