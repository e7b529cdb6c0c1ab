"""Networks in bfloat16 stay as near to float32 as transformers' do."""

import battery
import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode

from quatrain.models.io import model_folder

CASES = [case for case in battery.all_cases() if case.model.endswith(("ForCausalLM", "LMHeadModel"))]


class ChoiceOfExperts(TorchFunctionMode):
    """Notes the experts that the routers of a network choose; another network that runs in it takes the same ones.

    A router that is rounded sends some tokens to other experts than float32 does, ours and transformers' alike but not
    the same tokens. One such token is further from float32 than all rounding, so the networks compare on one choice.
    """

    def __init__(self, experts):
        super().__init__()
        self.sizes = () if experts is None else (experts.num_experts, experts.experts_per_token)
        self.noted, self.left = [], None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function not in (torch.topk, torch.Tensor.topk) or (args[0].shape[-1], found[1].shape[-1]) != self.sizes:
            return found
        if self.left is None:
            self.noted.append(found[1])
            return found
        chosen = self.left.pop(0)
        assert chosen.shape == found[1].shape
        return torch.return_types.topk((args[0].gather(-1, chosen), chosen))

    def __enter__(self):
        self.left = list(self.noted) if self.noted else None
        return super().__enter__()

    def __exit__(self, *error):
        assert not self.left, "A network has fewer routers."
        return super().__exit__(*error)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_near_to_float32_as_theirs(case, tmp_path):
    battery.theirs(case).save_pretrained(tmp_path)
    ours = model_folder.load(tmp_path, dtype=torch.bfloat16)
    theirs = getattr(transformers, case.model).from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    ids, mask = battery.batch(case)
    choice = ChoiceOfExperts(ours.config.experts)
    # The mLSTM of transformers multiplies float32 with bfloat16, which only autocast allows.
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=case.config == "xLSTMConfig")
    with torch.no_grad():
        with choice:
            exact = battery.theirs(case)(input_ids=ids, attention_mask=mask).logits
        assert bool(choice.noted) == (ours.config.experts is not None)
        with choice:
            found = ours(ids)[0]
        with choice, mixed:
            expected = theirs.eval()(input_ids=ids, attention_mask=mask).logits
    assert found.dtype == torch.bfloat16
    error, their_error = ((logits.float() - exact).square().mean().sqrt() for logits in (found, expected))
    assert error < 1.1 * their_error and error < 0.05 * exact.std()
