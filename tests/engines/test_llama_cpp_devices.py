"""llama.cpp's devices: what executables list, and what a placement becomes on the command line."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from agent.engines import llama_cpp_devices
from agent.engines.base import EngineDevice
from agent.engines.llama_cpp import LlamaCpp
from agent.planning.plan import Placement, Plan
from tests.engines.test_executables import script
from tests.engines.test_llama_cpp import OPTIONS, PLAN

ENGINE = LlamaCpp()

#: As builds for CUDA, ROCm and Vulkan print it.
CUDA = """\
ggml_cuda_init: found 2 CUDA devices (Total VRAM: 35936 MiB):
  Device 0: NVIDIA GeForce RTX 3080 Ti, compute capability 8.6, VMM: yes, VRAM: 11909 MiB
  Device 1: NVIDIA RTX PRO 4000 Blackwell SFF Edition, compute capability 12.0, VMM: yes, VRAM: 24026 MiB
Available devices:
  CUDA0: NVIDIA GeForce RTX 3080 Ti (11909 MiB, 11650 MiB free)
  CUDA1: NVIDIA RTX PRO 4000 Blackwell SFF Edition (24026 MiB, 23795 MiB free)
"""
MIXED = """\
Available devices:
  ROCm0: AMD Radeon RX 7900 XTX (24560 MiB, 24518 MiB free)
  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24000 MiB free)
  BLAS: OpenBLAS (0 MiB, 0 MiB free)
  RPC0[127.0.0.1:50052]: RPC0[127.0.0.1:50052] (1024 MiB, 1000 MiB free)
  MTL0: Apple M3 Max (53084 MiB, 53084 MiB free)
  SYCL0: Intel(R) Arc(TM) B580 Graphics (11605 MiB, 11605 MiB free)
"""


def flags(plan: Plan) -> dict[str, str]:
    argv = ENGINE.command(plan, "127.0.0.1", 8100).argv
    return {flag: value for flag, value in pairwise(argv) if flag.startswith("--")}


def on(*layers: int, accelerator: str = "cuda", names: tuple[str, ...] = ()) -> Plan:
    placement = Placement(accelerator, layers, names, {"CUDA_VISIBLE_DEVICES": "GPU-1"})
    return replace(PLAN, devices=tuple(f"GPU-{index}" for index in range(len(layers))), placement=placement)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Available devices:\n  (none)\n", []),
        ("", []),
        (CUDA, ["cuda CUDA0 NVIDIA GeForce RTX 3080 Ti", "cuda CUDA1 NVIDIA RTX PRO 4000 Blackwell SFF Edition"]),
        (
            MIXED,
            [
                "rocm ROCm0 AMD Radeon RX 7900 XTX",
                "vulkan Vulkan0 AMD Radeon RX 7900 XTX (RADV NAVI31)",
                "metal MTL0 Apple M3 Max",
                "sycl SYCL0 Intel(R) Arc(TM) B580 Graphics",
            ],
        ),
    ],
)
def test_the_listed_devices_are_read_with_their_accelerators(text: str, found: list[str]) -> None:
    listed = llama_cpp_devices.listed(text)

    assert [f"{device.accelerator} {device.name} {device.description}" for device in listed] == found


def test_an_executable_can_use_what_it_lists_and_the_cpu(tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    listing.write_text(CUDA)
    binary = script(tmp_path / "server", f'[ "$1" = --version ] && echo version: 7 || cat {listing}')

    located = ENGINE.locate([str(binary)])

    assert located is not None
    assert located.accelerators == {"cpu", "cuda"}
    assert located.devices[1] == EngineDevice("cuda", "CUDA1", "NVIDIA RTX PRO 4000 Blackwell SFF Edition")
    assert located.version == "7"


def test_an_executable_without_devices_and_the_embedded_one_have_the_cpu_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    binary = script(tmp_path / "server", "exit 1")

    for located in (ENGINE.locate([str(binary)]), ENGINE.locate(None)):
        assert located is not None
        assert located.accelerators == {"cpu"}
        assert located.devices == ()


def test_a_plan_without_devices_offloads_nothing() -> None:
    given = flags(PLAN)

    assert given["--device"] == "none"
    assert "--n-gpu-layers" not in given
    assert "--split-mode" not in given


def test_devices_are_counted_from_0_as_they_are_made_visible() -> None:
    given = flags(on(17, 16))

    assert given["--device"] == "CUDA0,CUDA1"
    assert given["--n-gpu-layers"] == "33"
    assert (given["--split-mode"], given["--tensor-split"]) == ("layer", "17,16")
    assert ENGINE.command(on(17, 16), "h", 1).environment == {"CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_part_of_the_layers_is_a_number_and_one_device_needs_no_split() -> None:
    given = flags(on(12, accelerator="rocm"))

    assert (given["--device"], given["--n-gpu-layers"]) == ("ROCm0", "12")
    assert "--tensor-split" not in given


def test_devices_that_cannot_be_hidden_are_named_as_the_engine_does() -> None:
    assert flags(on(33, accelerator="vulkan", names=("Vulkan1",)))["--device"] == "Vulkan1"


def test_a_plan_with_devices_uses_only_flags_that_llama_server_has() -> None:
    known = set(OPTIONS.read_text().split())

    for plan in (on(17, 16), on(12)):
        argv = ENGINE.command(plan, "127.0.0.1", 8100).argv
        assert {item for item in argv[1:] if item.startswith("-")} <= known


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"])
def test_a_spec_cannot_show_the_engine_other_devices(name: str) -> None:
    assert ENGINE.check_variable(name) == "`devices` decides it"
