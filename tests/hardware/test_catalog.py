"""The catalog says of a model what the driver cannot, and nothing of a model that it does not know."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from agent.hardware import catalog
from agent.hardware.inventory import Device, Facts

GIB, MIB = 1024**3, 1024**2


def device(name: str, memory: int, **more: object) -> Device:
    return Device(id="GPU-1", index=0, vendor="nvidia", name=name, memory_bytes=memory, **more)


def test_every_model_is_found_by_its_own_name_and_memory():
    for model in catalog.models().values():
        assert catalog.facts(model.vendor, model.name, model.memory_bytes) == model.facts, model.id
        assert catalog.find(model.id) is model
        assert model.facts.id == model.id


@pytest.mark.parametrize(
    ("vendor", "name", "memory", "id"),
    [
        ("nvidia", "NVIDIA A100-SXM4-40GB", 40960 * MIB, "a100-40-sxm"),
        ("nvidia", "NVIDIA A100-SXM4-80GB", 81920 * MIB, "a100-80-sxm"),
        ("nvidia", "NVIDIA A100 80GB PCIe", 81920 * MIB, "a100-80-pcie"),
        ("nvidia", "NVIDIA RTX A6000", 46068 * MIB, "a6000"),  # with ECC on
        ("nvidia", "NVIDIA H200", 143771 * MIB, "h200-sxm"),
        ("nvidia", "NVIDIA H200 NVL", 143771 * MIB, "h200-nvl"),
        ("nvidia", "Tesla V100-SXM3-32GB", 32768 * MIB, "v100-32"),
        ("nvidia", "NVIDIA GH200 480GB", 97871 * MIB, "gh200-96"),
        ("nvidia", "NVIDIA GeForce RTX 3060", 12288 * MIB, "rtx3060"),
        ("nvidia", "NVIDIA GB10", 0, "gb10"),  # its driver may say no total: the memory is the host's
        ("amd", "AMD Instinct MI300X OAM", 196592 * MIB, "mi300x"),
        ("amd", "AMD Instinct MI250X/MI250", 65520 * MIB, "mi250x"),
        ("apple", "Apple M1", 16 * GIB, "m1"),
        ("apple", "Apple M1 Pro", 16 * GIB, "m1-pro"),
    ],
)
def test_live_names_give_the_right_model(vendor, name, memory, id):
    found = catalog.facts(vendor, name, memory)
    assert found
    assert found.id == id


@pytest.mark.parametrize(
    ("vendor", "name", "memory"),
    [
        ("nvidia", "NVIDIA GeForce RTX 3060", 8192 * MIB),  # another memory bus
        ("nvidia", "NVIDIA GeForce RTX 3060 Ti", 8192 * MIB),
        ("nvidia", "NVIDIA GeForce RTX 3090 Ti", 24564 * MIB),
        ("nvidia", "NVIDIA GeForce RTX 4080 SUPER", 16376 * MIB),
        ("nvidia", "NVIDIA GeForce RTX 4090 D", 24564 * MIB),
        ("nvidia", "NVIDIA GeForce RTX 4090 Laptop GPU", 16376 * MIB),
        ("nvidia", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 97887 * MIB),
        ("nvidia", "NVIDIA L40", 46068 * MIB),
        ("nvidia", "NVIDIA A100X", 81920 * MIB),
        ("nvidia", "NVIDIA T400", 15360 * MIB),
        ("nvidia", "NVIDIA T4G", 15360 * MIB),
        ("apple", "Apple M5 Ultra", 256 * GIB),
        ("amd", "NVIDIA H200", 143771 * MIB),
        ("nvidia", "", 0),
    ],
)
def test_a_variant_that_is_not_in_the_table_gets_no_other_ones_facts(vendor, name, memory):
    assert catalog.facts(vendor, name, memory) is None


def test_only_empty_fields_are_filled():
    live = device("NVIDIA H100 80GB HBM3", 81559 * MIB)
    filled = catalog.complete(live)
    model = catalog.find("h100-sxm")
    assert model
    assert filled.facts == model.facts
    assert (filled.architecture, filled.compute_capability) == ("hopper", "9.0")
    for field in fields(Device):
        if field.name not in {"facts", "architecture", "compute_capability"}:
            assert getattr(filled, field.name) == getattr(live, field.name)


def test_live_values_win_over_the_table():
    facts = Facts("measured", bandwidth_bytes_per_second=1)
    live = device("NVIDIA H100 80GB HBM3", 81559 * MIB, architecture="x", compute_capability="9.9", facts=facts)
    assert catalog.complete(live) == live


def test_a_slice_has_its_share_of_bandwidth_and_speed_and_all_abilities():
    name = "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    found = catalog.complete(device(name, 40448 * MIB, slice_profile="3g.40gb", parent="GPU-0")).facts
    assert found == Facts("h100-sxm", 3350 * 10**9 // 2, round(989 * 3 / 7, 1), True, True, False)
    odd = catalog.complete(device(name, 40448 * MIB, slice_profile="5g.50gb", parent="GPU-0")).facts
    assert odd == Facts("h100-sxm", None, None, True, True, False)


@pytest.mark.parametrize(
    ("known", "abilities"),
    [
        ({"compute_capability": "8.9"}, (True, True, False)),
        ({"compute_capability": "8.6"}, (True, False, False)),
        ({"compute_capability": "7.5"}, (False, False, False)),
        ({"compute_capability": "12.0"}, (True, True, True)),
    ],
)
def test_an_unknown_model_has_the_abilities_of_its_compute_capability(known, abilities):
    found = catalog.complete(device("NVIDIA Something New", 8 * GIB, **known)).facts
    assert found == Facts("", None, None, *abilities)


def test_an_unknown_amd_model_has_the_abilities_of_its_instruction_set():
    live = replace(device("AMD Instinct MI308X", 192 * GIB, architecture="gfx942"), vendor="amd")
    assert catalog.complete(live).facts == Facts("", None, None, True, True, False)


def test_nothing_is_said_of_a_device_of_which_nothing_is_known():
    for live in (
        device("NVIDIA Something New", 8 * GIB, compute_capability="99.0"),
        replace(device("Intel Arc B580", 12 * GIB, architecture="bmg"), vendor="intel"),
        replace(device("Apple M9", 12 * GIB, architecture="apple-silicon"), vendor="apple"),  # M1 and M4 differ
    ):
        assert catalog.complete(live) == live


def test_the_nearest_ids_are_those_that_begin_alike_or_are_spelt_alike():
    assert catalog.nearest("h100") == ("h100-pcie", "h100-sxm", "h100-nvl")
    assert catalog.nearest("RTX4091")[0] == "rtx4090"
    assert catalog.nearest("4090")[0] == "rtx4090"
    assert catalog.nearest("zzzzzzzz") == catalog.nearest("") == ()


def test_the_table_makes_sense():
    for model in catalog.models().values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", model.id)
        assert model.memory_bytes > 8 * GIB
        assert model.source
        assert model.facts.bandwidth_bytes_per_second
        assert model.form in {"pcie", "sxm", "oam", "superchip", "soc"}
        assert (model.link is None) == (model.lanes == 0)
        assert bool(model.compute_capability) == (model.vendor == "nvidia")
        # What computes FP8 computes BF16, and what computes FP4 computes FP8.
        assert model.facts.native_bf16 or not model.facts.native_fp8
        assert model.facts.native_fp8 or not model.facts.native_fp4


def test_mig_profiles_make_sense():
    for model in catalog.models().values():
        for name, part in model.slices.items():
            assert name.startswith(f"{part.compute}g.")
            gigabytes = int(re.fullmatch(r"\dg\.(\d+)gb", name)[1])
            # The driver keeps some for itself; the name is in rounded gigabytes of either kind.
            assert 0.88 * gigabytes * 10**9 < part.memory_bytes < 1.02 * gigabytes * GIB, (model.id, name)
            assert part.memory_bytes <= model.memory_bytes


def test_the_watcher_can_import_it_without_pydantic():
    code = "import sys, agent.hardware.catalog as c; c.models(); sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
