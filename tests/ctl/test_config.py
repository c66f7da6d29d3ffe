"""`config`: without a daemon where none is needed."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from agent.ctl.exits import Exit
from tests.ctl.conftest import Invoke


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A user with a configuration of his own."""
    directory = tmp_path / "llm-node-agent"
    directory.mkdir()
    (directory / "agentd.yaml").write_text("policy:\n  ports: {first: 9000, last: 9010}\n")
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.usefixtures("served")
def test_the_configuration_is_the_daemons(ctl: Invoke) -> None:
    assert yaml.safe_load(ctl("config", "show").stdout) == {"node_name": "testhost"}
    assert ctl("config", "show", "--origin").stdout.splitlines()[1].split() == ["node_name", '"testhost"', "default"]
    assert json.loads(ctl("config", "show", "-o", "json").stdout) == {
        "config": {"node_name": "testhost"},
        "origins": [{"field": "node_name", "value": "testhost", "origin": "default"}],
    }


def test_the_local_configuration_tells_where_each_value_comes_from(invoke: Invoke, home: dict[str, str]) -> None:
    environ = home | {"AGENTD_ENGINES": "{llama.cpp: {binary: [/opt/llama-server]}}"}
    words = ["config", "show", "--local", "--scope", "user"]
    lines = [line.split(maxsplit=2) for line in invoke(*words, "--origin", environ=environ).stdout.splitlines()]
    rows = {field: (value, origin) for field, value, origin in lines}
    assert rows["policy.ports.first"] == ("9000", f"{home['XDG_CONFIG_HOME']}/llm-node-agent/agentd.yaml")
    assert rows["policy.bind"] == ('"127.0.0.1"', "built-in default")
    assert rows["engines.llama.cpp.binary"] == ('["/opt/llama-server"]', "environment variable AGENTD_ENGINES")
    assert yaml.safe_load(invoke(*words, environ=environ).stdout)["policy"]["ports"] == {"first": 9000, "last": 9010}


def test_the_configuration_is_checked_without_a_daemon(invoke: Invoke, home: dict[str, str]) -> None:
    words = ["config", "check", "--scope", "user"]
    assert invoke(*words, environ=home).stdout == "configuration (user): valid\n"
    done = invoke(*words, environ=home | {"AGENTD_POLICY__PORTS__FIRST": "99999"})
    assert done.exit_code == Exit.USAGE
    assert "policy.ports.first: must be" in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("name: chat\nmodel: /m.gguf\n", Exit.OK, "valid (chat)"),
        ("name: a\nmodel: /m.gguf\n---\nname: b\nmodel: /m.gguf\n", Exit.OK, "valid (a, b)"),
        ("name: a\nmodel: /m.gguf\n---\nname: b\nmodel: m\n", Exit.USAGE, "file.yaml, document 2 (b): model: must be"),
        ("policy: {max_deployments: 3}\n", Exit.OK, "valid"),
        ("name: chat\nmodel: /m.gguf\nlimits: {max_num_seq: 3}\n", Exit.USAGE, "did you mean 'max_num_seqs'?"),
        ("policy: {max_deployment: 3}\n", Exit.USAGE, "did you mean 'max_deployments'?"),
        ("a: [", Exit.USAGE, "line"),
    ],
)
def test_a_file_is_checked_as_what_its_keys_say_it_is(
    invoke: Invoke, tmp_path: Path, text: str, code: Exit, told: str
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    done = invoke("config", "check", file)
    assert done.exit_code == code
    assert told in done.stdout + done.stderr


def test_a_file_without_telling_keys_is_checked_as_what_it_is_said_to_be(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("name: chat\n")
    assert f"error: {file} (chat): model: " in invoke("config", "check", file, "--kind", "spec").stderr


def test_a_missing_file_is_not_found(invoke: Invoke) -> None:
    assert invoke("config", "check", "/nonexistent.yaml").exit_code == Exit.NOT_FOUND


@pytest.mark.parametrize("kind", ["spec", "agentd"])
def test_the_schemas_are_valid_schemas(invoke: Invoke, kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(invoke("config", "schema", kind).stdout))
