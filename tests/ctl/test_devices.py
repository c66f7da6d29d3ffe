"""`devices`, `node` and what other commands say of devices, on a machine with devices in all conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent import __version__
from agent.api import mapping
from agent.ctl import devices
from agent.ctl.commands.node import ranges
from agent.ctl.exits import Exit
from agent.ctl.failures import Usage
from agent.errors import FieldViolation, InvalidArgument, NotFound
from agent.planning.plan import Placement
from agent.status import Condition, DeviceCondition, DeviceStatus, DeviceUse
from agent.supervision.service import Planned
from agent.v1 import agent_pb2 as pb
from tests.ctl.conftest import Invoke, Run, Served
from tests.ctl.deployments import INSTANCE, NODE, NOW, PLAN, READY
from tests.ctl.machines import BUSY, DEVICES, GIB, GPUS, LOST, MACHINE, status

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def machine(served: Served) -> Served:
    served.be(MACHINE)
    return served


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("devices.table", "devices"),
        ("devices.wide", "devices -o wide"),
        ("devices.processes", "devices --processes"),
        ("devices.topology", "devices --topology"),
        ("devices.one", "devices 0"),
        ("node.table", "node"),
        ("node.json", "node -o json"),
        ("status.devices", "status"),
    ],
)
def test_a_page_is_what_it_was(ctl: Invoke, page: str, words: str) -> None:
    done = ctl(*words.split())
    expected = (GOLDEN / page).read_text().replace("@VERSION@", __version__)
    assert (done.exit_code, done.stderr, done.stdout) == (0, "", expected)


@pytest.mark.usefixtures("served")
def test_a_node_without_devices_says_so_and_where_to_ask_why(ctl: Invoke) -> None:
    done = ctl("devices")
    assert (done.exit_code, done.stdout) == (
        0,
        "no devices: engines run on the CPU; agentctl doctor says why, where there should be some\n",
    )
    assert json.loads(ctl("devices", "-o", "json").stdout) == {"devices": []}
    assert ctl("devices", "--topology").stdout == "no devices\n"


@pytest.mark.usefixtures("machine")
def test_devices_as_json_are_whole_and_one_is_an_object(ctl: Invoke) -> None:
    listed = json.loads(ctl("devices", "-o", "json").stdout)["devices"]
    assert [device["index"] for device in listed] == [0, 1, 2, 3]
    one = json.loads(ctl("devices", "GPU-5a1b2", "-o", "json").stdout)
    assert one == listed[0]
    assert one["detail"]["pci"]["max_width"] == 16
    assert (one["id"], one["condition"]) == (GPUS[0].id, "DEVICE_CONDITION_HEALTHY")
    assert [process["instance"] for process in one["processes"]] == ["chat-3-1", ""]
    assert "memory_used_bytes" not in listed[2]
    links = json.loads(ctl("devices", "--topology", "-o", "json").stdout)["links"]
    assert links[0] == {"a": GPUS[0].id, "b": GPUS[1].id, "kind": "nvlink", "lanes": 18}


@pytest.mark.usefixtures("machine")
def test_list_may_be_said_or_left_out(ctl: Invoke) -> None:
    assert ctl("devices", "list", "0").stdout == ctl("devices", "0").stdout != ""
    assert "Usage: agentctl devices [OPTIONS] [list] [DEVICE] | COMMAND" in ctl("devices", "--help").stdout


MESSAGES = [mapping.device(device) for device in DEVICES]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        (GPUS[0].id, 0), (f"devices/{GPUS[0].id}", 0), ("0", 0), ("2", 2), ("GPU-5a1b2", 0), ("gpu-5A1BF", 1),
        ("MIG", 3),
    ],
)  # fmt: skip
def test_a_device_is_meant_by_id_index_or_beginning_of_its_id(text: str, index: int) -> None:
    assert devices.find(MESSAGES, text).index == index


def test_a_beginning_of_several_ids_is_refused_with_those_that_could_be_meant() -> None:
    with pytest.raises(Usage, match="GPU-5a1b could be several devices") as caught:
        devices.find(MESSAGES, "GPU-5a1b")
    assert "0 GPU-5a1b2c3d" in caught.value.hint
    assert "1 GPU-5a1bffff" in caught.value.hint
    assert "77777777" not in caught.value.hint


def test_an_index_of_two_vendors_devices_is_refused_and_their_ids_are_not() -> None:
    amd = mapping.device(replace(BUSY, id="amd-0000:c1:00.0", vendor="amd"))
    with pytest.raises(Usage, match="0 could be several"):
        devices.find([*MESSAGES, amd], "0")
    assert devices.find([*MESSAGES, amd], "amd") is amd


@pytest.mark.parametrize("text", ["7", "GPU-x", "", "devices/"])
def test_what_is_no_device_is_not_found_and_the_hint_says_which_there_are(text: str) -> None:
    with pytest.raises(NotFound) as caught:
        devices.find(MESSAGES, text)
    assert all(gpu.id in caught.value.hint for gpu in GPUS)
    with pytest.raises(NotFound) as caught:
        devices.find([], text)
    assert caught.value.hint == "this node has no devices"


def test_ids_are_shortened_as_far_as_they_stay_different() -> None:
    def brief(*ids: str) -> list[str]:
        return list(devices.brief(pb.Device(name=f"devices/{id}") for id in ids).values())

    assert brief("GPU-5a1b2c3d-1111-2222", "amd-0000:c1:00.0") == ["GPU-5a1b2c3d", "amd-0000:c1:00.0"]
    assert brief("GPU-00000000-0000-01", "GPU-00000000-0000-02") == ["GPU-00000000-0000-01", "GPU-00000000-0000-02"]
    assert brief("GPU-00000000-1000-0000", "GPU-00000000-2000-0000") == ["GPU-00000000-1", "GPU-00000000-2"]
    assert brief() == []


def test_slices_that_share_an_index_are_told_apart_in_the_matrix() -> None:
    slices = [mapping.device(replace(status(GPUS[0]), id=f"MIG-{n}")) for n in range(2)]
    assert devices.topology(slices, []).splitlines()[0].split() == ["MIG-0", "MIG-1", "NUMA"]


def test_a_device_is_quarantined_and_released(ctl: Invoke, machine: Served) -> None:
    done = ctl("devices", "quarantine", "0", "--reason", "a fan is loud")
    assert (done.exit_code, done.stdout) == (0, f"device 0 {GPUS[0].id} is quarantined\n")
    quarantined = machine.node.device_list[0]
    assert (quarantined.condition, quarantined.message) == (DeviceCondition.QUARANTINED, "a fan is loud")
    done = ctl("devices", "release", "GPU-5a1b2", "-o", "json")
    assert json.loads(done.stdout)["condition"] == "DEVICE_CONDITION_HEALTHY"
    assert machine.node.device_list[0].condition is DeviceCondition.HEALTHY


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["quarantine", "0"], Exit.USAGE, "--reason"),
        (["quarantine", "0", "--reason", " "], Exit.USAGE, "must be one line of 1 to 256 characters"),
        (["quarantine", "GPU-5a1b", "--reason", "x"], Exit.USAGE, "could be several"),
        (["quarantine", "9", "--reason", "x"], Exit.NOT_FOUND, "there is no device 9"),
        (["release", "9"], Exit.NOT_FOUND, "hint: there are: 0 GPU-5a1b2c3d"),
        (["9"], Exit.NOT_FOUND, "there is no device 9"),
        (["0", "--topology"], Exit.USAGE, "--topology is of all devices"),
        (["quarantine"], Exit.USAGE, "DEVICE"),
    ],
)
def test_what_cannot_be_done_to_a_device_changes_nothing(
    ctl: Invoke, machine: Served, words: list[str], code: Exit, said: str
) -> None:
    done = ctl("devices", *words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert tuple(machine.node.device_list) == DEVICES


def test_whoever_may_only_look_may_not_quarantine(invoke: Invoke, machine: Served) -> None:
    looking = ["--socket", str(machine.readonly.path), "devices"]
    assert invoke(*looking, "0").exit_code == Exit.OK
    assert invoke(*looking, "quarantine", "0", "--reason", "x").exit_code == Exit.PERMISSION


def test_status_tells_of_deployments_that_left_their_devices(ctl: Invoke, served: Served) -> None:
    conditions = (
        Condition("WithinDeviceBudget", False, "OverDeviceBudget", "2.0 GiB more than planned", NOW - 90),
        Condition("OnPlannedDevices", True, "OnPlannedDevices", "", NOW - 90),
        Condition("SomethingElse", None, "NotKnown", "not looked at", NOW - 90),
    )
    served.put(replace(READY, conditions=conditions))
    lines = ctl("status").stdout.splitlines()
    assert "! chat WithinDeviceBudget is bad for 90s: OverDeviceBudget: 2.0 GiB more than planned" in lines
    assert not [line for line in lines if "OnPlannedDevices" in line or "SomethingElse" in line]


def test_describe_holds_what_an_instance_uses_against_its_plan(ctl: Invoke, served: Served) -> None:
    uses = (
        DeviceUse(GPUS[0].id, planned=True, budget_bytes=36 * GIB, used_bytes=38 * GIB),
        DeviceUse(GPUS[1].id, planned=True, budget_bytes=36 * GIB, used_bytes=None),
        DeviceUse(GPUS[2].id, planned=False, budget_bytes=0, used_bytes=GIB),
    )
    condition = Condition("WithinDeviceBudget", False, "OverDeviceBudget", "too much", NOW - 90)
    served.put(replace(READY, instance=replace(INSTANCE, device_uses=uses), conditions=(condition,)))
    text = ctl("describe", "chat").stdout
    assert "conditions   WithinDeviceBudget: no: OverDeviceBudget: too much\n" in text
    section = text.partition("\nDEVICES\n")[2].splitlines()[:4]
    assert [line.split()[1:] for line in section] == [
        ["PLANNED", "BUDGET", "USED", "OVER"],
        ["yes", "36.0", "GiB", "38.0", "GiB", "2.0", "GiB"],
        ["yes", "36.0", "GiB", "?", "-"],
        ["no", "-", "1.0", "GiB", "1.0", "GiB"],
    ]


@pytest.mark.usefixtures("machine")
def test_get_lists_devices_or_shows_one(ctl: Invoke) -> None:
    assert ctl("get", "devices", "-o", "json").stdout == ctl("devices", "-o", "json").stdout
    assert ctl("get", "devices", "2", "-o", "json").stdout == ctl("devices", "2", "-o", "json").stdout
    assert len(ctl("get", "devices", "GPU-777").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("agentctl devices ", {"quarantine", "release", GPUS[0].id, GPUS[2].id}),
        ("agentctl devices GPU-7", {GPUS[2].id}),
        ("agentctl devices rel", {"release"}),
        ("agentctl devices release MIG", {"MIG-00112233-1111-2222-3333-444455556666"}),
        ("agentctl get devi", {"devices"}),
    ],
)
def test_devices_and_what_can_be_done_to_them_are_completed(
    agentctl: Run, machine: Served, words: str, found: set[str]
) -> None:
    environ = {
        "_AGENTCTL_COMPLETE": "bash_complete",
        "AGENTD_SOCKET": str(machine.control.path),
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = agentctl(environ=environ)
    completed = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert done.stderr == ""
    assert found <= completed
    assert all(one.startswith(words.rpartition(" ")[2]) for one in completed)


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([5, 0, 1, 2, 7, 8], "0-2,5,7-8")])
def test_cpus_are_listed_as_the_kernel_lists_them(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.usefixtures("machine")
def test_a_node_with_described_hardware_is_shown_as_the_daemon_reads_it(ctl: Invoke, tmp_path: Path) -> None:
    assert ctl("node", "--hardware", "h100-sxm:8").stdout.splitlines()[2] == "simulated     {'short': 'h100-sxm:8'}"
    file = tmp_path / "machine.yaml"
    file.write_text("devices:\n- model: h100-sxm\n  count: 8\n")
    said = "{'devices': [{'count': 8, 'model': 'h100-sxm'}]}"
    for words in (["--hardware", str(file)], ["--hardware", "-"]):
        done = ctl("node", *words, "-o", "json", input=file.read_text())
        assert sorted(json.loads(done.stdout)["inventory"]["simulated"]) == sorted(said)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["node", "--hardware", "unknown"], Exit.USAGE, "short: must be a known model"),
        (["node", "--hardware", "none.yaml"], Exit.NOT_FOUND, "none.yaml: no such file"),
        (["node", "--hardware", "two.yaml"], Exit.USAGE, "two.yaml: has 2 descriptions of hardware; must have one"),
        (["node", "--hardware", "empty.yaml"], Exit.USAGE, "empty.yaml: has 0 descriptions"),
        (["node", "--hardware", "list.yaml"], Exit.USAGE, "must be a mapping"),
        (["node", "--hardware", "h100", "--watch"], Exit.USAGE, "described hardware does not change"),
        (["plan", "/m.gguf", "--hardware", "two.yaml"], Exit.USAGE, "must have one"),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(
    ctl: Invoke,
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: Exit,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"two": "a: 1\n---\nb: 2\n", "empty": "", "list": "- 1\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    done = ctl(*words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_plan_for_described_hardware_says_that_it_is_for_no_real_machine(ctl: Invoke, served: Served) -> None:
    asked: list[object] = []

    async def plan(spec: object, hardware: object) -> Planned:
        asked.append(hardware)
        return Planned(PLAN, None, ("llama-server",))

    served.node.plan = plan  # type: ignore[method-assign, assignment]
    done = ctl("plan", "/m.gguf", "--hardware", "h100-sxm:8")
    assert done.stdout.startswith("for described hardware, not for this node: h100-sxm:8\n\ndeployment ")
    assert ctl("plan", "/m.gguf").stdout.startswith("deployment ")
    assert asked == [{"short": "h100-sxm:8"}, None]


def test_a_plan_on_devices_names_them_with_their_layers(ctl: Invoke, served: Served) -> None:
    placement = Placement(accelerator="cuda", layers=(20, 13))
    planned = replace(PLAN, devices=(GPUS[0].id, GPUS[1].id), placement=placement)

    async def plan(spec: object, hardware: object) -> Planned:
        return Planned(planned, None, ())

    served.node.plan = plan  # type: ignore[method-assign, assignment]
    text = " ".join(ctl("plan", "/m.gguf").stdout.split())
    assert f"devices {GPUS[0].id} by cuda, 20 layers {GPUS[1].id} by cuda, 13 layers" in text


def test_hardware_goes_with_a_spec_from_a_file_too(ctl: Invoke, served: Served, tmp_path: Path) -> None:
    spec = tmp_path / "chat.yaml"
    spec.write_text("name: chat\nmodel: /m.gguf\n")
    ctl("plan", "-f", spec, "--hardware", "rtx4090")
    assert served.node.planned_for == {"short": "rtx4090"}


def test_the_daemon_names_the_field_of_a_description_that_breaks_a_rule(ctl: Invoke, served: Served) -> None:
    rule = FieldViolation("devices[0].model", "'h10' is not known; nearest: h100-sxm")
    served.node.failure = InvalidArgument("the hardware is not valid", violations=(rule,))
    done = ctl("plan", "/m.gguf", "--hardware", "h10")
    assert done.exit_code == Exit.USAGE
    assert "  devices[0].model: 'h10' is not known; nearest: h100-sxm\n" in done.stderr


@pytest.mark.parametrize("condition", DeviceCondition)
def test_every_condition_has_a_word_of_its_own_in_the_list(
    ctl: Invoke, served: Served, condition: DeviceCondition
) -> None:
    device: DeviceStatus = replace(LOST, condition=condition)
    served.be(replace(NODE, devices=(device,)))
    assert f"   {condition.upper()}   " in ctl("devices").stdout.splitlines()[1]
