"""From a spec to a served model and back, on the real daemon and the real engine."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import urllib.error
from contextlib import closing
from typing import Any

import pytest

from agent.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound
from agent.store.rows import checksum
from tests.harness import PHASE, Daemon, complete, gone, wait_true


def test_a_spec_becomes_a_served_model_and_is_deleted_without_a_trace(node: Daemon) -> None:
    node.start().apply()
    ready = node.wait()
    assert complete(ready.endpoint)["content"]
    assert ready.granted.max_model_len == 256
    assert ready.granted.max_num_seqs == 1
    assert ready.instance.pid in {process.pid for process in node.servers()}
    assert {verdict.kind: verdict.verdict for verdict in ready.instance.probes}["startup"] == "pass"
    with node.client() as client:
        client.delete_deployment("m")
    wait_true(lambda: not node.engines(), what="no process left")
    with node.client() as client, pytest.raises(NotFound):
        wait_true(lambda: client.get_deployment("m") is None)
    assert not list((node.root / "state" / "instances").iterdir())
    with pytest.raises(OSError):
        complete(ready.endpoint)


def test_apply_is_idempotent_by_name_and_by_request_id(node: Daemon) -> None:
    node.start()
    with node.client() as client:
        first = client.apply_deployment(node.spec(), request_id="one")
        again = client.apply_deployment(node.spec(), request_id="one")
        assert (first.outcome, again.outcome) == (first.OUTCOME_CREATED, first.OUTCOME_CREATED)
        assert client.apply_deployment(node.spec(), request_id="two").outcome == first.OUTCOME_UNCHANGED
        with pytest.raises(Conflict, match="used for another request"):
            client.apply_deployment(node.spec(drain_seconds=1), request_id="one")
        assert client.get_deployment("m").generation == 1


def test_a_spec_that_an_older_release_stored_with_fewer_fields_is_still_the_same(node: Daemon) -> None:
    node.start().apply()
    before = node.wait()
    node.stop()
    with closing(sqlite3.connect(node.root / "state" / "agent.db", isolation_level=None)) as database:
        (row,) = database.execute("SELECT * FROM deployment").fetchall()
        columns = [column for _, column, *_ in database.execute("PRAGMA table_info(deployment)")]
        values = dict(zip(columns[1:], row[1:], strict=True))
        spec = json.loads(values["spec_json"])
        del spec["image"]
        values["spec_json"] = json.dumps(spec)
        put = "UPDATE deployment SET spec_json = ?, sum = ?"
        database.execute(put, (values["spec_json"], checksum(tuple(values.values()))))
    node.start()
    with node.client() as client:
        answer = client.apply_deployment(node.spec())
        assert answer.outcome == answer.OUTCOME_UNCHANGED
    assert node.wait().instance.pid == before.instance.pid


def test_a_change_with_an_old_etag_is_refused_and_changes_nothing(node: Daemon) -> None:
    node.start()
    old = node.apply()
    new = node.apply(drain_seconds=1)
    assert new.generation == 2
    with node.client() as client:
        for change in (client.stop_deployment, client.restart_deployment, client.delete_deployment):
            with pytest.raises(Conflict):
                change("m", etag=old.etag)
        assert client.get_deployment("m").etag == new.etag
        client.stop_deployment("m", etag=new.etag)


def test_bad_specs_name_the_field_and_change_nothing(node: Daemon) -> None:
    node.start()
    bad = {
        "limits.max_num_seqs": node.spec(limits={"max_num_seqs": 0}),
        "engine": node.spec(engine="lama.cpp"),
        "extra_args[0]": node.spec(extra_args=["--port=1"]),
        "port": node.spec(port=80),
        "model": node.spec(model="hf:no-owner"),
        "nonsense": node.spec(nonsense=1),
    }
    with node.client() as client:
        for field, spec in bad.items():
            with pytest.raises(InvalidArgument) as error:
                client.apply_deployment(spec)
            assert field in {violation.field for violation in error.value.violations}
        assert client.list_deployments() == []


def test_a_new_generation_replaces_the_engine_and_keeps_the_port(node: Daemon) -> None:
    node.start().apply()
    old = node.wait()
    node.apply(limits={"max_num_seqs": 2, "max_model_len": 512})
    new = node.wait_until(lambda d: d.observed_generation == 2 and PHASE[d.phase] == "ready")
    assert (new.granted.max_num_seqs, new.granted.max_model_len) == (2, 512)
    assert new.endpoint == old.endpoint
    assert new.restarts == 0
    assert len(node.servers()) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "file:/no/such.gguf"}, "/no/such.gguf"),
        ({"model": f"file:{__file__}"}, "is not a GGUF file"),
        ({"limits": {"memory_bytes": "1MiB"}}, "limits.memory_bytes allows"),
    ],
    ids=["missing", "no model", "too small"],
)
def test_what_serves_is_not_ended_for_what_cannot_be_served(node: Daemon, fields: dict[str, Any], said: str) -> None:
    node.start().apply()
    before = node.wait()
    spec = node.spec(**fields)
    with node.client() as client:
        for validate_only in (True, False):
            with pytest.raises(FailedPrecondition, match=said) as refused:
                client.apply_deployment(spec, validate_only=validate_only)
            assert "agentctl stop m" in refused.value.hint
    after = node.get()
    assert (after.phase, after.instance.pid, after.generation) == (before.phase, before.instance.pid, before.generation)

    with node.client() as client:
        client.stop_deployment("m")
        node.wait(phase="stopped")
        client.apply_deployment(spec)
        client.start_deployment("m")
    assert node.wait(phase="failed").diagnosis.code


def test_stop_start_restart(node: Daemon) -> None:
    node.start().apply()
    first = node.wait()
    with node.client() as client:
        client.stop_deployment("m")
        node.wait(phase="stopped")
        assert node.engines() == []
        client.start_deployment("m")
        second = node.wait()
        client.restart_deployment("m")
        third = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt == 3)
    assert [first.instance.attempt, second.instance.attempt, third.instance.attempt] == [1, 2, 3]
    assert third.restarts == 0


def test_requests_in_flight_are_drained_before_the_stop(node: Daemon) -> None:
    import threading

    node.start().apply(limits={"max_num_seqs": 1, "max_model_len": 2048})
    endpoint = node.wait().endpoint
    answers: list[int] = []

    def ask() -> None:
        import json
        import urllib.request

        body = {"prompt": "hello", "n_predict": 600, "ignore_eos": True, "grammar": "root ::= [a-z ]+"}
        with urllib.request.urlopen(urllib.request.Request(
            endpoint + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=30
        ) as reply:  # fmt: skip
            answers.append(json.load(reply)["tokens_predicted"])

    client_thread = threading.Thread(target=ask)
    client_thread.start()

    def busy() -> bool:
        import urllib.request

        with urllib.request.urlopen(endpoint + "/metrics", timeout=30) as reply:
            return "llamacpp:requests_processing 1" in reply.read().decode()

    wait_true(busy)
    with node.client() as client:
        client.stop_deployment("m")
    node.wait(phase="stopped")
    client_thread.join(40)
    assert answers
    assert "DrainDeadline" not in node.reasons()


def test_the_agents_stop_and_death_leave_engines_alone(node: Daemon) -> None:
    node.start().apply()
    before = node.wait()
    for end in (node.stop, node.kill):
        end()
        assert complete(before.endpoint)["content"]
        node.start()
        after = node.wait()
        assert (after.instance.pid, after.restarts) == (before.instance.pid, 0)
    assert node.reasons().count("Adopted") == 2
    assert node.reasons().count("Ready") == 1
    assert node.log.read_text().count("engines serve on") == 1


def test_readiness_does_not_flap_over_the_agents_restart(node: Daemon) -> None:
    node.start().apply()
    node.wait()
    node.kill()
    node.start()
    with node.client() as client:
        assert PHASE[client.get_deployment("m").phase] == "ready"
    assert "NotReady" not in node.reasons()


def test_an_engine_that_died_while_the_agent_was_away_is_accounted_for_with_its_status(node: Daemon) -> None:
    node.start().apply()
    first = node.wait()
    node.kill()
    os.kill(first.instance.pid, signal.SIGKILL)
    wait_true(lambda: gone(first.instance.pid))
    node.start()
    second = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt == 2)
    assert second.restarts == 1
    assert (second.previous.exit.signal, second.previous.diagnosis.code) == (9, "killed")


def test_a_second_daemon_on_the_same_state_is_refused(node: Daemon) -> None:
    node.start()
    first = node.process
    try:
        with pytest.raises(AssertionError, match=r"another|already|uses"):
            node.start(wait=False).wait_up()
            assert node.process is not None
            node.process.wait(40)
            node.wait_up()
        assert node.process is not None
        assert node.process.wait(40) == 1
    finally:
        node.process = first
    with node.client() as client:
        client.check_health()


def test_a_deployment_that_is_being_deleted_takes_no_new_spec(node: Daemon) -> None:
    node.start().apply(environment={"MODE": "ignore-term"}, stop_seconds=5)
    node.wait()
    with node.client() as client:
        client.delete_deployment("m")
        with pytest.raises(FailedPrecondition, match="being deleted"):
            client.apply_deployment(node.spec())
        client.delete_deployment("m")
    wait_true(lambda: not node.engines())


def test_logs_are_streamed_over_restarts_and_kept_per_attempt(node: Daemon) -> None:
    node.start().apply()
    first = node.wait()
    with node.client() as client:
        text = b"".join(chunk.data for chunk in client.stream_logs("m"))
        assert b"loaded" in text or b"listening" in text
        stream = client.stream_logs("m", follow=True)
        assert next(stream).instance == first.instance.name.rpartition("/")[2]
        client.restart_deployment("m")
        seen = {first.instance.name.rpartition("/")[2]}
        for chunk in stream:
            seen.add(chunk.instance)
            if len(seen) == 2:
                break
        node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt == 2)
        previous = b"".join(chunk.data for chunk in client.stream_logs("m", previous=True))
        assert previous.startswith(text[:200])
        assert len(client.list_instances("m")) == 2


def test_a_watch_resumes_where_it_was_cut(node: Daemon) -> None:
    node.start().apply()
    node.wait()
    token, seen = "", []
    with node.client() as client:
        for change in client.watch("m"):
            token = change.resume_token
            if change.HasField("synced"):
                break
        client.stop_deployment("m")
        node.wait(phase="stopped")
    node.kill()
    node.start()
    with node.client() as client:
        for change in client.watch("m", resume_token=token):
            if change.HasField("event"):
                seen.append(change.event.reason)
            if change.HasField("synced"):
                assert not change.synced.events_lost
                break
    assert seen[:2] == ["StopRequested", "Draining"]
    assert "Stopped" in seen


def test_secrets_reach_the_engine_and_nothing_else(node: Daemon) -> None:
    canary = "canary-3f9a1c77"
    secret = node.root / "key"
    secret.write_text(canary + "\n")
    node.start().apply(secrets={"LLAMA_API_KEY": {"file": str(secret)}})
    ready = node.wait()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        complete(ready.endpoint)
    server = node.servers()[0]
    assert server.environ()["LLAMA_API_KEY"] == canary
    assert not any(canary in argument for process in node.engines() for argument in process.cmdline())
    with node.client() as client:
        shown = [str(client.get_status()), str(client.list_events("m")), str(client.list_instances("m"))]
        shown += [chunk.data.decode() for chunk in client.stream_logs("m")]
    assert canary not in "".join(shown)
    node.stop()
    secret.unlink()
    for path in node.root.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
