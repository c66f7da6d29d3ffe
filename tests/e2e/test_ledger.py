"""From a real engine's start to the next plan: what was measured is stored, used, carried to other nodes, and lost
without harm."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api.structs import struct_to_dict
from agent.errors import InvalidArgument
from agent.store.rows import checksum
from agent.v1 import agent_pb2 as pb
from tests.gguf_factory import make_gguf
from tests.harness import Daemon, daemon, wait_true
from tests.nvml.double import NvmlDouble

MIB = 1024**2
WITHIN = 40.0
H100 = "NVIDIA H100 80GB HBM3"

#: Says of its memory what an engine on a GPU says, and then runs on the CPU.
ON_A_GPU = """#!/bin/sh
case "$1" in --version|--list-devices) exec {engine} "$@" ;; esac
echo "load_tensors:        CUDA0 model buffer size =    40.00 MiB"
echo "llama_kv_cache:      CUDA0 KV buffer size =     8.00 MiB"
echo "sched_reserve:      CUDA0 compute buffer size =    12.00 MiB"
exec {engine} "$@"
"""

#: Writes its log a second and a half late.
LAGGING = """#!/bin/sh
case "$1" in --version|--list-devices|--help) exec {engine} "$@" ;; esac
{engine} "$@" 2>&1 | (sleep 1.5; exec cat)
"""


@pytest.fixture
def other(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    (tmp_path / "other").mkdir()
    yield from daemon(tmp_path / "other", tiny_model, node_name="elsewhere")


def measurements(node: Daemon) -> list[pb.Measurement]:
    with node.client() as client:
        return client.list_measurements()


def measured(node: Daemon, count: int = 1, name: str = "m") -> list[pb.Measurement]:
    node.wait(name)
    wait_true(lambda: len(measurements(node)) >= count, WITHIN, f"{count} starts are measured")
    return measurements(node)


def plan(node: Daemon, **fields: Any) -> dict[str, Any]:
    with node.client() as client:
        return struct_to_dict(client.plan_deployment(node.spec(**fields)).plan)


def terms(plan: dict[str, Any], pool: int = 0) -> dict[str, dict[str, Any]]:
    return {term["name"]: term for term in plan["budgets"][pool]["terms"]}


def agentctl(node: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.ctl", *words, "--socket", str(node.control)]
    return subprocess.run(command, text=True, capture_output=True, timeout=30, check=False)


def test_a_start_is_measured_and_the_next_plan_says_measured(node: Daemon) -> None:
    node.start()
    before = plan(node)
    node.apply()

    (row,) = measured(node)
    assert (row.engine, row.max_num_seqs, row.max_model_len, row.imported) == ("llama.cpp", 1, 256, False)
    found = {term.term: term for term in row.terms}
    assert {"weights", "KV cache", "compute", "total"} <= found.keys()
    assert found["KV cache"].formula_bytes == terms(before)["KV cache"]["bytes"]
    assert abs(found["weights"].measured_bytes - found["weights"].formula_bytes) < 16 * 1024
    after = plan(node)
    assert terms(after)["weights"]["source"].startswith("measured on this node ")
    assert terms(after)["compute"]["formula"] == terms(before)["compute"]["bytes"]
    assert terms(after)["KV cache"]["bytes"] == terms(before)["KV cache"]["bytes"]
    assert terms(before)["weights"]["formula"] is None
    (reason,) = [reason for reason in after["reasons"] if reason["code"] == "measured"]
    assert reason["field"] == "budgets.host.terms"
    elsewhere = terms(plan(node, limits={"max_model_len": 512}))
    assert elsewhere["weights"]["formula"] is not None
    assert elsewhere["KV cache"]["formula"] is None
    table = agentctl(node, "ledger").stdout
    assert "tiny.gguf" in table
    assert "KV cache" in table


def test_a_log_that_lags_behind_the_engines_first_answer_is_waited_for(node: Daemon) -> None:
    engine = node.root / "engine"
    plain = engine.rename(node.root / "plain")
    engine.write_text(LAGGING.format(engine=plain))
    engine.chmod(0o755)

    node.start().apply()

    (row,) = measured(node)
    assert "weights" in {term.term for term in row.terms}


def test_an_estimate_that_is_unsure_becomes_sure_by_measurement(tmp_path: Path, node: Daemon) -> None:
    """The graph of this architecture was not measured by us: half of the formula is added."""
    model = make_gguf(tmp_path / "refact.gguf", architecture="refact", hidden=256, feed_forward=2048, vocab=4096)
    node.start()
    before = terms(plan(node, model=f"file:{model}"))["compute"]
    node.apply(model=f"file:{model}")
    measured(node)

    compute = terms(plan(node, model=f"file:{model}"))["compute"]
    assert compute["uncertainty"] < before["uncertainty"]
    assert compute["source"].startswith("measured")


def test_each_start_adds_to_the_ledger_over_restarts_of_the_agent(node: Daemon) -> None:
    node.start().apply()
    measured(node)
    with node.client() as client:
        client.restart_deployment("m")
    measured(node, 2)

    node.kill()
    node.start()

    rows = measured(node, 2)
    assert len({row.name for row in rows}) == 2
    assert len(rows) == 2  # an adopted engine did not start again
    assert "2 starts" in terms(plan(node))["weights"]["source"]


def test_what_one_node_measured_serves_another(node: Daemon, other: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    node.start().apply()
    (row,) = measured(node)
    other.start()
    assert agentctl(node, "ledger", "export", str(file)).returncode == 0

    done = agentctl(other, "ledger", "import", str(file))
    assert (done.stdout, done.stderr) == ("1 measurements imported\n", "")
    (taken,) = measurements(other)
    assert (taken.name, taken.imported, taken.terms) == (row.name, True, row.terms)
    assert f"measured on {row.host}, imported" in terms(plan(other))["weights"]["source"]
    assert "MeasurementsImported" in other.reasons("")
    # Its own is believed before.
    other.apply()
    measured(other, 2)
    assert terms(plan(other))["weights"]["source"].startswith("measured on this node")
    # Again, and back to where it came from: nothing is counted twice.
    assert "0 measurements imported, 1 known already" in agentctl(other, "ledger", "import", str(file)).stdout
    assert agentctl(other, "ledger", "export", str(file)).returncode == 0
    assert "1 measurements imported, 1 known already" in agentctl(node, "ledger", "import", str(file)).stdout
    assert sorted(row.imported for row in measurements(node)) == [False, True]


def test_garbage_is_refused_with_the_paths_of_its_fields_and_nothing_is_kept(node: Daemon, tmp_path: Path) -> None:
    node.start().apply()
    measured(node)
    file = tmp_path / "ledger.json"
    data = json.loads(agentctl(node, "ledger", "export").stdout)
    data["measurements"][0]["name"] = "measurements/another"
    data["measurements"].append(data["measurements"][0] | {"max_model_len": -1, "surprise": True})
    file.write_text(json.dumps(data))

    done = agentctl(node, "ledger", "import", str(file))
    assert done.returncode == 2
    assert "measurements[1].max_model_len: must be at least 1 (got -1)" in done.stderr
    assert "measurements[1].surprise: unknown key" in done.stderr
    with node.client() as client, pytest.raises(InvalidArgument):
        client.import_measurements({"measurements": "x"})
    assert len(measurements(node)) == 1


def test_a_damaged_measurement_is_set_aside_and_everything_else_goes_on(node: Daemon) -> None:
    node.start().apply()
    pid = node.wait().instance.pid
    measured(node)
    with node.client() as client:
        client.restart_deployment("m")
    measured(node, 2)
    pid = node.wait().instance.pid
    node.kill()
    (node.root / "state" / "agent.db.backup").unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(node.root / "state" / "agent.db")) as connection, connection:
        first, second = (id for (id,) in connection.execute("SELECT id FROM ledger ORDER BY at"))
        connection.execute("UPDATE ledger SET model = 'x' WHERE id = ?", (first,))  # a flipped bit
        # Whole as a row, but nothing that a measurement says.
        row = connection.execute("SELECT * FROM ledger WHERE id = ?", (second,)).fetchone()
        values = [*row[1:7], '{"engine": "llama.cpp"}', row[8]]
        connection.execute(
            "UPDATE ledger SET sum = ?, key_json = ? WHERE id = ?", (checksum(values), values[6], second)
        )

    node.start()

    assert node.wait().instance.pid == pid
    assert measurements(node) == []
    assert all(term["formula"] is None for term in plan(node)["budgets"][0]["terms"])
    wait_true(lambda: node.reasons("").count("RecordQuarantined") == 2, WITHIN, "both are told")
    with contextlib.closing(sqlite3.connect(node.root / "state" / "agent.db")) as connection:
        assert {key for (key,) in connection.execute("SELECT key FROM quarantine WHERE what = 'ledger'")} == {
            first,
            second,
        }
        assert connection.execute("SELECT count(*) FROM ledger").fetchone() == (0,)


# Devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> NvmlDouble:
    machine = NvmlDouble(tmp_path)
    machine.gpus(1, name=H100)
    return machine


def on_a_gpu(root: Path, model: Path) -> Iterator[Daemon]:
    engine = root / "on-a-gpu"
    engine.write_text(ON_A_GPU.format(engine=root / "engine"))
    engine.chmod(0o755)
    binary = {"engines": {"llama.cpp": {"binary": [str(engine)]}}}
    for node in daemon(root, model, daemon={"sample_seconds": 0.5}, **binary):
        node.claim_devices(H100)
        yield node


@pytest.fixture
def gpu_node(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    yield from on_a_gpu(tmp_path, tiny_model)


def started(node: Daemon, machine: NvmlDouble) -> None:
    node.start(environ=machine.environment)

    def sampled() -> bool:
        with node.client() as client:
            return any(each.condition == pb.DEVICE_CONDITION_HEALTHY for each in client.get_node().devices)

    wait_true(sampled, WITHIN, "the GPU was sampled")


def test_what_the_driver_sees_beyond_the_engines_buffers_is_the_context(
    gpu_node: Daemon, machine: NvmlDouble, tmp_path: Path
) -> None:
    started(gpu_node, machine)
    gate = tmp_path / "gate"
    gpu_node.apply(environment={"GATE": str(gate)})
    loading = gpu_node.wait_until(lambda d: d.instance.pid > 0, what="launched")
    machine.take(0, loading.instance.pid, 360 * MIB)
    gate.touch()

    (row,) = measured(gpu_node)
    found = {term.term: term for term in row.terms if term.pool == "0"}
    assert list(row.device_models) == [H100]
    assert found["weights"].measured_bytes == 40 * MIB
    assert (found["context"].measured_bytes, found["context"].source) == (300 * MIB, "driver")
    assert found["context"].formula_bytes == 512 * MIB
    assert found["total"].measured_bytes == 360 * MIB
    after = plan(gpu_node)
    assert after["devices"] == [machine.uuid(0)]
    assert terms(after, 1)["context"]["bytes"] == 300 * MIB
    assert f"budgets.{machine.uuid(0)}.terms" in {r["field"] for r in after["reasons"] if r["code"] == "measured"}


def test_a_start_that_fell_back_to_the_cpu_is_no_experience_of_the_gpu(
    tmp_path: Path, tiny_model: Path, machine: NvmlDouble
) -> None:
    for node in daemon(tmp_path, tiny_model, daemon={"sample_seconds": 0.5}):
        node.claim_devices(H100)
        started(node, machine)
        node.apply()
        assert node.wait().instance.pid > 0
        node.apply("cpu", devices="cpu", environment={"N": str(os.getpid())})
        (row,) = measured(node, 1, "cpu")  # only of this one, though the other was ready before
        assert row.accelerator == "cpu"
