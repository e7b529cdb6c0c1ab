"""An adapter over the model: merged, saved and loaded, and read by PEFT."""

from __future__ import annotations

import copy

from quatrain.adapters.apply import merge_adapters, unmergeable_reason
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.peft_files import load_adapter, save_adapter
from quatrain.core.errors import InputError
from quatrain.evaluation.doctor.check import LOGITS, Check, DoesNotApply, Finding, differences
from quatrain.evaluation.doctor.checks.reference import quiet, their_model, their_outputs
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.loading.model import load_weights

REMEDY = (
    "An adapter of this model changes when it is {what}. Keep the adapter folder that was trained, serve it unmerged, "
    "and report its adapter_config.json with the model's config.json."
)


def _merged(subject: ModelUnderTest) -> Finding:
    subject.check_output()
    with subject.adapted() as model:
        if (reason := unmergeable_reason(model)) is not None:
            raise DoesNotApply(f"{reason} cannot be merged")
        before = subject.outputs(model, subject.rows)
        layers = merge_adapters(model)
        after = subject.outputs(model.eval(), subject.rows)
    detail = f"{len(layers)} adapted layers, {len(subject.rows)} texts"
    return Finding(differences(zip(after, before, strict=True)), detail, subject.logit_limit)


def _saved(subject: ModelUnderTest) -> Finding:
    subject.check_output()
    with subject.adapted() as model:
        if subject.model.adapter_set is not None:
            raise DoesNotApply("several adapters over one base are folders of their own")
        folder = subject.folder("saved-adapter")
        try:
            save_adapter(model, folder, base_model=str(subject.resolved.base.resolve()))
        except InputError as error:
            raise DoesNotApply(f"{error.message} {'; '.join(error.problems)}".strip()) from error
        before = subject.outputs(model, subject.rows)
    again = load_weights(folder, device=subject.device)
    after = subject.outputs(again, subject.rows)
    return Finding(differences(zip(after, before, strict=True)), f"{len(subject.rows)} texts", subject.logit_limit)


def _peft(subject: ModelUnderTest) -> Finding:
    subject.check_output()
    subject.require_library("transformers", "hf")
    subject.require_library("peft", "hf")
    import peft

    if subject.resolved.is_adapter:
        raise DoesNotApply("this is an adapter: the rows of transformers compare it with PEFT's")
    if subject.config.head not in ("causal", "seq2seq", "masked", "none"):
        raise DoesNotApply(f"PEFT's wrapper of the head {subject.config.head} adds a classifier of its own")
    with subject.adapted() as model:
        folder = subject.folder("peft-adapter")
        save_adapter(model, folder, base_model=str(subject.resolved.base.resolve()))
        ours = subject.outputs(model, subject.rows, single=True)
        count = len(list(adapter_layers(model)))
    with quiet():
        theirs = peft.PeftModel.from_pretrained(their_model(subject), str(folder)).eval()
    found = differences(zip(ours, their_outputs(subject, theirs, subject.rows), strict=True))
    again = copy.deepcopy(subject.model)
    theirs.save_pretrained(str(subject.folder("written-by-peft")))
    load_adapter(again, subject.folder("written-by-peft"))
    back = differences(zip(subject.outputs(again.eval(), subject.rows, single=True), ours, strict=True))
    detail = f"{count} adapted layers read by PEFT, and written by PEFT and read by us"
    return Finding(max(found, back), detail, subject.logit_limit)


CHECKS = (
    Check("merge", "an adapter merged and unmerged: logits", "logits", LOGITS, REMEDY.format(what="merged"), _merged),
    Check(
        "adapter-files", "an adapter saved and loaded: logits", "logits", LOGITS, REMEDY.format(what="saved"), _saved
    ),
    Check("peft", "an adapter of ours and PEFT's: logits", "logits", LOGITS, REMEDY.format(what="read by PEFT"), _peft),
)
