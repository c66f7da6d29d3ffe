"""`doctor`: the daemon's report, our own where there is no daemon, and what a script makes of either."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from agent import __version__
from agent.ctl.exits import Exit
from agent.errors import Unavailable
from agent.hardware.doctor import diagnose
from agent.hardware.inventory import Inventory
from agent.status import Condition, DeviceStatus, Finding, FindingLevel
from tests.ctl.conftest import Invoke, Run, Served
from tests.ctl.deployments import NODE, NOW
from tests.ctl.machines import BUSY, DEVICES, GPUS, INVENTORY, MACHINE, status
from tests.nvml.double import NvmlDouble

GOLDEN = Path(__file__).parent / "golden"

#: The machine of the other tests with all its faults mended.
WELL = replace(
    INVENTORY,
    memory=replace(INVENTORY.memory, swap=0),
    disks=INVENTORY.disks[:1],
    containers=INVENTORY.containers[:1],
    devices=GPUS[:2],
    links=INVENTORY.links[:1],
    problems=(),
)
WELL_DEVICES = tuple(map(status, GPUS[:2]))
GOOD = (Condition("StateHealthy", True, "StateWritable", "changes are made durable", NOW - 60),)


def ask(served: Served, inventory: Inventory, devices: Sequence[DeviceStatus], conditions: Sequence[Condition]) -> None:
    """Let the node have this inventory, and examine itself as the daemon does."""
    shown = replace(
        MACHINE,
        inventory_json=json.dumps(asdict(inventory)),
        devices=tuple(devices),
        conditions=tuple(conditions),
    )
    served.be(shown)
    findings = diagnose(inventory, devices, conditions)

    async def doctor() -> tuple[Finding, ...]:
        return findings

    served.node.doctor = doctor  # type: ignore[method-assign]


@pytest.mark.parametrize(("page", "code"), [("doctor.well", Exit.OK), ("doctor.ill", Exit.ERRORS_FOUND)])
def test_a_report_is_what_it_was(ctl: Invoke, served: Served, page: str, code: Exit) -> None:
    if page == "doctor.well":
        ask(served, WELL, WELL_DEVICES, GOOD)
    else:
        ask(served, INVENTORY, DEVICES, MACHINE.conditions)
    done = ctl("doctor")
    expected = (GOLDEN / page).read_text().replace("@VERSION@", __version__)
    assert (done.exit_code, done.stderr, done.stdout) == (code, "", expected)


def test_a_report_as_json_is_whole(ctl: Invoke, served: Served) -> None:
    ask(served, INVENTORY, DEVICES, MACHINE.conditions)
    done = ctl("doctor", "-o", "json")
    report = json.loads(done.stdout)
    assert done.exit_code == Exit.ERRORS_FOUND
    assert (report["agentctl"], report["agentd"]) == (__version__, __version__)
    assert report["node"]["inventory"]["hostname"] == "node1"
    assert {"check", "level", "message", "remedy"} == set(report["findings"][0])
    assert report["findings"][0]["check"] == "agentd"
    assert "FINDING_LEVEL_ERROR" in {finding["level"] for finding in report["findings"]}


@pytest.mark.parametrize(
    ("level", "code"),
    [
        (FindingLevel.OK, Exit.OK),
        (FindingLevel.NOTE, Exit.OK),
        (FindingLevel.UNKNOWN, Exit.OK),
        (FindingLevel.WARNING, Exit.OK),
        (FindingLevel.ERROR, Exit.ERRORS_FOUND),
    ],
)
def test_only_an_error_changes_the_exit_code(ctl: Invoke, served: Served, level: FindingLevel, code: Exit) -> None:
    async def doctor() -> tuple[Finding, ...]:
        return (Finding("some-check", level, "what was found", "what to do"),)

    served.node.doctor = doctor  # type: ignore[method-assign]
    done = ctl("doctor")
    assert done.exit_code == code
    assert "  some-check   what was found\n               -> what to do\n" in done.stdout


def test_a_daemon_of_another_version_is_a_finding(ctl: Invoke, served: Served) -> None:
    served.be(replace(NODE, version="99.1.0"))
    assert "is newer than this agentctl" in ctl("doctor").stdout.partition("WARNINGS")[2]


def test_without_a_daemon_agentctl_looks_itself_and_says_so_first(invoke: Invoke) -> None:
    done = invoke("--socket", "/nonexistent/control.sock", "doctor")
    assert done.exit_code == Exit.ERRORS_FOUND
    assert done.stdout.startswith("agentd was not reachable: agentctl looked itself, with your rights\n\n")
    errors = done.stdout.partition("ERRORS\n")[2].partition("\n\n")[0]
    assert re.match(r"  agentd +no agentd is running\n", errors)
    assert "/nonexistent/control.sock: there is no such socket" in errors
    assert "-> start the daemon with `agentd`" in errors
    for check in ("disk-space", "open-files", "cpu-flags", "shared-memory"):
        assert f"  {check} " in done.stdout


def test_without_a_daemon_the_report_as_json_has_the_same_form(invoke: Invoke) -> None:
    report = json.loads(invoke("--socket", "/nonexistent", "doctor", "-o", "json").stdout)
    assert report["agentd"] is None
    assert report["node"]["host"] == socket.gethostname()
    assert report["node"]["memory_total_bytes"] > 0
    assert {disk["purpose"] for disk in report["node"]["inventory"]["disks"]} == {"state", "cache", "logs"}
    assert report["findings"][0]["check"] == "agentd"


def test_without_a_daemon_devices_are_looked_at_through_the_driver(agentctl: Run, tmp_path: Path) -> None:
    double = NvmlDouble(tmp_path)
    first, _ = double.gpus(2)
    double.take(0, pid=os.getpid(), memory=20 << 30)
    done = agentctl("--socket", "/nonexistent", "doctor", "-o", "json", environ=double.environment)
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (Exit.ERRORS_FOUND, "")
    devices = report["node"]["devices"]
    assert [device["condition"] for device in devices] == ["DEVICE_CONDITION_HEALTHY"] * 2
    assert (devices[0]["id"], devices[0]["processes"][0]["pid"]) == (first, os.getpid())
    told = {finding["check"]: finding["message"] for finding in report["findings"]}
    assert "580.95.05" in told["nvidia-driver"]
    assert f"pid {os.getpid()}" in told["device-tenants"]


def test_a_configuration_that_agentd_would_refuse_is_an_error(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "llm-node-agent").mkdir()
    (tmp_path / "llm-node-agent/agentd.yaml").write_text("policy:\n  max_deployments: many\n")
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "AGENTD_POLICY__MAX_DEPLOYMENTS": "many"}
    done = invoke("--socket", "/nonexistent", "doctor", "-o", "json", environ=environ)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "policy.max_deployments: must be" in findings["configuration"]["message"]
    assert findings["configuration"]["remedy"].startswith("agentctl config check")
    assert "disk-space" in findings


def test_a_daemon_that_fails_in_the_middle_is_no_reason_to_fail(ctl: Invoke, served: Served) -> None:
    async def doctor() -> tuple[Finding, ...]:
        raise Unavailable("the agent is stopping")

    served.node.doctor = doctor  # type: ignore[method-assign]
    done = ctl("doctor")
    assert done.exit_code == Exit.ERRORS_FOUND
    assert "the agent is stopping" in done.stdout


def test_the_report_holds_no_environment_and_no_arguments(invoke: Invoke, ctl: Invoke, served: Served) -> None:
    secret = "hf_secret_token"
    assert secret not in invoke("--socket", "/nonexistent", "doctor", "-o", "json", environ={"HF_TOKEN": secret}).stdout
    assert BUSY.processes
    process = replace(BUSY.processes[1], command=f"/usr/bin/python3 --token {secret}")
    ask(served, INVENTORY, [replace(BUSY, processes=(process,))], ())
    assert secret not in ctl("doctor").stdout
