"""The commands that change something, and their waits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.ctl.exits import Exit
from agent.errors import FailedPrecondition, FieldViolation, InvalidArgument, StoreError
from agent.status import Desired, Phase
from tests.ctl.conftest import Invoke, Served
from tests.ctl.deployments import DIAGNOSIS, LOADING, READY, SPEC


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    file = tmp_path / "specs.yaml"
    file.write_text("name: a\nmodel: /a.gguf\n---\nname: b\nmodel: /b.gguf\n")
    return file


def test_apply_creates_then_changes_nothing_then_replaces(ctl: Invoke, served: Served, specs: Path) -> None:
    assert ctl("apply", "-f", specs).stdout == "deployment a created\ndeployment b created\n"
    assert ctl("apply", "-f", specs).stdout == "deployment a unchanged\ndeployment b unchanged\n"
    specs.write_text(specs.read_text().replace("/b.gguf", "/c.gguf"))
    assert ctl("apply", "-f", specs).stdout == "deployment a unchanged\ndeployment b replaced\n"
    assert [spec["name"] for spec in served.node.applied_specs[:2]] == ["a", "b"]


def test_apply_reads_standard_input(ctl: Invoke, served: Served, specs: Path) -> None:
    assert ctl("apply", "-f", "-", input=specs.read_text()).exit_code == Exit.OK
    assert len(served.node.applied_specs) == 2


def test_a_dry_run_changes_nothing(ctl: Invoke, served: Served, specs: Path) -> None:
    done = ctl("apply", "-f", specs, "--dry-run", "--wait")
    assert done.stdout == "deployment a created (dry run)\ndeployment b created (dry run)\n"
    assert served.node.applied_specs == []


def test_all_documents_are_checked_before_the_first_is_applied(ctl: Invoke, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "specs.yaml"
    file.write_text("name: a\nmodel: /a.gguf\n---\nmodel: /nameless.gguf\n")
    done = ctl("apply", "-f", file)
    assert done.exit_code == Exit.USAGE
    assert done.stderr == (
        f"error: {file}, document 2 (no name): the spec is not valid; nothing was applied\n  name: must be given\n"
    )
    assert served.node.applied_specs == []


def test_apply_waits_until_all_are_ready(ctl: Invoke, served: Served, specs: Path) -> None:
    done = ctl("apply", "-f", specs, "--wait", "-o", "json")
    results = json.loads(done.stdout)["results"]
    assert [(one["outcome"], one["deployment"]["phase"]) for one in results] == [("OUTCOME_CREATED", "PHASE_READY")] * 2
    assert len(served.node.applied_specs) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgument("no", violations=(FieldViolation("model", "must be absolute"),)), Exit.USAGE),
        (FailedPrecondition("does not fit"), Exit.PRECONDITION),
        (StoreError("the disk is full"), Exit.PRECONDITION),
        (RuntimeError("a bug"), Exit.UNEXPECTED),
    ],
)
def test_an_error_of_the_daemon_becomes_its_exit_code(
    ctl: Invoke, served: Served, specs: Path, error: Exception, code: Exit
) -> None:
    served.node.failure = error
    done = ctl("apply", "-f", specs)
    assert done.exit_code == code
    assert done.stderr.startswith("error: ")


def test_serve_applies_waits_and_prints_how_to_call_it(ctl: Invoke, served: Served) -> None:
    served.go_through(replace(LOADING, name="chat"), READY)
    done = ctl("serve", "/models/SmolLM2.gguf", "--name", "chat", "--max-num-seqs", "4")
    assert served.node.applied_specs == [
        {"name": "chat", "model": "file:/models/SmolLM2.gguf", "limits": {"max_num_seqs": 4}}
    ]
    assert done.exit_code == Exit.OK
    assert done.stderr.startswith("deployment chat created\n")


def test_serve_prints_a_call_for_the_task(ctl: Invoke, served: Served) -> None:
    served.put(replace(READY, spec_json=json.dumps(SPEC)))
    done = ctl("serve", SPEC["model"], "--name", "chat", "--task", "chat", "--engine", "auto")
    assert done.stderr.startswith("deployment chat unchanged\n")
    assert done.stdout == (
        "chat is ready at http://127.0.0.1:8100 (llama.cpp, 4 x 2048)\n\n"
        "  curl http://127.0.0.1:8100/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}'\n"""
    )


def test_serve_does_not_displace_another_model_by_a_made_name(ctl: Invoke, served: Served) -> None:
    served.put(replace(READY, name="smollm2"))
    done = ctl("serve", "/other/SmolLM2.gguf")
    assert done.exit_code == Exit.CONFLICT
    assert "hint: give this one a --name of its own" in done.stderr
    assert served.node.applied_specs == []


def test_serve_ends_at_once_with_the_diagnosis_of_a_failure(ctl: Invoke, served: Served) -> None:
    failed = replace(LOADING, name="chat", phase=Phase.FAILED, diagnosis=DIAGNOSIS, since=LOADING.since + 1)
    served.put(replace(READY, generation=1, observed_generation=1))
    served.go_through(failed)
    done = ctl("wait", "chat", "--for", "failed")
    assert done.exit_code == Exit.OK
    done = ctl("wait", "chat", "--for", "ready")
    assert done.exit_code == Exit.DEPLOYMENT_FAILED
    assert "error: deployment chat failed: does_not_fit: needs 24.0 GiB of host memory" in done.stderr
    assert "  evidence: weights 22.0 GiB\n  evidence: KV cache 2.0 GiB\nhint: lower limits.max_model_len" in done.stderr


def test_a_failure_as_json_has_the_diagnosis(ctl: Invoke, served: Served) -> None:
    served.put(replace(LOADING, phase=Phase.FAILED, diagnosis=DIAGNOSIS))
    done = ctl("wait", "embed", "-o", "json")
    error = json.loads(done.stderr)["error"]
    assert (done.stdout, error["exit"], error["diagnosis"]) == ("", 9, "does_not_fit")


def test_a_wait_that_is_too_short_has_its_own_exit_code(ctl: Invoke, served: Served) -> None:
    served.put(LOADING)
    done = ctl("wait", "embed", "--timeout", "200ms")
    assert done.exit_code == Exit.TIMEOUT
    assert "hint: it goes on without you; agentctl wait embed --for ready waits again" in done.stderr


def test_progress_is_a_line_for_each_change_where_there_is_no_terminal(ctl: Invoke, served: Served) -> None:
    served.put(LOADING)
    served.go_through(LOADING, LOADING, replace(LOADING, phase=Phase.READY, progress=None, message="it answers"))
    assert ctl("wait", "embed").stderr.splitlines() == [
        "embed LOADING (loading 45% of 100.0 MiB): the process runs",
        "embed READY: it answers",
    ]


def test_restart_waits_for_a_new_instance_and_not_for_the_old_one(ctl: Invoke, served: Served) -> None:
    assert READY.instance
    served.put(READY)
    new = replace(READY, since=READY.since + 60, instance=replace(READY.instance, id="chat-3-2"))
    served.go_through(READY, replace(new, phase=Phase.LOADING), new)
    done = ctl("restart", "chat", "--wait", "-o", "json")
    assert json.loads(done.stdout)["deployments"][0]["instance"]["id"] == "chat-3-2"


def test_stop_and_start_and_delete_wait_for_their_end(ctl: Invoke, served: Served) -> None:
    served.put(READY)
    assert ctl("stop", "chat", "--wait").stdout == "deployment chat stops\ndeployment chat is stopped\n"
    assert served.node.get("chat").desired is Desired.STOP
    assert ctl("start", "chat", "--wait").stdout == "deployment chat starts\ndeployment chat is ready\n"
    assert ctl("delete", "chat", "--wait").stdout == "deployment chat is being deleted\ndeployment chat is deleted\n"
    assert ctl("get").stdout == ""


def test_one_unknown_name_of_several_changes_nothing(ctl: Invoke, served: Served) -> None:
    served.put(READY)
    assert ctl("delete", "chat", "unknown").exit_code == Exit.NOT_FOUND
    assert served.node.get("chat").desired is Desired.RUN
    assert ctl("delete", "chat", "unknown", "--ignore-missing").exit_code == Exit.OK


def test_a_name_given_twice_is_one(ctl: Invoke, served: Served) -> None:
    served.put(READY)
    assert ctl("delete", "chat", "chat").stdout == "deployment chat is being deleted\n"
