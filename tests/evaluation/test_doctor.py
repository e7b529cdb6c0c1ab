"""The doctor holds on sound models of every kind, and a planted fault makes the right row fail."""

import json
import math
import re
import shutil
from pathlib import Path

import forks
import pytest
import torch
from battery import all_cases, theirs
from safetensors.torch import load_file, save_file
from tiny_models import gpt2, llama, make_folder, save_random

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.lora import LoRALinear
from quatrain.adapters.peft_files import save_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.evaluation.doctor import all_checks, examine
from quatrain.evaluation.doctor.check import difference
from quatrain.models.io import model_folder
from quatrain.models.transformer.kv_cache import CacheRows
from quatrain.tokenizers.templates import TEMPLATES

QUICK = [check.name for check in all_checks() if check.name != "native"]
"""Native code is compiled for many seconds; tests/generation/test_native_engine.py compares it."""


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A model folder with a chat template."""
    return make_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def copied(chatty, tmp_path):
    return shutil.copytree(chatty, tmp_path / "copy")


def rows(model, *only, **options):
    report = examine(model, device="cpu", only=only or QUICK, **options)
    return {row.name: row for row in report.rows}


def statuses(model, *only, **options):
    return {name: row.status for name, row in rows(model, *only, **options).items()}


@pytest.mark.slow
def test_everything_holds_on_a_sound_chat_model(chatty):
    found = rows(chatty)
    assert {row.status for row in found.values()} <= {"holds", "not applicable"}
    assert {name for name, row in found.items() if row.status == "not applicable"} == {"manifest"}
    assert all(row.difference <= row.limit for row in found.values() if row.difference is not None)
    assert all(row.remedy and row.pair and row.unit for row in found.values())
    assert found["transformers-logits"].limit >= 1e-5 and found["accumulation"].limit < 1e-5


@pytest.mark.parametrize("name", ["gpt2 plain", "t5 plain", "bert masked", "bart classifier"])
def test_families_and_heads(name, tmp_path):
    case = next(each for each in all_cases() if each.name == name)
    theirs(case).save_pretrained(tmp_path)
    found = rows(tmp_path)
    assert [row.note for row in found.values() if row.status == "failed"] == []
    assert found["transformers-logits"].status == found["merge"].status == found["round-trip"].status == "holds"
    assert (found["cache"].status == "holds") == (case.name in ("gpt2 plain", "t5 plain"))


def test_an_adapter_folder_is_compared_with_peft(chatty, tmp_path):
    model = model_folder.load(chatty)
    apply_adapter(model, AdapterSettings(method="lora", rank=2), seed=1)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B, std=0.1)
    save_adapter(model, tmp_path / "adapter", base_model=str(chatty))
    found = rows(tmp_path / "adapter", "transformers-logits", "round-trip", "merge", "adapter-files", "kl", "dpo")
    assert found.pop("dpo").status == "not applicable"
    assert {row.status for row in found.values()} == {"holds"}


def test_quantized_weights_are_examined_where_that_means_something(tmp_path):
    from quatrain.compression.methods import quantize

    model = model_folder.load(save_random(llama(), tmp_path / "plain"))
    quantize(model, "int8")
    model_folder.save(model, tmp_path / "small")
    found = statuses(tmp_path / "small", "round-trip", "transformers-logits", "batch", "accumulation", "cache")
    assert found == {
        "round-trip": "holds", "transformers-logits": "not applicable", "batch": "holds", "cache": "holds",
        "accumulation": "not applicable",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "labels"), [("regression", ("reward",)), ("multi_label", ("a", "b", "c")), ("single_label", ("a", "b"))]
)
def test_classifiers_of_every_kind_accumulate(problem, labels, tmp_path):
    config = llama(head="sequence_classification", labels=labels, problem_type=problem, pad_token_id=0)
    found = rows(save_random(config, tmp_path), "accumulation", "batch", "cache")
    assert found["accumulation"].status == found["batch"].status == "holds", found["accumulation"].note
    assert found["cache"].status == "not applicable"


WITHOUT = """
import sys
sys.modules["transformers"] = sys.modules["peft"] = None
from quatrain.cli import main
sys.exit(main(["doctor", sys.argv[1], "--json", "--only", *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_without_transformers_the_other_rows_run(chatty):
    names = ["transformers-logits", "peft", "cache", "chat-training", "chat-export", "chat-stop", "merge"]
    done = forks.run(["-c", WITHOUT, str(chatty), *names])
    assert done.returncode == 0, done.stderr
    checks = {row["name"]: row for row in json.loads(done.stdout)["examination"]["checks"]}
    assert checks["transformers-logits"]["status"] == checks["peft"]["status"] == "not run"
    assert 'pip install "quatrain[hf]"' in checks["peft"]["note"]
    assert {checks[name]["status"] for name in names[2:]} == {"holds"}


# Planted faults.


def perturb(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] += 0.5
    save_file(tensors, path, {"format": "pt"})


def test_a_perturbed_weight_beside_the_original(chatty, copied):
    assert statuses(copied, "transformers-logits", reference=chatty) == {"transformers-logits": "holds"}
    perturb(copied)
    found = rows(copied, "transformers-logits", "cache", reference=chatty)
    assert found["transformers-logits"].status == "failed" and found["cache"].status == "holds"
    assert 1e-4 < found["transformers-logits"].difference < math.inf


def test_a_file_that_changed_after_it_was_read(copied, monkeypatch):
    load = model_folder.load

    def then_perturbed(folder, **options):
        model = load(folder, **options)
        perturb(copied)
        return model

    monkeypatch.setattr("quatrain.loading.model.model_folder.load", then_perturbed)
    row = rows(copied, "round-trip")["round-trip"]
    assert row.status == "failed" and row.difference == 1 and "up_proj" in row.note


def test_a_checkpoint_with_a_wrong_byte(copied, tmp_path):
    from quatrain.training import checkpoints

    copy = lambda place: shutil.copytree(copied, place, dirs_exist_ok=True)  # noqa: E731
    checkpoints.write(tmp_path, 1, weights=copy, tensors={}, state={})
    (checkpoint,) = checkpoints.found(tmp_path)
    assert statuses(checkpoint, "manifest") == {"manifest": "holds"}
    perturb(checkpoint)
    row = rows(checkpoint, "manifest")["manifest"]
    assert row.status == "failed" and "model.safetensors" in row.note and "SHA-256" in row.note


def unmark(folder: Path) -> None:
    template = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", TEMPLATES["chatml"])
    assert "generation %" not in template
    (folder / "chat_template.jinja").write_text(template)


def test_a_template_without_generation_marks(copied):
    unmark(copied)
    found = rows(copied, "chat-training", "chat-export", "chat-stop", "cache")
    assert {name: row.status for name, row in found.items()} == {
        "chat-training": "failed", "chat-export": "holds", "chat-stop": "not applicable", "cache": "holds",
    }  # fmt: skip
    assert "{% generation %}" in found["chat-training"].note + found["chat-training"].remedy


def test_a_turn_that_ends_with_a_token_that_does_not_stop(copied):
    template = TEMPLATES["chatml"].replace("<|im_end|>", "|")
    (copied / "chat_template.jinja").write_text(template)
    found = rows(copied, "chat-training", "chat-stop")
    assert found["chat-training"].status == "holds" and found["chat-stop"].status == "failed"
    assert "eos_token_id" in found["chat-stop"].remedy


def test_a_wrong_cache(chatty, monkeypatch):
    append = CacheRows.append

    def forgetful(self, layer, key, value):
        keys, values = append(self, layer, key, value)
        return keys, torch.cat((values[:, :, :1] * 0.5, values[:, :, 1:]), dim=2) if layer == 1 else values

    monkeypatch.setattr(CacheRows, "append", forgetful)
    found = statuses(chatty, "cache", "batch", "padding", "packing", "rollouts")
    assert found == {
        "cache": "failed", "batch": "holds", "padding": "holds", "packing": "holds", "rollouts": "failed"
    }  # fmt: skip


def test_a_loss_that_is_a_mean_of_each_micro_batch(chatty, monkeypatch):
    from quatrain.training.objectives.base import Causal

    loss = Causal.loss

    def mean(self, model, batch):
        total, weight, metrics = loss(self, model, batch)
        return total / weight, 1, metrics

    monkeypatch.setattr(Causal, "loss", mean)
    assert statuses(chatty, "accumulation", "packing", "dpo") == {
        "accumulation": "failed", "packing": "failed", "dpo": "holds"
    }  # fmt: skip


def test_a_merge_that_forgets_the_scale(chatty, monkeypatch):
    delta = LoRALinear.delta
    monkeypatch.setattr(LoRALinear, "delta", lambda self: delta(self) / self.scaling)
    assert statuses(chatty, "merge", "adapter-files") == {"merge": "failed", "adapter-files": "holds"}


def test_a_reference_of_another_model(chatty, monkeypatch):
    from quatrain.alignment.dpo import DPO

    added = DPO.add_references
    monkeypatch.setattr(
        DPO, "add_references", lambda self, model, pairs: [
            type(pair)(pair.prompt, pair.chosen, pair.rejected, pair.reference_chosen - 1, pair.reference_rejected)
            for pair in added(self, model, pairs)
        ]
    )  # fmt: skip
    row = rows(chatty, "dpo")["dpo"]
    assert row.status == "failed" and row.difference == pytest.approx(0.05, abs=0.01)


def test_a_check_that_raises_has_failed_and_says_why(chatty, monkeypatch):
    def broken(self, layer, key, value):
        raise RuntimeError("the cache is gone")

    monkeypatch.setattr(CacheRows, "append", broken)
    row = rows(chatty, "cache")["cache"]
    assert row.status == "failed" and row.difference is None and "the cache is gone" in row.note


# Budgets, flags, output.


@pytest.mark.parametrize("config", [llama, gpt2])
def test_a_model_that_is_too_large_is_sampled_by_its_first_layers(config, tmp_path):
    settings = config(num_hidden_layers=6)
    save_random(settings, tmp_path)
    report = examine(tmp_path, device="cpu", only=["round-trip", "transformers-logits", "cache"], memory=90_000)
    assert [row.status for row in report.rows] == ["holds"] * 3
    (note,) = report.notes
    assert "of its 6 layers stand for all" in note and "--memory" in note
    with pytest.raises(InputError, match="not even one layer"):
        examine(tmp_path, device="cpu", memory=2_000)


def test_the_budget_of_time(chatty):
    found = rows(chatty, seconds=1e-9)
    assert {row.status for row in found.values()} == {"not run"} and "--budget" in found["cache"].note


def test_difference():
    one = torch.tensor([1.0, 1e6, math.inf])
    assert difference(one, one) == 0 and difference(one, one[:2]) == math.inf
    assert difference(torch.tensor([1e6 + 1]), torch.tensor([1e6])) == pytest.approx(1e-6, rel=1e-3)
    assert difference(torch.tensor([math.nan]), torch.tensor([0.0])) == math.inf


def test_the_verb_shows_rows_and_remedies(chatty, copied, capsys):
    assert main(["doctor", str(chatty), "--only", "cache", "manifest", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "with and without a KV cache" in shown and "1.0e-05" in shown and "manifest: not applicable" in shown
    unmark(copied)
    assert main(["doctor", str(copied), "--only", "chat-training"]) == 1
    shown = capsys.readouterr().out
    assert "chat-training failed" in shown and "{% endgeneration %}" in shown and "0 checks hold, 1 failed" in shown


def test_wrong_flags_and_folders(tmp_path, capsys):
    assert main(["doctor", "--only", "cache", "--budget", "0"]) == 2
    assert "needs a model" in (error := capsys.readouterr().err) and "above 0" in error
    assert main(["doctor", str(tmp_path), "--only", "cach"]) == 2
    assert "cache" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path)]) == 2
    (tmp_path / "config.json").write_text("{")
    assert main(["doctor", str(tmp_path)]) == 2
    capsys.readouterr()
    (tmp_path / "config.json").write_text('{"model_type": "ngram"}')
    assert main(["doctor", str(tmp_path)]) == 2
    assert "examines transformers" in capsys.readouterr().err


def test_a_resume_that_loses_the_optimizers_state(chatty, monkeypatch):
    from quatrain.training import checkpoints

    read = checkpoints.read_state
    monkeypatch.setattr(
        checkpoints, "read_state", lambda place: (read(place)[0], {k: v * 0.9 for k, v in read(place)[1].items()})
    )
    row = rows(chatty, "resume")["resume"]
    assert row.status == "failed" and row.difference > 5
