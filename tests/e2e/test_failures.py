"""Each way an engine can fail ends in the right phase with the right diagnosis, and the delays follow the curve."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.harness import PHASE, Daemon, complete, gone, wait_true

FAST_RESTART = {"initial_delay_seconds": 0.2, "max_delay_seconds": 1, "jitter": 0.0}


def test_sigkill_is_replaced_at_once(node: Daemon) -> None:
    node.start().apply()
    first = node.wait()
    os.kill(first.instance.pid, signal.SIGKILL)
    second = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt == 2)
    assert second.restarts == 1
    assert (second.previous.diagnosis.code, second.previous.exit.signal) == ("killed", 9)
    assert complete(second.endpoint)["content"]
    assert len(node.servers()) == 1
    assert "Restarting" in node.reasons()


def test_sigstop_is_found_by_the_liveness_probe_and_replaced(node: Daemon) -> None:
    quick = {"period_seconds": 0.5, "timeout_seconds": 0.4}
    node.start().apply(probes={"readiness": quick, "liveness": quick})
    first = node.wait()
    os.kill(first.instance.pid, signal.SIGSTOP)
    second = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt == 2)
    assert second.previous.diagnosis.code == "unresponsive"
    assert gone(first.instance.pid)
    # period x threshold + 1 s, from the events' own times: the stop came at most this long before.
    times = {event.reason: event.time.ToNanoseconds() / 1e9 for event in node.events("m")}
    assert times["Unresponsive"] - times["NotReady"] <= 0.5 * 4 + 1


def test_exit_1_at_start_backs_off_along_the_curve_and_ends_in_a_crash_loop(node: Daemon) -> None:
    node.start().apply(environment={"MODE": "exit1"}, restart=FAST_RESTART | {"max_failures": 4})
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == "crash_loop"
    assert "crashed" in failed.diagnosis.message
    assert "something broke" in failed.diagnosis.evidence
    starts = [i.start_time.ToNanoseconds() / 1e9 for i in reversed(node.client().list_instances("m"))]
    delays = [later - earlier for earlier, later in pairwise(starts)]
    assert len(delays) == 3
    for delay, expected in zip(delays, (0.2, 0.4, 0.8), strict=True):
        assert delay >= expected  # the curve is a lower bound; the upper one is the machine's


def test_exit_0_is_not_taken_for_success(node: Daemon) -> None:
    node.start().apply(environment={"MODE": "exit0"}, restart=FAST_RESTART | {"max_failures": 2})
    failed = node.wait(phase="failed")
    assert failed.instance.exit.code == 0
    assert failed.instance.diagnosis.code == "exited"


def test_never_ready_is_a_startup_timeout(node: Daemon) -> None:
    probes = {"startup": {"base_seconds": 1, "max_seconds": 2, "period_seconds": 0.1}}
    node.start().apply(environment={"MODE": "never"}, probes=probes, restart=FAST_RESTART | {"max_failures": 1})
    failed = node.wait(phase="failed")
    assert "startup_timeout" in failed.diagnosis.message
    assert node.engines() == []


def test_a_bad_flag_fails_at_once(node: Daemon) -> None:
    node.start().apply(environment={"MODE": "badflag"})
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == "bad_flag"
    assert "--no-such-flag" in failed.diagnosis.evidence
    assert failed.instance.attempt == 1


def test_out_of_memory_by_cgroup_is_told_from_a_kill(node: Daemon) -> None:
    node.start().apply(environment={"MODE": "oom"}, limits={"memory_bytes": 96 * 2**20}, restart=FAST_RESTART)
    started = node.wait_until(lambda d: d.instance.attempt >= 1 and bool(d.instance.enforcement or d.previous.name))
    if not any("memory limit" in line and "not enforced" not in line for line in started.instance.enforcement):
        pytest.skip(f"no writable memory cgroup here: {list(started.instance.enforcement)}")
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == "does_not_fit"
    assert failed.previous.diagnosis.code == "host_oom"
    assert failed.previous.exit.oom_killed


def test_an_engine_that_ignores_term_is_killed_and_gone(node: Daemon) -> None:
    node.start().apply(environment={"MODE": "ignore-term"}, stop_seconds=0.5)
    node.wait()
    with node.client() as client:
        client.stop_deployment("m")
    node.wait(phase="stopped")
    assert node.engines() == []


def test_a_port_taken_by_a_stranger_fails_at_once_and_names_it(node: Daemon) -> None:
    node.start()
    with node.client() as client:
        port = int(client.get_config().config["policy"]["ports"]["first"])
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        node.apply("fixed", port=port)
        failed = node.wait("fixed", phase="failed")
        node.apply("auto")
        assert node.wait("auto").endpoint != f"http://127.0.0.1:{port}"
    assert failed.diagnosis.code == "port_taken"
    assert str(port) in failed.diagnosis.message


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing", "empty"])
def test_a_damaged_model_fails_at_once(node: Daemon, damage: str) -> None:
    model = node.root / "model.gguf"
    shutil.copy(node.model, model)
    _damage(model, damage)
    node.start().apply(model=f"file:{model}")
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == ("model_missing" if damage == "missing" else "model_corrupt")
    assert str(model) in failed.diagnosis.message + failed.diagnosis.evidence
    assert not failed.instance.name


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing"])
def test_a_model_that_is_damaged_under_a_running_engine_is_noticed_at_the_restart(node: Daemon, damage: str) -> None:
    model = node.root / "model.gguf"
    shutil.copy(node.model, model)
    node.start().apply(model=f"file:{model}")
    first = node.wait()
    replaced = node.root / "new.gguf"
    shutil.copy(node.model, replaced)
    _damage(replaced, damage)
    model.unlink()
    if damage != "missing":
        replaced.rename(model)
    os.kill(first.instance.pid, signal.SIGKILL)
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == ("model_missing" if damage == "missing" else "model_corrupt")
    # Put right, an operator's restart is enough.
    shutil.copy(node.model, model)
    with node.client() as client:
        client.restart_deployment("m")
    node.wait()


def _damage(model: Path, how: str) -> None:
    if how == "garbage":
        model.write_bytes(os.urandom(4096))
    elif how == "truncated":
        os.truncate(model, model.stat().st_size // 2)
    elif how == "empty":
        os.truncate(model, 0)
    elif how == "missing":
        model.unlink(missing_ok=True)


def test_what_does_not_fit_is_refused_with_the_numbers(node: Daemon) -> None:
    node.start().apply(limits={"max_num_seqs": 4096, "max_model_len": 2048, "memory_bytes": 64 * 2**20})
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == "does_not_fit"
    assert "GiB" in failed.diagnosis.message


def test_a_missing_secret_fails_at_once(node: Daemon) -> None:
    node.start().apply(secrets={"LLAMA_API_KEY": {"file": "/nonexistent/key"}})
    failed = node.wait(phase="failed")
    assert failed.diagnosis.code == "secret_missing"
    assert "/nonexistent/key" in failed.diagnosis.message


def test_one_deployments_crash_loop_leaves_others_alone(node: Daemon) -> None:
    node.start()
    node.apply("good")
    good = node.wait("good")
    node.apply("bad", environment={"MODE": "exit1"}, restart=FAST_RESTART)
    node.wait("bad", phase="failed")
    after = node.get("good")
    assert (after.instance.pid, PHASE[after.phase]) == (good.instance.pid, "ready")


def test_a_killed_shim_leaves_no_engine_behind(node: Daemon) -> None:
    """The shim is the engine's parent: whoever kills it has not killed the engine, but it is ended all the same."""
    node.start().apply()
    first = node.wait()
    shim = psutil.Process(first.instance.pid).parent()
    assert shim is not None
    shim.kill()
    second = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt == 2)
    assert gone(first.instance.pid)
    assert [process.pid for process in node.servers()] == [second.instance.pid]
    wait_true(lambda: len(node.engines()) == 2, what="one shim, one engine")
