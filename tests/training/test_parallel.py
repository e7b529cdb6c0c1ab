"""Two processes are one: DDP and every stage of ZeRO give the loss, the gradients' norm and the weights of one process,
go on from each other's checkpoints, and leave a plain model behind.
"""

import json
import os
from pathlib import Path

import forks
import pytest
import together
import torch
from safetensors.torch import load_file
from tiny_training import CONFIG

from quatrain.core.atomic import disk_errors
from quatrain.core.errors import InputError, QuatrainError
from quatrain.models.transformer.stack import Model
from quatrain.planning.parallelism import Layout, Step, state_memory
from quatrain.training.distributed import ParallelStrategy, make_parallel, shards

MODES = ("ddp", "zero1", "zero2", "zero3", "hybrid")
VARIANTS = {
    "adamw": {},
    "muon": {"settings": {"optimizer": "muon"}},
    "accumulation": {"settings": {"accumulation": 4, "batch_tokens": 320, "max_grad_norm": 0.05}},
    "adapter": {"adapter": True},
    "recomputed": {"settings": {"activation_checkpointing": True, "chunked_loss": True}},
    "best": {"settings": {"evaluate_every": 2, "keep": "best", "learning_rate": 0.05}},
    "bfloat16": {"settings": {"precision": "bfloat16"}},
}
SOME = {
    # name: (what is trained, in which modes)
    "float16": ({"settings": {"precision": "float16"}}, ("zero3",)),
    "rows that learn": ({"adapter": True, "rows": [3, 7]}, ("ddp", "zero1", "zero3")),
    "bad steps": ({"kind": "jumps", "settings": {"on_bad_step": "skip"}}, ("ddp", "zero3")),
    "weights without a use": ({"kind": "spare"}, ("ddp", "zero3")),
    "bytes": ({"kind": "bytes"}, ("ddp", "zero1", "zero2", "zero3")),
    "encoder-decoder": ({"kind": "t5", "settings": {"activation_checkpointing": True}}, ("ddp", "zero3")),
}
HALF = {"float16": 1e-4, "bfloat16": 1e-3}
"""What is left of equality in half precision: the last digit of a float32 sum decides how a product is rounded, and
one rounding of bfloat16 is 4e-3 of its number."""
ENDS = ("ddp", "zero3", "hybrid")
"""Modes of most variants: zero1 and zero2 hold a part of what zero3 holds."""
CASES = {(mode, name): case for name, case in VARIANTS.items() for mode in (MODES if name == "adamw" else ENDS)}
CASES |= {(mode, name): case for name, (case, modes) in SOME.items() for mode in modes}
RESUMES = [
    # (name, processes and mode that stop at step 3, processes and mode that go on)
    ("zero3-zero3", "zero3", "zero3"),
    ("ddp-zero2", "ddp", "zero2"),
    ("zero3-ddp", "zero3", "ddp"),
]


def train_together(cases: list[dict], folder: Path, processes: int = 2) -> None:
    """The cases by several processes, in the environment that torchrun gives them."""
    (folder / "cases.json").write_text(json.dumps(cases))
    words = [together.__file__, str(folder / "cases.json"), str(folder)]
    done = forks.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, processes=processes, seconds=900)
    assert done.returncode == 0, done.stderr[-6000:]


def train_alone(cases: list[dict], folder: Path) -> None:
    """The cases by one process: this one."""
    (folder / "alone.json").write_text(json.dumps(cases))
    threads = torch.get_num_threads()
    together.main(str(folder / "alone.json"), str(folder))
    torch.set_num_threads(threads)


def on(name: str, mode: str) -> dict:
    """What a mode needs to be told; hybrid: two machines of one process."""
    return {"name": name, "mode": mode} | ({"local": 1} if mode == "hybrid" else {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every variant by one process and by two in every mode; and runs that one count of processes began."""
    folder = tmp_path_factory.mktemp("together")
    alone = [{"name": f"one-{name}", **case} for (_, name), case in CASES.items()]
    alone = list({case["name"]: case for case in alone}.values())
    saved = {"settings": {"checkpoint_every": 1, "optimizer": "muon"}}
    alone.append({"name": "one-whole", **saved})
    alone.append({"name": "cut-one", "stop": 3, "checkpoints": "one-two", **saved})
    train_alone(alone, folder)
    cases = [{**on(f"{mode}-{name}", mode), **case} for (mode, name), case in CASES.items()]
    for name, first, second in RESUMES:
        cases.append({**on(f"cut-{name}", first), "stop": 3, "checkpoints": name, **saved})
        cases.append({**on(f"resumed-{name}", second), "checkpoints": name, **saved})
        cases.append({**on(f"again-{name}", second), "checkpoints": name, **saved})
    cases.append({**on("resumed-one-two", "zero3"), "checkpoints": "one-two", **saved})
    cases.append({**on("cut-two", "zero3"), "stop": 3, "checkpoints": "two-one", **saved})
    train_together(cases, folder)
    train_alone([{"name": "resumed-two-one", "checkpoints": "two-one", **saved}], folder)
    return folder


def same(folder: Path, name: str, expected: str, tolerance: float) -> None:
    found, wanted = (load_file(folder / f"{each}.safetensors") for each in (name, expected))
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert (found[key] - wanted[key]).abs().max() <= tolerance, key


def test_ddp_and_zero3_in_brief(tmp_path: Path) -> None:
    """The first of the cases below, for the quick set of tests."""
    train_alone([{"name": "one-adamw"}], tmp_path)
    train_together([on(f"{mode}-adamw", mode) for mode in ("ddp", "zero3")], tmp_path)
    for mode in ("ddp", "zero3"):
        are_one(tmp_path, mode, "adamw")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "variant"), CASES)
def test_two_processes_are_one(folder: Path, mode: str, variant: str) -> None:
    are_one(folder, mode, variant)


def are_one(folder: Path, mode: str, variant: str) -> None:
    """A variant by two processes gives the losses, norms, counts and weights of one process."""
    one, two = (json.loads((folder / f"{name}-{variant}.json").read_text()) for name in ("one", mode))
    rounding = HALF.get(variant, 0.0)
    assert two["losses"] == pytest.approx(one["losses"], abs=max(2e-6, rounding))
    assert two["norms"] == pytest.approx(one["norms"], rel=max(1e-5, rounding))
    for name in ("tokens", "best", "skipped"):
        assert two[name] == one[name], name
    assert (one["skipped"] > 0) == (variant == "bad steps")
    assert two["validations"] == pytest.approx(one["validations"], abs=max(2e-6, rounding))
    same(folder, f"{mode}-{variant}", f"one-{variant}", 2e-5)


@pytest.mark.slow
def test_rows_that_learn_leave_the_embedding_to_the_bit(folder: Path) -> None:
    before = Model(CONFIG).initialize(0).embed_tokens.weight
    for mode in SOME["rows that learn"][1]:
        found = load_file(folder / f"{mode}-rows that learn.safetensors")
        assert torch.equal(found["embed_tokens.weight"], before)
        assert (found["trainable_tokens.embed_tokens"] != before[[3, 7]]).any(1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "zero"), [("ddp", 0), ("zero1", 1), ("zero2", 2), ("zero3", 3)])
def test_the_bytes_of_zero_are_those_that_a_process_holds(folder: Path, mode: str, zero: int) -> None:
    """The formula of a plan beside FSDP by two processes, in float32 with AdamW.

    FSDP always keeps gradients as shards when the optimizer steps, and a shard of the weights beside the gathered ones.
    """
    held = json.loads((folder / f"{mode}-bytes.json").read_text())["held"]
    count = Model(CONFIG).num_parameters()
    weights, gradients, states = state_memory(count, Step(precision="float32"), Layout(data=2, zero=zero))
    assert held["states"] == states
    assert held["gradients"] == (gradients if zero != 1 else gradients / 2)
    if zero == 3:
        assert held["weights"] == weights and held["gathered"] < 4 * count  # one block at a time is whole
    else:
        assert held["gathered"] == weights == 4 * count
        assert held["weights"] == (weights if zero == 0 else weights / 2)


@pytest.mark.slow
def test_the_first_step_is_the_same_to_the_last_digits(folder: Path) -> None:
    """Before AdamW's square roots make much of little."""
    for mode in MODES:
        one, two = (json.loads((folder / f"{name}-adamw.json").read_text()) for name in ("one", mode))
        assert two["losses"][0] == pytest.approx(one["losses"][0], rel=1e-6)
        assert two["norms"][0] == pytest.approx(one["norms"][0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first", "second"), RESUMES)
def test_a_run_goes_on_in_another_mode(folder: Path, name: str, first: str, second: str) -> None:
    same(folder, f"resumed-{name}", "one-whole", 2e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_bit_for_bit_both_times(folder: Path) -> None:
    for name, _, _ in RESUMES:
        same(folder, f"again-{name}", f"resumed-{name}", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one-two", "two-one"])
def test_a_run_goes_on_with_another_number_of_processes(folder: Path, name: str) -> None:
    same(folder, f"resumed-{name}", "one-whole", 2e-5)


@pytest.mark.slow
def test_a_parted_checkpoint_has_nothing_pickled(folder: Path) -> None:
    files = [path for path in (folder / "zero3-zero3").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json"}
    shards = [path for path in files if "shards" in path.parts]
    assert len(shards) >= 2, "each process writes its own part"
    manifest = json.loads(next(path for path in files if path.name == "manifest.json").read_text())
    assert any("shards" in name for name in manifest["files"])


def test_parts_that_cannot_be_written_are_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gathers what each process failed of in an exception that `except Exception` does not see."""
    from torch.distributed.checkpoint import hf_storage

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_storage.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(QuatrainError, match="the disk is full"), disk_errors(tmp_path):
        shards.save({"weight": torch.ones(3)}, tmp_path)


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="must be one of auto, ddp, zero1"):
        make_parallel("zero4")
    assert type(make_parallel("zero3")) is ParallelStrategy, "one process has nobody to share with"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun --nproc-per-node"):
        make_parallel("ddp")


@pytest.mark.slow
def test_four_processes_on_two_machines_are_one(folder: Path) -> None:
    """hybrid as it is meant: parts within a machine, copies across."""
    case = VARIANTS["accumulation"]
    cases = [{"name": "hybrid-four", "mode": "hybrid", "local": 2, **case}, {"name": "ddp-four", "mode": "ddp", **case}]
    train_together(cases, folder, processes=4)
    one = json.loads((folder / "one-accumulation.json").read_text())
    for name in ("hybrid-four", "ddp-four"):
        four = json.loads((folder / f"{name}.json").read_text())
        assert four["losses"] == pytest.approx(one["losses"], abs=2e-6)
        assert four["norms"] == pytest.approx(one["norms"], rel=1e-5)
        same(folder, name, "one-accumulation", 2e-5)
