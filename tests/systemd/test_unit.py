"""The real unit under a real systemd: what it promises in its comments, seen from outside."""

from __future__ import annotations

import json
import re

import pytest

from tests.systemd.conftest import CONFIG
from tests.systemd.machine import AGENTCTL, SECRET, Machine, Serving

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(300)]  # the first one may make a rootfs

GROUP = "/system.slice/agentd.service"

COMPLETE = "import sys; from tests.harness import complete; print(complete(sys.argv[1])['content'])"

#: What a user may do on a socket. Deleting what does not exist changes nothing, but asks for the right to.
TRY = """
import os, pwd, sys
from pathlib import Path
from agent.api.client import Client
from agent.errors import AgentError
user, socket = pwd.getpwnam(sys.argv[1]), Path(sys.argv[2])
os.initgroups(user.pw_name, user.pw_gid)
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
for call in (lambda c: c.get_status(), lambda c: c.delete_deployment("absent")):
    try:
        with Client(socket, timeout=10) as client:
            call(client)
        print("done")
    except AgentError as error:
        print(type(error).__name__, error.message.rpartition(": ")[2], sep=": ")
"""


def wait_replaced(machine: Machine, agent: int) -> None:
    machine.wait(
        lambda: machine.show("ActiveState") == "active" and machine.main_pid not in {0, agent}, "a new agent is ready"
    )


def test_systemd_knows_every_line_of_the_unit(machine: Machine):
    told = machine.run("sh", "-c", "systemd-analyze verify --man=no agentd.service 2>&1 || true")

    unknown = set(re.findall(r"Unknown key '(\w+)'", told))
    assert unknown == (set() if machine.version >= 254 else {"RestartSteps", "RestartMaxDelaySec", "DelegateSubgroup"})
    assert [line for line in told.splitlines() if "agentd.service" in line and "Unknown key" not in line] == []


def test_systemctl_start_returns_when_the_api_answers_and_engines_are_adopted(machine: Machine, serving: Serving):
    machine.systemctl("stop", "agentd")

    asked = machine.run("sh", "-c", f"systemctl start agentd && {AGENTCTL} status -o json")

    (deployment,) = json.loads(asked)["deployments"]
    assert (deployment["phase"], deployment["instance"]["pid"]) == ("PHASE_READY", serving.pid)


def test_systemctl_status_says_in_one_line_how_the_deployments_are(machine: Machine, serving: Serving):
    machine.systemctl("restart", "agentd")

    shown = machine.systemctl("status", "--no-pager", "agentd")

    assert 'Status: "1 of 1 deployments ready"' in shown
    assert "Active: active (running)" in shown


def test_systemd_makes_the_directories_with_the_modes_that_the_unit_names(machine: Machine):
    folders = [f"/{place}/llm-node-agent" for place in ("var/lib", "var/cache", "var/log", "run")]

    modes = machine.run("stat", "--format=%a %U:%G", *folders).splitlines()

    assert modes == ["700 root:root", "755 root:root", "750 root:root", "755 root:root"]


def test_the_runtime_directory_is_the_same_one_after_a_restart(machine: Machine, serving: Serving):
    """A container that has it mounted goes on to see the sockets."""
    inode = machine.run("stat", "--format=%i", "/run/llm-node-agent")

    machine.systemctl("restart", "agentd")

    assert machine.run("stat", "--format=%i", "/run/llm-node-agent") == inode


def test_the_sockets_group_and_mode_decide_who_may_change_and_who_may_look(machine: Machine, serving: Serving):
    users, sockets = ("root", "operator", "visitor"), ("control", "readonly")

    may = {
        (user, socket): machine.python(TRY, user, f"/run/llm-node-agent/{socket}.sock").splitlines()
        for user in users
        for socket in sockets
    }

    allowed, refused = ["done", "NotFound: no deployment 'absent'"], ["Unavailable: Permission denied"] * 2
    assert [may[user, "control"] for user in users] == [allowed, allowed, refused]
    assert {(may[user, "readonly"][0], may[user, "readonly"][1][:8]) for user in users} == {("done", "ReadOnly")}


def test_a_deployment_is_served(machine: Machine, serving: Serving):
    assert re.fullmatch("[a-z ]+", machine.python(COMPLETE, serving.endpoint))


def test_kill_minus_nine_ends_the_agent_only_and_systemd_brings_it_back(machine: Machine, serving: Serving):
    agent, restarts = machine.main_pid, int(machine.show("NRestarts"))

    with machine.traffic(serving.endpoint):
        machine.kill("KILL", agent)
        wait_replaced(machine, agent)

    assert int(machine.show("NRestarts")) == restarts + 1
    assert machine.serving() == serving
    assert machine.ctl("events", "m")["events"][-1]["reason"] == "Adopted"


def test_engines_serve_on_while_the_agent_is_restarted_and_stopped(machine: Machine, serving: Serving):
    cursor = machine.cursor()

    with machine.traffic(serving.endpoint):
        machine.systemctl("restart", "agentd")
        restarted = machine.serving()
        machine.systemctl("stop", "agentd")
        stopped = machine.show("ActiveState"), machine.show("Result"), machine.started(serving.pid)
        machine.systemctl("start", "agentd")

    assert stopped == ("inactive", "success", serving.started)
    assert restarted == machine.serving() == serving
    told = machine.messages(cursor)
    assert [line for line in told if re.search("[Kk]illing|SIGKILL|timed out|[Ff]ailed", line)] == []
    assert sum("Deactivated successfully" in line for line in told) == 2


def test_a_hung_agent_is_replaced_by_the_watchdog_and_its_engines_are_adopted(machine: Machine, serving: Serving):
    drop_in = "/etc/systemd/system/agentd.service.d/short.conf"
    machine.write(drop_in, "[Service]\nWatchdogSec=2\n")
    machine.systemctl("daemon-reload")
    try:
        machine.systemctl("restart", "agentd")
        agent, restarts, cursor = machine.main_pid, int(machine.show("NRestarts")), machine.cursor()
        fed = {machine.show("WatchdogTimestampMonotonic")}
        machine.wait(
            lambda: fed.add(machine.show("WatchdogTimestampMonotonic")) or len(fed) > 3, "fed for longer than its limit"
        )
        assert machine.main_pid == agent

        with machine.traffic(serving.endpoint):
            machine.kill("STOP", agent)
            wait_replaced(machine, agent)

        assert int(machine.show("NRestarts")) == restarts + 1
        assert any("Watchdog timeout" in line for line in machine.messages(cursor))
        assert machine.serving() == serving
    finally:
        machine.run("rm", drop_in)
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", "agentd")


def test_a_broken_configuration_is_told_and_once_mended_the_agent_comes_back_unaided(
    machine: Machine, serving: Serving
):
    cursor = machine.cursor()
    with machine.traffic(serving.endpoint):
        machine.write("/etc/llm-node-agent/agentd.yaml", CONFIG.replace("operators", "nobody-made-it"))
        try:
            machine.systemctl("restart", "agentd", check=False)
            assert machine.show("ActiveState") in {"activating", "failed"}
        finally:
            machine.write("/etc/llm-node-agent/agentd.yaml", CONFIG)
        machine.wait(lambda: machine.show("ActiveState") == "active", "back")

    assert any("api.control.group" in line for line in machine.messages(cursor))
    assert machine.serving() == serving


@pytest.mark.parametrize("how", ["clean shutdown", "power cut"])
def test_after_a_reboot_the_agent_comes_up_and_launches_its_deployments_again(machine: Machine, serving: Serving, how):
    boot = machine.read("/proc/sys/kernel/random/boot_id")

    machine.reboot(cleanly=how == "clean shutdown")
    machine.wait(lambda: machine.show("ActiveState") == "active", "started by its enablement")
    again = machine.serving()

    assert machine.read("/proc/sys/kernel/random/boot_id") != boot
    assert again.instance != serving.instance
    assert again.restarts == serving.restarts  # the engine did nothing wrong
    assert re.fullmatch("[a-z ]+", machine.python(COMPLETE, again.endpoint))
    assert "Rebooted" in [event["reason"] for event in machine.ctl("events", "m")["events"]]


def test_engines_live_below_the_unit_where_systemd_leaves_room_for_them(machine: Machine, serving: Serving):
    agent, engine = (machine.read(f"/proc/{pid}/cgroup").splitlines()[-1] for pid in (machine.main_pid, serving.pid))

    if machine.version >= 254:
        assert agent == f"0::{GROUP}/agent"
        assert engine == f"0::{GROUP}/engines/{serving.instance}"
    else:  # no DelegateSubgroup=: the agent makes no group there, and engines stay beside it
        assert agent == engine == f"0::{GROUP}"


def test_a_limit_is_called_enforced_only_where_the_kernel_has_it(machine: Machine, serving: Serving):
    folder = f"/sys/fs/cgroup{GROUP}/engines/{serving.instance}"
    sentences = machine.ctl("get", "m")["instance"]["enforcement"]

    told = {re.match(r"(\w+) limit", sentence)[1]: "not enforced" not in sentence for sentence in sentences}
    files = {"memory": ("memory.max", str(2**30)), "process": ("pids.max", "101")}  # the shim is one more
    real = {name: machine.run("cat", f"{folder}/{file}", check=False) == value for name, (file, value) in files.items()}

    assert told == real


def test_an_engine_that_runs_out_of_memory_does_not_stop_the_unit(machine: Machine):
    assert machine.show("OOMPolicy") == "continue"


def test_engines_are_not_counted_against_a_limit_of_the_units_processes(machine: Machine):
    assert machine.show("TasksMax") == "infinity"


def test_the_journal_has_the_agents_structured_log_and_no_secret(machine: Machine, serving: Serving):
    entries = machine.journal("_COMM=agentd")
    events = [json.loads(entry["MESSAGE"]) for entry in entries if str(entry["MESSAGE"]).startswith("{")]

    assert {"ready", "transition"} <= {event["event"] for event in events}
    assert all({"event", "level", "timestamp"} <= event.keys() for event in events)
    # The engine has the secret; nobody else was told, and nothing that a person may look at shows it.
    assert f"ENGINE_TOKEN={SECRET}" in machine.read(f"/proc/{serving.pid}/environ").split("\0")
    shown = machine.run("journalctl", "--output=export", "--all"), machine.run(AGENTCTL, "describe", "m", "-o", "json")
    assert [text for text in (*shown, machine.systemctl("status", "--full", "agentd")) if SECRET in text] == []
    assert machine.run("grep", "--recursive", "--files-with-matches", SECRET, "/var", "/run", check=False) == ""


def test_nothing_is_left_in_the_unit_of_a_deployment_that_was_deleted(machine: Machine, serving: Serving, tiny_model):
    machine.apply("brief", tiny_model)
    brief = machine.serving("brief")

    machine.run(AGENTCTL, "delete", "brief", "--wait")

    groups = machine.run("find", f"/sys/fs/cgroup{GROUP}", "-name", "cgroup.procs").splitlines()
    assert [group for group in groups if brief.instance in group] == []
    members = machine.run("cat", *groups).split()
    assert str(brief.pid) not in members
    assert str(serving.pid) in members
