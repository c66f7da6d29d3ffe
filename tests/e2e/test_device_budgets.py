"""Engines on devices: what they were planned to use, what they are seen to use, and when a device is free again.

The engine is real and runs on the CPU; it claims to have been built for CUDA, and the NVML double says what it holds of
which GPU. So planning, launching, watching and stopping are the real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.v1 import agent_pb2 as pb
from tests.harness import PHASE, Daemon, daemon, wait_true
from tests.nvml.double import GIB, GPU_IS_LOST, NvmlDouble

WITHIN = 15.0
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def machine(tmp_path: Path) -> NvmlDouble:
    machine = NvmlDouble(tmp_path)
    machine.gpus(2, name=H100)
    return machine


@pytest.fixture
def host(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    for node in daemon(tmp_path, tiny_model, daemon={"sample_seconds": 0.5}):
        node.claim_devices(H100, H100)
        yield node


@pytest.fixture
def strict_host(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """Policy says restart."""
    drift = dict.fromkeys(("over_budget", "wrong_device", "not_on_device"), "restart")
    for node in daemon(tmp_path, tiny_model, daemon={"sample_seconds": 0.5}, policy={"device_drift": drift}):
        node.claim_devices(H100, H100)
        yield node


def started(node: Daemon, machine: NvmlDouble) -> Daemon:
    node.start(environ=machine.environment)

    def sampled() -> bool:
        with node.client() as client:
            found = client.get_node().devices
        return len(found) == 2 and all(each.condition == pb.DEVICE_CONDITION_HEALTHY for each in found)

    wait_true(sampled, WITHIN, "both GPUs were sampled")
    return node


def serving(node: Daemon, machine: NvmlDouble, name: str = "m", **fields: Any) -> tuple[int, int]:
    """A deployment that is READY; which GPU it was given, and the pid of its engine, which holds nothing yet."""
    node.apply(name, **fields)
    deployment = node.wait(name)
    (device,) = plan(deployment)["devices"]
    return next(gpu for gpu in range(2) if machine.uuid(gpu) == device), deployment.instance.pid


def plan(deployment: pb.Deployment) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(deployment.plan)


def budget(deployment: pb.Deployment) -> int:
    (use,) = [use for use in deployment.instance.device_uses if use.planned]
    return int(use.budget_bytes)


def bad(deployment: pb.Deployment) -> set[str]:
    return {condition.reason for condition in deployment.conditions if condition.status == pb.TERNARY_FALSE}


def device(node: Daemon, id: str) -> pb.Device:
    with node.client() as client:
        return next(found for found in client.get_node().devices if found.name == f"devices/{id}")


def test_an_engine_gets_a_gpu_sees_no_other_and_holds_it(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)

    gpu, pid = serving(host, machine)
    machine.take(gpu, pid, 300 * 1024**2)

    id = machine.uuid(gpu)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"CUDA_VISIBLE_DEVICES={id}".encode() in environment
    found = host.wait_until(lambda d: any(use.used_bytes for use in d.instance.device_uses), "m", WITHIN)
    (use,) = found.instance.device_uses
    assert (use.device, use.planned, use.used_bytes) == (f"devices/{id}", True, 300 * 1024**2)
    (hold,) = device(host, id).holds
    assert (hold.deployment, hold.bytes, hold.ended) == ("deployments/m", use.budget_bytes, False)
    (process,) = device(host, id).processes
    assert process.instance == found.instance.name.rpartition("/")[2]
    assert bad(found) == set()
    with host.client() as client:
        assert (client.get_node().deployment_count, client.get_node().ready_count) == (1, 1)


def test_an_engine_for_the_cpu_sees_no_gpu(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)

    host.apply(devices="cpu")
    pid = host.wait().instance.pid

    assert b"CUDA_VISIBLE_DEVICES=" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_budgets_of_two_deployments_never_exceed_a_gpu_that_strangers_use(host: Daemon, machine: NvmlDouble) -> None:
    for gpu in range(2):
        machine.take(gpu, os.getpid(), 79 * GIB)
    started(host, machine)

    host.apply()

    assert plan(host.wait())["devices"] == []
    reasons = {reason["field"]: reason["sentence"] for reason in plan(host.get())["reasons"]}
    assert "GiB" in json.dumps(plan(host.get())["rejected"]) or "GiB" in reasons["devices"]


def test_more_than_the_budget_is_a_condition_and_an_event(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)
    gpu, pid = serving(host, machine)

    machine.take(gpu, pid, 40 * GIB)

    found = host.wait_until(lambda d: "OverDeviceBudget" in bad(d), "m", WITHIN)
    assert budget(found) < 40 * GIB
    assert PHASE[found.phase] == "ready"
    wait_true(lambda: "OverDeviceBudget" in host.reasons(), WITHIN, "told")
    machine.give_back(gpu)
    machine.take(gpu, pid, 200 * 1024**2)
    host.wait_until(lambda d: not bad(d), "m", WITHIN)
    assert host.get().instance.pid == pid


def test_more_than_the_budget_is_restarted_where_policy_says_so(strict_host: Daemon, machine: NvmlDouble) -> None:
    started(strict_host, machine)
    gpu, pid = serving(strict_host, machine)

    machine.take(gpu, pid, 40 * GIB)
    strict_host.wait_until(lambda d: PHASE[d.phase] in {"draining", "stopping", "stuck"}, "m", WITHIN)
    wait_true(lambda: pid not in {process.pid for process in strict_host.servers()}, WITHIN, "ended")
    machine.give_back(gpu)

    strict_host.wait_until(lambda d: d.restarts == 1 and d.instance.pid != pid and d.instance.pid > 0, "m", WITHIN)
    assert "LeftPlan" in strict_host.reasons()
    assert strict_host.get().previous.diagnosis.code == "off_budget"


def test_memory_on_another_gpu_than_planned_is_told(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)
    gpu, pid = serving(host, machine)
    machine.take(gpu, pid, 200 * 1024**2)

    machine.take(1 - gpu, pid, 200 * 1024**2)

    host.wait_until(lambda d: "WrongDevice" in bad(d), "m", WITHIN)
    (strange,) = [use for use in host.get().instance.device_uses if not use.planned]
    assert strange.device == f"devices/{machine.uuid(1 - gpu)}"


def test_an_engine_that_fell_back_to_the_cpu_is_told(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)

    serving(host, machine)

    host.wait_until(lambda d: "NotOnDevice" in bad(d), "m", WITHIN)
    wait_true(lambda: "NotOnDevice" in host.reasons(), WITHIN, "told")


def test_a_gpu_is_handed_out_again_only_when_its_memory_was_seen_to_be_back(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)
    gpu, pid = serving(host, machine, devices=[machine.uuid(0)])
    machine.take(gpu, pid, 200 * 1024**2)
    host.wait_until(lambda d: any(use.used_bytes for use in d.instance.device_uses), "m", WITHIN)

    with host.client() as client:
        client.stop_deployment("m")

    found = host.wait_until(lambda d: "still holds" in d.message, "m", WITHIN)
    assert f"pid {pid}" in found.message
    (hold,) = device(host, machine.uuid(0)).holds
    assert hold.ended
    host.apply("other", devices=[machine.uuid(0)])
    refused = host.wait_until(lambda d: d.HasField("diagnosis"), "other", WITHIN)
    assert "m ended" in refused.diagnosis.message
    machine.give_back(0)
    host.wait("m", "stopped", WITHIN)
    assert "DeviceMemoryBack" in host.reasons()
    host.wait("other", "ready", WITHIN)


def test_memory_that_no_process_is_named_for_keeps_the_gpu_until_an_operator_releases_it(
    host: Daemon, machine: NvmlDouble
) -> None:
    started(host, machine)
    _, pid = serving(host, machine, devices=[machine.uuid(0)])
    machine.take(0, pid, 2 * GIB)
    host.wait_until(lambda d: any(use.used_bytes for use in d.instance.device_uses), "m", WITHIN)

    machine.set("gpu0.processes", "")  # the process ends, the driver keeps the memory
    with host.client() as client:
        client.stop_deployment("m")

    host.wait_until(lambda d: "no process that the driver names" in d.message, "m", WITHIN)
    with host.client() as client:
        client.release_device(machine.uuid(0))
    host.wait("m", "stopped", WITHIN)
    assert "DeviceReleased" in host.reasons("")


def test_an_engine_whose_gpu_is_lost_is_planned_anew_on_another(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)
    gpu, pid = serving(host, machine)
    machine.take(gpu, pid, 200 * 1024**2)
    host.wait_until(lambda d: any(use.used_bytes for use in d.instance.device_uses), "m", WITHIN)

    machine.fail(GPU_IS_LOST, gpu=gpu)

    other = machine.uuid(1 - gpu)
    host.wait_until(lambda d: PHASE[d.phase] == "ready" and plan(d)["devices"] == [other], "m", WITHIN)
    assert host.get().previous.diagnosis.code == "device_failed"


def test_a_quarantined_gpu_is_given_to_no_plan(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)
    with host.client() as client:
        client.quarantine_device(machine.uuid(0), "noise")

    gpu, _ = serving(host, machine)

    assert gpu == 1


def test_a_restarted_agent_knows_the_engine_on_its_gpu_again(host: Daemon, machine: NvmlDouble) -> None:
    started(host, machine)
    gpu, pid = serving(host, machine)
    machine.take(gpu, pid, 200 * 1024**2)

    host.kill()
    started(host, machine)

    found = host.wait_until(lambda d: any(use.used_bytes for use in d.instance.device_uses), "m", WITHIN)
    assert (found.instance.pid, found.restarts) == (pid, 0)
    (hold,) = device(host, machine.uuid(gpu)).holds
    assert hold.deployment == "deployments/m"


def test_a_plan_for_a_described_machine_needs_none(host: Daemon) -> None:
    host.start()

    with host.client() as client:
        answer = client.plan_deployment(host.spec("m"), hardware={"short": "h100-sxm:8"})

    assert len(answer.plan["devices"]) == 1
    assert not answer.HasField("refusal")
