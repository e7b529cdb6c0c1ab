"""Our writer of safetensors files writes the library's bytes."""

import io

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from quatrain.models.io.safetensors_writer import DTYPES, write_safetensors


def written(tensors, metadata=None):
    file = io.BytesIO()
    write_safetensors(file, tensors, metadata)
    return file.getvalue()


shapes = st.lists(st.integers(0, 4), max_size=3)
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\'), min_size=1, max_size=8)


@given(st.dictionaries(names, st.tuples(st.sampled_from(list(DTYPES)), shapes), max_size=6), st.booleans())
def test_the_bytes_are_those_of_the_library(entries, told):
    tensors = {}
    for number, (name, (dtype, shape)) in enumerate(entries.items()):
        values = torch.arange(torch.Size(shape).numel()).reshape(shape) * 3 + number
        tensors[name] = values > 4 if dtype == torch.bool else values.to(torch.float32).to(dtype)
    metadata = {"format": "pt"} if told else None
    assert written(tensors, metadata) == save(tensors, metadata)


def test_a_transposed_tensor_is_written_as_it_reads():
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert written({"a": tensor}) == save({"a": tensor.contiguous()})
