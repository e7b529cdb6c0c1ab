"""The guide names every parameter, and shows every picture that is drawn, and no other."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from quatrain.generation.params import SamplingParams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
SOURCE = (ROOT / "quatrain" / "generation" / "params.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_every_parameter_is_explained(name):
    assert f"`{name}" in PAGE
    assert re.search(rf'^    {name}: .*\n    """', SOURCE, re.MULTILINE), "a docstring under the field"


def test_every_picture_is_drawn_and_shown(tmp_path):
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("draw_choosing", ROOT / "tools" / "draw_choosing.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images").glob("choosing-*.png")}
    assert drawn == set(re.findall(r"images/(choosing-\w+\.png)", PAGE))
    assert all(path.stat().st_size < 20_000 for path in tmp_path.iterdir())
