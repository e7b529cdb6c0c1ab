"""One message for every library that is missing, and one way to import what an extra brings."""

import re
from pathlib import Path

import pytest

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.libraries import require


def test_a_missing_library_is_named_with_what_needs_it_and_its_extra():
    with require("a test", "json", "dev"):
        import json
    assert json.loads("[1]") == [1]
    message = "a test needs nolib, which is not installed. Install it with: pip install 'quatrain[dev]'; json does not"
    with pytest.raises(InputError, match=re.escape(message)), require("a test", "nolib", "dev", "; json does not"):
        import nolib_that_is_missing  # noqa: F401


def test_no_other_code_writes_that_message():
    sources = {path: path.read_text(encoding="utf-8") for path in Path(quatrain.__file__).parent.rglob("*.py")}
    wrote = [path.name for path, text in sources.items() if "which is not installed" in text]
    assert wrote == ["libraries.py"]
