"""The sums of a language-model course: published FLOPs, hours, prices and emissions follow from their inputs."""

import math

import pytest

from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.models.io.model_folder import config_of
from quatrain.planning import counts
from quatrain.planning.bill import (
    Cluster,
    bill,
    bill_of_hours,
    cheapest_clusters,
    pf_days,
    training_flops,
    utilization,
)
from quatrain.planning.facts import Facts, load_facts
from quatrain.planning.formulas import sizes_of
from quatrain.planning.overview import ModelSize

FACTS = load_facts()
H100, A100 = FACTS.devices["h100"], FACTS.devices["a100"]


def test_gpt_3_took_3634_petaflop_days() -> None:
    training = FACTS.trainings["gpt-3"]
    flops = training_flops(training.parameters, training.tokens)
    assert flops == pytest.approx(training.published["flops"], rel=0.002)
    assert pf_days(3.14e23) == pytest.approx(3634, abs=0.5)


def test_llama_405b() -> None:
    training = FACTS.trainings["llama-3.1-405b"]
    flops = training_flops(training.parameters, training.tokens)
    assert flops == pytest.approx(3.80e25, rel=0.003)
    assert training.hours == 30.84e6
    assert utilization(3.80e25, training.hours, H100) == pytest.approx(0.346, abs=0.0005)
    charged = bill_of_hours(training.hours, Cluster(H100, 16_384, price=2.0))
    assert charged.price == pytest.approx(61.68e6)
    assert charged.seconds / 86_400 == pytest.approx(78.4, abs=0.1)


def test_bloomberggpt_counts_the_recomputation() -> None:
    training = FACTS.trainings["bloomberggpt"]
    assert training_flops(training.parameters, training.tokens) == pytest.approx(1.73e23, rel=0.002)
    assert training_flops(training.parameters, training.tokens, recompute=True) == pytest.approx(2.30e23, rel=0.002)
    assert training.hours == 512 * 53 * 24
    used = utilization(2.36e23, training.hours, FACTS.devices["a100-40gb"])
    assert used * 312 == pytest.approx(102, rel=0.02)  # the paper: an average of 102 TFLOP/s per device


@pytest.mark.parametrize(
    ("names", "tolerance"),
    [
        (("llama-2-7b", "llama-2-13b", "llama-2-70b"), 2e-4),
        (("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"), 0.008),
    ],
)
def test_emissions_follow_from_hours_watts_and_grid(names: tuple[str, ...], tolerance: float) -> None:
    """The carbon intensity that one training implies gives the emissions of the others."""
    trainings = [FACTS.trainings[name] for name in names]
    kwh = [training.hours * FACTS.devices[training.device].power / 1000 for training in trainings]
    published = [training.published["tonnes_co2"] for training in trainings]
    grid = 1e6 * published[-1] / kwh[-1]  # g/kWh
    for training, tonnes in zip(trainings, published, strict=True):
        cluster = Cluster(FACTS.devices[training.device], grid=grid)
        assert bill_of_hours(training.hours, cluster).co2_kg / 1000 == pytest.approx(tonnes, rel=tolerance)


def test_the_total_of_llama_2_includes_a_model_that_was_not_released() -> None:
    released = sum(FACTS.trainings[f"llama-2-{size}"].published["tonnes_co2"] for size in ("7b", "13b", "70b"))
    assert 539 - released == pytest.approx(153.9, abs=0.1)  # the table's 34B: 153.90 t


def test_gpt_4_in_three_months_on_20000_a100() -> None:
    charged = bill(2.15e25, Cluster(A100, 20_000, utilization=0.43))
    assert charged.seconds / 86_400 == pytest.approx(92.7, abs=0.1)


@pytest.mark.parametrize(("size", "precision", "gigabytes"), [
    (1e9, "float32", 4), (1e9, "bfloat16", 2), (1e9, "int8", 1), (1e9, "int4", 0.5),
    (3e9, "float32", 12), (3e9, "bfloat16", 6), (3e9, "int8", 3), (3e9, "int4", 1.5),
    (20e9, "float32", 80), (20e9, "bfloat16", 40), (20e9, "int8", 20), (20e9, "int4", 10),
])  # fmt: skip
def test_weights_in_every_precision(size: float, precision: str, gigabytes: float) -> None:
    assert size * counts.WEIGHT_BITS[precision] / 8 == gigabytes * 1e9


@pytest.mark.parametrize("name", sorted(FACTS.models))
def test_published_models_have_their_published_parameters(name: str) -> None:
    model = FACTS.models[name]
    size = ModelSize.published(name, model)
    tolerance = 1e-4 if name == "gpt3" else 0  # a rounded count
    assert size.parameters == pytest.approx(model.parameters, rel=tolerance, abs=0)
    assert size.active == model.active
    parts = counts.parameters_by_part(size.config) if size.config is not None else size.sizes.parts
    assert sum(parts.values()) == size.parameters


def test_other_models_by_formula() -> None:
    """ViT-B/16 17.6 GMACs an image (Dosovitskiy et al.: 55.4 for B/16 at 384)."""
    vit = ModelSize.published("vit-b-16", FACTS.models["vit-b-16"]).sizes
    assert vit.flops(0) / 2 == pytest.approx(17.6e9, rel=0.005)
    with pytest.raises(InputError, match="hidden_size: missing"):
        sizes_of({k: v for k, v in FACTS.models["vit-b-16"].config.items() if k != "hidden_size"})


def test_a_mixture_is_counted_on_its_own_network() -> None:
    """Mixtral's 12.9 billion active parameters less the embedding are what a token is multiplied with."""
    mixtral = ModelSize.published("mixtral-8x7b", FACTS.models["mixtral-8x7b"])
    assert mixtral.config is not None and mixtral.sizes is None
    assert counts.kv_cache_bytes(mixtral.config, 1, dtype="bfloat16") == 128 * 1024
    assert counts.flops_per_token(mixtral.config, 0, training=False) == pytest.approx(2 * 12.75e9, rel=0.001)
    dense = counts.parameters_by_part(mixtral.config)["experts"] // 4  # two of eight
    assert mixtral.active == mixtral.parameters - 3 * dense


@pytest.mark.parametrize(
    ("name", "kibibytes"), [("llama-2-7b", 512), ("llama-3.1-8b", 128), ("llama-3.1-70b", 320), ("llama-3.1-405b", 504)]
)
def test_kv_cache_of_a_token(name: str, kibibytes: int) -> None:
    config = config_of(dict(FACTS.models[name].config))
    assert counts.kv_cache_bytes(config, 1, dtype="bfloat16") == kibibytes * 1024


def test_sliding_windows_shrink_the_cache_sixfold() -> None:
    config = config_of(dict(FACTS.models["gemma-3-1b"].config))
    assert counts.kv_cache_bytes(config, 32_768, dtype="bfloat16", windows=1) == 139 * 2**20
    assert 32_768 * counts.kv_cache_bytes(config, 1, dtype="bfloat16") == 832 * 2**20


def test_a_bill_is_proportional() -> None:
    one, two = (bill(1e21, Cluster(H100, count, grid=100.0)) for count in (1, 2))
    assert one.seconds == pytest.approx(2 * two.seconds) and one.device_hours == pytest.approx(two.device_hours)
    assert one.price == pytest.approx(one.device_hours * H100.price)
    assert one.co2_kg == pytest.approx(one.device_hours * 0.7 * 0.1)
    assert bill(1e21, Cluster(H100, grid=100.0, pue=1.5)).co2_kg == pytest.approx(1.5 * one.co2_kg)


def test_the_cheapest_cluster_meets_the_deadline_and_holds_the_states() -> None:
    offers = cheapest_clusters(1e23, 10, FACTS.devices, state_bytes=1.6e12)
    assert [offer.price for offer in offers] == sorted(offer.price for offer in offers)
    for offer in offers:
        assert offer.days <= 10 and offer.count * FACTS.devices[offer.key].memory * 1e9 >= 1.6e12
    small = cheapest_clusters(1e15, 10, {"h100": H100}, state_bytes=200e9)
    assert small[0].count == 3  # the memory decides, not the deadline
    assert cheapest_clusters(1e15, 10, {"h100": H100}, state_bytes=200e9, group=8)[0].count == 8


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"utilization": 0}, {"utilization": 1.1}, {"pue": 0.5}, {"price": -1.0}]
)
def test_impossible_clusters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"count|devices|utilization|pue|price"):
        Cluster(H100, **wrong)


def test_all_problems_of_a_cluster_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Cluster(H100, 0, 2.0, pue=0.1)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("flops", [0, -1, math.inf, math.nan])
def test_flops_that_are_none(flops: float) -> None:
    with pytest.raises(InputError, match="positive"):
        bill(flops, Cluster(H100))


def test_facts_of_the_user(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[devices.mine]\nname = "Mine"\nmemory = 8\nbf16 = 10.0\n[grids]\nworld = 500\n', encoding="utf-8")
    facts = load_facts(str(path))
    assert facts.device("mine").memory == 8 and facts.grid("world") == 500 and facts.device("h100").memory == 80
    assert facts.grid("123.5") == 123.5
    with pytest.raises(InputError, match=r"did you mean h100.*--facts"):
        facts.device("h10")
    with pytest.raises(InputError, match="no known rate for fp8; known are bf16"):
        facts.device("mine").flops_per_second("fp8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[devices.x]\nname = 3\n", ["devices.x.name", "devices.x.memory"]),
        (b"[devices.x\n", ["TOML"]),
        (b"\xff\xfe", ["UTF-8"]),
        (b"[device.x]\n", ["device", "did you mean"]),
    ],
)
def test_wrong_facts_are_named(tmp_path, text: bytes, words: list[str]) -> None:
    path = tmp_path / "wrong.toml"
    path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        load_facts(str(path))
    shown = str(caught.value)
    assert all(word in shown for word in words), shown


def test_no_facts_file(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_facts(str(tmp_path / "none.toml"))


def test_shipped_facts_are_dated_and_sourced() -> None:
    assert isinstance(FACTS, Facts) and FACTS.date and {"devices", "prices", "grids"} <= FACTS.sources.keys()
    assert all(model.source for model in FACTS.models.values()) and all(t.source for t in FACTS.trainings.values())


def test_the_place_of_a_wrong_entry_of_a_table() -> None:
    """Tables by name (`dict[str, Settings]`) name the entry and its key, not the whole table."""
    wrong = {"devices": {"x": {"name": "X", "memory": 0, "bf": 1.0}}, "trainings": {"y": {"tokens": "many"}}}
    with pytest.raises(InputError) as caught:
        parse(Facts, wrong, what="mine.toml")
    shown = "\n".join(map(str, caught.value.problems))
    for place in ("devices.x.memory: 0; must be", "devices.x.bf: unknown; did you mean bf16?", "trainings.y.tokens",
                  "trainings.y.parameters: missing"):  # fmt: skip
        assert place in shown, shown
