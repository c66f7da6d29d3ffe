"""A machine that one does not have is described in a word or a file; what cannot be is refused, field and rule."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.documents import load_documents
from agent.errors import InvalidArgument
from agent.hardware import catalog
from agent.hardware.description import MAX_DEVICES
from agent.hardware.inventory import Inventory
from agent.hardware.simulated import Simulated, parse

ROOT = Path(__file__).parents[2]
GIB, MIB = 1024**3, 1024**2


def machine(description: Any) -> Inventory:
    return parse(description).inventory


def devices(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"devices": list(entries), **more}


def refused(description: Any) -> dict[str, str]:
    """The rules that it broke, by field."""
    with pytest.raises(InvalidArgument) as caught:
        parse(description)
    told: dict[str, str] = {}
    for violation in caught.value.violations:
        told[violation.field] = "; ".join(filter(None, (told.get(violation.field), violation.rule)))
    return told


def ways(description: Any) -> dict[tuple[int, int], str]:
    found = machine(description)
    number = {device.id: device.index for device in found.devices}
    return {(number[link.a], number[link.b]): f"{link.kind}{link.lanes or ''}" for link in found.links}


# What is understood


def test_eight_h100_are_one_nvlink_island_on_a_server():
    found = machine("h100-sxm:8")
    assert [device.id for device in found.devices] == [f"GPU-sim-{number}" for number in range(8)]
    assert {device.name for device in found.devices} == {"NVIDIA H100 80GB HBM3"}
    assert {device.memory_bytes for device in found.devices} == {81559 * MIB}
    assert {device.compute_capability for device in found.devices} == {"9.0"}
    assert [device.numa_node for device in found.devices] == [0] * 4 + [1] * 4
    assert len(found.links) == 8 * 7 / 2
    assert {(link.kind, link.lanes) for link in found.links} == {("nvlink", 18)}
    assert (found.memory.total, found.memory.available) == (1024 * GIB, 1024 * GIB)
    assert (found.physical_cores, found.logical_cores, len(found.numa)) == (64, 128, 2)
    assert (found.drivers[0].vendor, found.drivers[0].api) == ("nvidia", "CUDA 13.0")
    assert found.simulated == "h100-sxm:8"
    facts = found.devices[0].facts
    assert facts
    assert facts.bandwidth_bytes_per_second == 3350 * 10**9


def test_a_desktop_has_one_memory_and_its_cards_meet_at_the_processor():
    found = machine("rtx4090:2")
    assert (found.memory.total, found.physical_cores, len(found.numa)) == (64 * GIB, 16, 1)
    assert ways("rtx4090:2") == {(0, 1): "phb"}


def test_models_mix_and_each_keeps_to_its_own_island():
    mixed = ways("h100-sxm:2, l40s")
    assert mixed == {(0, 1): "nvlink18", (0, 2): "sys", (1, 2): "sys"}
    assert [device.facts.id for device in machine("h100-sxm:2,l40s").devices] == ["h100-sxm", "h100-sxm", "l40s"]


def test_bridges_are_not_fitted_unless_the_description_says_so():
    assert ways("h100-nvl:2") == {(0, 1): "sys"}
    bridged = {"short": "h100-nvl:4", "topology": {"nvlink": [[0, 1], [3, 2]]}}
    assert {pair for pair, way in ways(bridged).items() if way == "nvlink12"} == {(0, 1), (2, 3)}
    four = {"short": "h200-nvl:4", "topology": {"nvlink": [[0, 1, 2, 3]]}}
    assert set(ways(four).values()) == {"nvlink6"}  # 18 lanes to three peers


def test_nvlink_can_be_described_away():
    assert set(ways({"short": "h100-sxm:2", "topology": {"nvlink": []}}).values()) == {"sys"}


def test_amd_devices_are_joined_by_xgmi():
    found = machine("mi300x:8")
    assert {(link.kind, link.lanes) for link in found.links} == {("xgmi", 1)}
    assert {device.architecture for device in found.devices} == {"gfx942"}
    assert found.drivers[0].api == "ROCm 7.0"


def test_a_cpu_machine_has_no_devices():
    found = machine("cpu")
    assert (found.devices, found.links, found.drivers) == ((), (), ())
    assert found.memory.total == 64 * GIB


def test_unified_memory_is_the_hosts():
    spark = machine("gb10")
    assert spark.devices[0].memory_kind == "unified"
    assert spark.devices[0].memory_bytes == spark.memory.total
    assert spark.machine == "aarch64"
    small, large = machine({"short": "m4-max", "host": {"memory": "24GiB"}}), machine("m4-max")
    assert small.devices[0].memory_bytes == 16 * GIB
    assert (large.memory.total, large.devices[0].memory_bytes) == (128 * GIB, 96 * GIB)
    assert (large.os, large.machine, large.cpu_flags) == ("macOS", "arm64", ())


def test_used_memory_drivers_and_host_are_as_described():
    told = parse(
        devices(
            {"model": "l4", "memory_used": "10GiB", "numa": 1},
            {"model": "l4", "memory": "12GiB"},
            driver={"nvidia": "535.104.05", "cuda": "12.2"},
            host={"memory": "100GiB", "memory_used": "40GiB", "cores": 6, "numa_nodes": 2, "cpu_flags": ["avx2"]},
        )
    )
    found = told.inventory
    assert told.used == {"GPU-sim-0": 10 * GIB, "GPU-sim-1": 0}
    assert [device.memory_bytes for device in found.devices] == [23034 * MIB, 12 * GIB]
    assert [device.numa_node for device in found.devices] == [1, 1]
    assert (found.drivers[0].version, found.drivers[0].api) == ("535.104.05", "CUDA 12.2")
    assert (found.memory.total, found.memory.available, found.cpu_flags) == (100 * GIB, 60 * GIB, ("avx2",))
    assert [(node.cpus, node.memory_bytes) for node in found.numa] == [
        ((0, 1, 2, 6, 7, 8), 50 * GIB),
        ((3, 4, 5, 9, 10, 11), 50 * GIB),
    ]


def test_a_slice_is_a_device_and_a_sliced_gpu_is_none():
    told = parse(
        devices(
            {
                "model": "h100-sxm",
                "mig": [{"profile": "3g.40gb"}, {"profile": "1g.10gb", "count": 4, "memory_used": "1GiB"}],
            },
            {"model": "h100-sxm", "count": 2},
        )
    )
    found = told.inventory.devices
    assert [device.id for device in found] == [f"MIG-sim-0-{n}" for n in range(5)] + ["GPU-sim-1", "GPU-sim-2"]
    assert {device.parent for device in found[:5]} == {"GPU-sim-0"}
    assert (found[0].slice_profile, found[0].memory_bytes) == ("3g.40gb", 40448 * MIB)
    assert found[0].name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert found[1].facts.bandwidth_bytes_per_second == 3350 * 10**9 // 8
    assert [told.used[device.id] for device in found] == [0, *[GIB] * 4, 0, 0]
    # Slices reach nothing by NVLink.
    assert [(link.a, link.b) for link in told.inventory.links] == [("GPU-sim-1", "GPU-sim-2")]


def test_slices_of_a_card_with_other_memory_have_their_share_of_it():
    found = machine(devices({"model": "h100-sxm", "memory": "96GiB", "mig": [{"profile": "2g.20gb"}]}))
    assert found.devices[0].memory_bytes == 24 * GIB


@pytest.mark.parametrize(
    "profiles", [["7g.80gb"], ["4g.40gb", "3g.40gb"], ["2g.20gb"] * 3 + ["1g.10gb"], ["1g.20gb"] * 4]
)
def test_what_the_mig_user_guide_lists_fits(profiles):
    entry = {"model": "h100-sxm", "mig": [{"profile": profile} for profile in profiles]}
    assert len(machine(devices(entry)).devices) == len(profiles)


def test_a_matrix_is_taken_as_it_is():
    matrix = [["X", "NV4", "PXB"], ["NV4", "X", "SYS"], ["PXB", "SYS", "X"]]
    described = {"short": "rtx3090:3", "topology": {"matrix": matrix}}
    assert ways(described) == {(0, 1): "nvlink4", (0, 2): "pxb", (1, 2): "sys"}


@pytest.mark.parametrize(
    ("said", "meant"),
    [("2xh100", "h100-sxm:2"), ("H100", "h100-sxm"), ("h200:8", "h200-sxm:8"), ("4xL40S,a100", "l40s:4,a100-80-sxm")],
)
def test_a_machine_may_be_said_as_people_say_it(said: str, meant: str) -> None:
    assert machine(said).devices == machine(meant).devices


def test_the_same_machine_in_short_and_in_full_differs_in_its_description_only():
    short, full = parse("l40s:2"), parse(devices({"model": "l40s", "count": 2}))
    assert (short.inventory.devices, short.inventory.links) == (full.inventory.devices, full.inventory.links)
    assert short.source == "l40s:2"
    assert json.loads(full.source) == {"devices": [{"model": "l40s", "count": 2}]}
    assert full.inventory.simulated == full.source


def test_every_model_can_be_simulated():
    for model in catalog.models().values():
        found = machine(model.id)
        assert found.devices[0].facts == model.facts
        if model.form != "soc":
            assert len(machine(f"{model.id}:8").devices) == 8
        for profile in model.slices:
            sliced = machine(devices({"model": model.id, "mig": [{"profile": profile}]})).devices
            assert sliced[0].slice_profile == profile


def test_the_examples_are_understood():
    examples = sorted((ROOT / "configs/examples/hardware").glob("*.yaml"))
    assert len(examples) >= 5
    for path in examples:
        (described,) = load_documents(path.read_text(), path.name)
        assert machine(described).devices, path.name


# What is refused


@pytest.mark.parametrize(
    ("description", "field", "part"),
    [
        ("h100-", "hardware.short", "unknown GPU 'h100-'; nearest: h100-pcie, h100-sxm, h100-nvl"),
        ("2xh100:2", "hardware.short", "MODEL:COUNT"),
        ("0xh100", "hardware.short", "1 to 64"),
        ("2x", "hardware.short", "unknown GPU '2x'"),
        ("rtx4091:2", "hardware.short", "unknown GPU 'rtx4091'; nearest: rtx4090"),
        ("zzzzzzz", "hardware.short", "docs/reference/hardware.md"),
        ("", "hardware.short", "MODEL:COUNT"),
        ("h100-sxm:", "hardware.short", "MODEL:COUNT"),
        ("h100-sxm:-1", "hardware.short", "MODEL:COUNT"),
        ("h100-sxm:0", "hardware.short", "1 to 64"),
        ("h100-sxm:65", "hardware.short", "1 to 64"),
        ("h100-sxm:40,l4:40", "hardware.short", "at most 64 devices, slices included (has 80)"),
        ("cpu,h100-sxm", "hardware.short", "unknown GPU 'cpu'"),
        ("gb10:2", "hardware.short", "only device"),
        ("m1,l4", "hardware.short", "only device"),
        ({}, "hardware", "either `short` or `devices`"),
        ({"short": "l4", "devices": [{"model": "l4"}]}, "hardware", "either `short` or `devices`"),
        ({"devices": []}, "hardware.devices", "at least 1 entry"),
        (None, "hardware", "must be a mapping"),
        ({"short": "l4", "hots": {}}, "hardware.hots", "did you mean 'host'?"),
        ({"devices": [{"modle": "l4"}]}, "hardware.devices[0].modle", "did you mean 'model'?"),
        ({"devices": [{"model": "h100-"}]}, "hardware.devices[0].model", "nearest: h100-pcie"),
        ({"devices": [{"model": "l4", "count": 0}]}, "hardware.devices[0].count", "at least 1"),
        ({"devices": [{"model": "l4", "count": 65}]}, "hardware.devices[0].count", "at most 64"),
        ({"devices": [{"model": "l4", "memory": -1}]}, "hardware.devices[0].memory", "at least 1048576 (got -1)"),
        ({"devices": [{"model": "l4", "memory_used": "-1GiB"}]}, "hardware.devices[0].memory_used", "must be a size"),
        (
            {"devices": [{"model": "l4", "memory_used": "30GiB"}]},
            "hardware.devices[0].memory_used",
            "at most the device's memory, 22.49GiB (got 30GiB)",
        ),
        ({"devices": [{"model": "l4", "numa": 2}]}, "hardware.devices[0].numa", "less than the number of NUMA nodes"),
        ({"devices": [{"model": "m1", "memory": "32GiB"}]}, "hardware.devices[0].memory", "at most the host's memory"),
        ({"short": "l4", "driver": {"cuda": 12.4}}, "hardware.driver.cuda", "put it in quotes"),
        ({"short": "l4", "driver": {"cuda": "new"}}, "hardware.driver.cuda", "must be a version"),
        ({"short": "l4", "driver": {"rocm": "7.0"}}, "hardware.driver.rocm", "no device of amd"),
        ({"short": "cpu", "driver": {"nvidia": "580.1"}}, "hardware.driver.nvidia", "no device of nvidia"),
        ({"short": "l4", "host": {"memory": "1MiB"}}, "hardware.host.memory", "at least"),
        ({"short": "l4", "host": {"memory": "2GiB", "memory_used": "3GiB"}}, "hardware.host.memory_used", "got 3GiB"),
        ({"short": "l4", "host": {"cores": 1, "numa_nodes": 2}}, "hardware.host.numa_nodes", "number of cores"),
        ({"short": "l4", "host": {"cpu_flags": ["avx3"]}}, "hardware.host.cpu_flags[0]", "did you mean"),
        ({"short": "gb10", "host": {"cpu_flags": ["avx2"]}}, "hardware.host.cpu_flags", "must be empty"),
        ({"short": "m1", "host": {"machine": "x86_64"}}, "hardware.host.machine", "must be arm64"),
        ({"short": "l4", "host": {"machine": "arm64"}}, "hardware.host.machine", "must be arm64"),
    ],
)  # fmt: skip
def test_bad_descriptions_are_refused_with_the_field_and_the_rule(description, field, part):
    broken = refused(description)
    assert part in broken.get(field, ""), broken


def sliced(*profiles: str, model: str = "h100-sxm", **more: Any) -> dict[str, Any]:
    return devices({"model": model, "mig": [{"profile": profile} for profile in profiles], **more})


@pytest.mark.parametrize(
    ("description", "field", "part"),
    [
        (sliced("1g.10gb", model="rtx4090"), "hardware.devices[0].mig", "rtx4090 cannot be sliced"),
        (sliced("1g.11gb"), "hardware.devices[0].mig[0].profile", "did you mean '1g.10gb'?"),
        (sliced(*["1g.10gb"] * 4, "4g.40gb"), "hardware.devices[0].mig", "7 compute slices and 8 parts"),
        (sliced(*["1g.10gb"] * 4, "4g.40gb"), "hardware.devices[0].mig", "need 8 and 8"),
        (sliced("3g.40gb", "3g.40gb", "1g.10gb"), "hardware.devices[0].mig", "need 7 and 9"),
        (sliced("4g.96gb", "1g.24gb", model="rtxpro6000"), "hardware.devices[0].mig", "4 compute slices and 4 parts"),
        (sliced("1g.10gb", memory_used="1GiB"), "hardware.devices[0].memory_used", "of each slice"),
        (
            devices({"model": "h100-sxm", "mig": [{"profile": "1g.10gb", "memory_used": "10GiB"}]}),
            "hardware.devices[0].mig[0].memory_used",
            "at most the slice's memory, 9.75GiB (got 10GiB)",
        ),
        (
            devices({"model": "h100-sxm", "count": 16, "mig": [{"profile": "1g.10gb", "count": 7}]}),
            "hardware.devices",
            "at most 64 devices, slices included (has 112)",
        ),
    ],
)  # fmt: skip
def test_slices_that_a_gpu_cannot_be_cut_into_are_refused(description, field, part):
    broken = refused(description)
    assert part in broken.get(field, ""), broken


def grouped(short: str, *groups: list[int], kind: str = "nvlink") -> dict[str, Any]:
    return {"short": short, "topology": {kind: list(groups)}}


@pytest.mark.parametrize(
    ("description", "part"),
    [
        (grouped("h100-sxm:4", [0, 4]), "names device 4, which is not there: numbers are 0 to 3"),
        (grouped("cpu", [0, 1]), "numbers are none"),
        (grouped("h100-sxm:4", [0, 1], [1, 2]), "names device 1 again"),
        (grouped("h100-sxm:4", [0, 0]), "names device 0 again"),
        (grouped("rtx4090:2", [0, 1]), "names device 0, a rtx4090, which has no NVLink"),
        (grouped("mi300x:2", [0, 1]), "names device 0, a mi300x, which has no NVLink"),
        (grouped("h100-sxm:2", [0, 1], kind="xgmi"), "names device 0, a h100-sxm, which has no XGMI"),
        (grouped("h100-nvl:3", [0, 1, 2]), "joins 3 devices: a bridge of h100-nvl joins at most 2"),
        (grouped("h100-sxm,a100-80-sxm", [0, 1]), "joins h100-sxm and a100-80-sxm"),
        (sliced("7g.80gb", count=2) | {"topology": {"nvlink": [[0, 1]]}}, "names device 0, which is sliced"),
        (grouped("h100-sxm:2", [0]), "must have at least 2"),
    ],
)
def test_groups_that_cannot_be_are_refused(description, part):
    broken = refused(description)
    assert any(field.startswith("hardware.topology.") and part in rule for field, rule in broken.items()), broken


def ordered(short: str, *rows: str) -> dict[str, Any]:
    return {"short": short, "topology": {"matrix": [row.split() for row in rows]}}


@pytest.mark.parametrize(
    ("description", "field", "part"),
    [
        (ordered("h100-sxm:2", "X NV18", "SYS X"), "[1][0]", "must be 'NV18', as in [0][1] (got 'SYS')"),
        (ordered("h100-sxm:2", "X NV18"), "", "2 rows of 2 words"),
        (ordered("h100-sxm:2", "X", "X"), "", "2 rows of 2 words"),
        (ordered("h100-sxm:2", "SYS SYS", "SYS X"), "[0][0]", "must be X"),
        (ordered("h100-sxm:2", "X X", "X X"), "[0][1]", "must be NV with a number"),
        (ordered("h100-sxm:2", "X NV19", "NV19 X"), "[0][1]", "at most NV18"),
        (ordered("h100-sxm:2", "X NV0", "NV0 X"), "[0][1]", "must be NV with a number"),
        (ordered("l4:2", "X NV4", "NV4 X"), "[0][1]", "joins device 0, a l4, which has no NVLink"),
        (ordered("h100-sxm:2", "X XGMI", "XGMI X"), "[0][1]", "has no XGMI"),
        (ordered("h100-sxm,h200-sxm", "X NV18", "NV18 X"), "[0][1]", "devices of one model"),
        (
            {"short": "l4:2", "topology": {"matrix": [["X", "SYS"], ["SYS", "X"]], "nvlink": []}},
            "",
            "must be left out where groups are given",
        ),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(description, field, part):
    broken = refused(description)
    assert part in broken.get(f"hardware.topology.matrix{field}", ""), broken


def test_all_that_is_wrong_is_told_at_once():
    described = {
        "devices": [{"model": "l4", "memory_used": "30GiB", "numa": 9}],
        "host": {"memory": "1GiB", "memory_used": "2GiB"},
        "topology": {"nvlink": [[0, 1]]},
    }
    assert set(refused(described)) == {
        "hardware.devices[0].memory_used",
        "hardware.devices[0].numa",
        "hardware.host.memory_used",
        "hardware.topology.nvlink[0]",
    }


def test_equal_devices_with_a_problem_are_told_of_once():
    with pytest.raises(InvalidArgument) as caught:
        parse({"devices": [{"model": "l4", "count": 8, "memory_used": "30GiB"}]})
    assert len(caught.value.violations) == 1


# Whatever is described

IDS = st.sampled_from(["h100-sxm", "h100-nvl", "a100-80-sxm", "l4", "mi300x", "mi210", "gb10", "m1", "nope"])
SIZES = st.sampled_from([0, -1, "1GiB", "30GiB", "90GiB", 2**60, True, 1.5, "x"])
WORDS = st.sampled_from(["X", "NV18", "NV12", "SYS", "PIX", "XGMI", "", "nv18"])
NUMBERS = st.integers(-1, 5)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with some of these keys, whose values may be anything."""
    return st.fixed_dictionaries({}, optional={name: value | ANYTHING for name, value in fields.items()})


SLICES = some(profile=st.sampled_from(["1g.10gb", "3g.40gb", "7g.80gb", "x"]), count=NUMBERS, memory_used=SIZES)
ENTRY = some(count=NUMBERS, memory=SIZES, memory_used=SIZES, numa=NUMBERS, mig=st.lists(SLICES, max_size=3)).flatmap(
    lambda entry: IDS.map(lambda id: {"model": id, **entry})
)
GROUPS = st.lists(st.lists(NUMBERS, max_size=3), max_size=3)
DESCRIPTION = some(
    short=st.lists(IDS, min_size=1, max_size=3).map(",".join),
    devices=st.lists(ENTRY, max_size=3),
    driver=some(nvidia=st.just("580.1"), cuda=st.just("13.0"), rocm=st.just("7.0")),
    topology=some(nvlink=GROUPS, xgmi=GROUPS, matrix=st.lists(st.lists(WORDS, max_size=3), max_size=3)),
    host=some(memory=SIZES, memory_used=SIZES, cores=NUMBERS, numa_nodes=NUMBERS, cpu_flags=st.just(["avx"])),
)
#: Well formed in every field, so that most of what is left to refuse are contradictions.
SOUND = st.fixed_dictionaries(
    {
        "devices": st.lists(
            st.fixed_dictionaries(
                {"model": st.sampled_from(["h100-sxm", "h100-nvl", "l4", "mi300x"]), "count": st.integers(1, 3)},
                optional={"memory_used": st.sampled_from(["1GiB", "30GiB"]), "numa": st.integers(0, 2)},
            ),
            min_size=1,
            max_size=3,
        )
    },
    optional={
        "topology": st.fixed_dictionaries({"nvlink": st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=3))}),
        "host": st.fixed_dictionaries({}, optional={"cores": st.integers(1, 9), "numa_nodes": st.integers(1, 3)}),
    },
)  # fmt: skip


def check(told: Simulated) -> None:
    """What holds of every machine that is not refused."""
    found = told.inventory
    ids = [device.id for device in found.devices]
    assert len(ids) == len(set(ids)) <= MAX_DEVICES
    assert set(told.used) == set(ids)
    assert found.simulated == told.source
    assert told.source
    assert 0 <= found.memory.available <= found.memory.total
    assert sum(node.memory_bytes for node in found.numa) <= found.memory.total
    assert sorted(cpu for node in found.numa for cpu in node.cpus) == list(range(found.logical_cores))
    nodes = {node.id for node in found.numa}
    for device in found.devices:
        assert 0 <= told.used[device.id] <= device.memory_bytes
        assert device.numa_node is None or device.numa_node in nodes
        assert device.facts
    pairs = [(link.a, link.b) for link in found.links]
    assert all(a < b for a, b in pairs)
    whole = sum(not device.parent for device in found.devices)
    assert len(pairs) == len(set(pairs)) == whole * (whole - 1) // 2
    assert all(one.index <= other.index for one, other in pairwise(found.devices) if one.parent == other.parent)


def outcome(description: Any) -> Simulated | InvalidArgument:
    try:
        return parse(description)
    except InvalidArgument as error:
        return error


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(DESCRIPTION | SOUND | ANYTHING)
def test_any_description_is_a_machine_or_refused_with_fields(description):
    told = outcome(description)
    if isinstance(told, Simulated):
        check(told)
        # What is shown as its description describes it again.
        assert parse(json.loads(told.source) if told.source.startswith("{") else told.source) == told
    else:
        assert told.violations
        assert all(found.field.startswith("hardware") and found.rule for found in told.violations)


@settings(max_examples=100)
@given(st.text(max_size=20) | st.lists(IDS | st.text(max_size=3), max_size=3).map(":".join))
def test_any_text_is_a_machine_or_refused(text):
    told = outcome(text)
    if isinstance(told, Simulated):
        check(told)
    else:
        assert [found.field for found in told.violations] == ["hardware.short"]
