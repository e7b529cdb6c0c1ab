"""Networks in bfloat16 stay as near to float32 as transformers' do."""

import battery
import pytest
import torch
import transformers

from quatrain.models.io import model_folder

CASES = [case for case in battery.all_cases() if case.model.endswith(("ForCausalLM", "LMHeadModel"))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_near_to_float32_as_theirs(case, tmp_path):
    battery.theirs(case).save_pretrained(tmp_path)
    ours = model_folder.load(tmp_path, dtype=torch.bfloat16)
    theirs = getattr(transformers, case.model).from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    ids, mask = battery.batch(case)
    with torch.no_grad():
        exact = battery.theirs(case)(input_ids=ids, attention_mask=mask).logits
        found, expected = ours(ids)[0], theirs.eval()(input_ids=ids, attention_mask=mask).logits
    assert found.dtype == torch.bfloat16
    error, their_error = ((logits.float() - exact).square().mean().sqrt() for logits in (found, expected))
    assert error < 1.1 * their_error and their_error < 0.05 * exact.std()
