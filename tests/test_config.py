"""Configuration: sources merge in one visible order, and what is wrong is told with its source, field and rule."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import BUILT_IN, LoadedConfig, default_paths, defaults, load_config
from agent.errors import InvalidArgument
from agent.schemas import config_schema, derived_files
from agent.settings import NodeConfig
from agent.spec import DeploymentSpec, load_specs, parse_spec
from agent.strict import Strict, model_in, sections, validate

ROOT = Path(__file__).parent.parent


class Sources:
    """A home directory with configuration files, and what `load_config` makes of it."""

    def __init__(self, home: Path) -> None:
        self.directory = home / ".config" / "llm-node-agent"
        (self.directory / "agentd.d").mkdir(parents=True)
        self.environ = {"HOME": str(home), "XDG_RUNTIME_DIR": "/run/user/7"}

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def load(self, *overrides: str, config_file: Path | None = None, **variables: str) -> LoadedConfig:
        return load_config("user", config_file=config_file, overrides=overrides, environ=self.environ | variables)

    def refused(self, *overrides: str, config_file: Path | None = None, **variables: str) -> InvalidArgument:
        with pytest.raises(InvalidArgument) as caught:
            self.load(*overrides, config_file=config_file, **variables)
        return caught.value


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def test_the_settings_that_the_reference_shows_can_be_set_alone(sources):
    page = (ROOT / "docs/reference/config.md").read_text()
    overrides = re.findall(r"`--set (\S+)`", page)
    variables = dict(re.findall(r"`(AGENTD_[A-Z_]+)=([^'`\s]+)`", page))
    assert (len(overrides), list(variables)) == (1, ["AGENTD_POLICY__PORTS__LAST"])
    assert sources.load(*overrides).config == sources.load(**variables).config != sources.load().config


# Defaults


def test_a_user_needs_no_configuration(sources, tmp_path):
    config, origins = sources.load().config, sources.load().origins
    assert config.directories.state == tmp_path / ".local/state/llm-node-agent"
    assert config.directories.logs == config.directories.state / "logs"
    assert config.directories.cache == tmp_path / ".cache/llm-node-agent"
    assert config.api.control.path == Path("/run/user/7/llm-node-agent/control.sock")
    assert (config.api.control.mode, config.api.readonly.mode) == (0o600, 0o600)
    assert (config.policy.ports.first, config.policy.ports.last) == (8100, 8199)
    assert config.policy.bind == "127.0.0.1"
    assert config.policy.host_memory_reserve_bytes == 2**30
    assert (config.logs.max_bytes, config.logs.files, config.logs.attempts) == (10 * 2**20, 3, 5)
    assert (config.daemon.sweep_seconds, config.daemon.sweep_min_age_seconds) == (300, 300)
    assert set(origins.values()) == {BUILT_IN}


def test_the_systems_agent_lives_in_the_systems_directories():
    config = validate(NodeConfig, defaults("system", {}, {}), "config")
    assert [str(path) for path in dict(config.directories).values()] == [
        "/var/lib/llm-node-agent",
        "/run/llm-node-agent",
        "/var/cache/llm-node-agent",
        "/var/log/llm-node-agent",
    ]
    assert (config.api.control.mode, config.api.readonly.mode) == (0o600, 0o666)


def test_xdg_variables_move_a_users_directories_and_relative_ones_are_ignored():
    environ = {"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "relative", "XDG_CONFIG_HOME": "/c"}
    paths = default_paths("user", environ)
    assert paths.config == Path("/c/llm-node-agent")
    assert paths.state == Path("/s/llm-node-agent")
    assert paths.cache == Path("/h/.cache/llm-node-agent")
    assert paths.control_socket == Path("/s/llm-node-agent/run/control.sock")  # no XDG_RUNTIME_DIR


def test_a_directory_that_is_moved_takes_what_lies_in_it_along(sources):
    config = sources.load("directories.state=/data", "directories.runtime=/r").config
    assert config.directories.logs == Path("/data/logs")
    assert config.api.readonly.path == Path("/r/readonly.sock")


@pytest.mark.parametrize("host", ["", "___", "größe.example", "a" * 64])
def test_any_host_name_gives_a_valid_node_name(sources, monkeypatch, host):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert sources.load().config.node_name


# The order of sources


def test_later_sources_win_field_by_field_and_each_value_tells_its_origin(sources):
    main = sources.write("agentd.yaml", "policy: {ports: {first: 8101, last: 8111}, max_deployments: 1, bind: '::1'}\n")
    second = sources.write("agentd.d/20-b.yaml", "policy: {ports: {last: 8122}, max_deployments: 2}\n")
    sources.write("agentd.d/10-a.yaml", "policy: {ports: {last: 8133}}\n")
    loaded = sources.load("policy.bind=127.0.0.2", AGENTD_POLICY__MAX_DEPLOYMENTS="3", AGENTD_POLICY__BIND="127.0.0.3")
    policy = loaded.config.policy
    assert (policy.ports.first, policy.ports.last, policy.max_deployments, policy.bind) == (8101, 8122, 3, "127.0.0.2")
    assert loaded.origins["policy.ports.first"] == str(main)
    assert loaded.origins["policy.ports.last"] == str(second)
    assert loaded.origins["policy.max_deployments"] == "environment variable AGENTD_POLICY__MAX_DEPLOYMENTS"
    assert loaded.origins["policy.bind"] == "--set policy.bind"
    assert loaded.origins["policy.host_memory_reserve_bytes"] == BUILT_IN


def test_every_value_has_an_origin(sources):
    sources.write("agentd.yaml", "engines: {llama.cpp: {binary: [/x]}}\n")
    loaded = sources.load()

    def value_at(field: str) -> Any:
        value: Any = loaded.config.model_dump(mode="json")
        while field:
            key = next(key for key in value if field == key or field.startswith(f"{key}."))
            value, field = value[key], field[len(key) + 1 :]
        return value

    for field in loaded.origins:
        assert not isinstance(value := value_at(field), dict) or not value
    assert {path[0] for path, _ in sections(NodeConfig) if path} | {"engines", "node_name", "scope"} == {
        field.partition(".")[0] for field in loaded.origins
    }


def test_a_list_replaces_the_whole_list(sources):
    sources.write("agentd.yaml", "policy: {extra_args: [--a, --b]}\n")
    assert sources.load("policy.extra_args=[--c]").config.policy.extra_args == ("--c",)


@pytest.mark.parametrize("text", ["policy: {}\n", "{}\n", "", "# nothing\n", "engines: {}\n"])
def test_a_drop_in_that_says_nothing_changes_nothing(sources, text):
    sources.write("agentd.yaml", "policy: {ports: {first: 8150}}\nengines: {llama.cpp: {binary: [/x]}}\n")
    before = sources.load()
    sources.write("agentd.d/a.yaml", text)
    assert sources.load() == before


def test_a_given_file_replaces_agentd_yaml_but_not_the_drop_ins(sources, tmp_path):
    sources.write("agentd.yaml", "policy: {max_deployments: 1, bind: '::1'}\n")
    sources.write("agentd.d/a.yaml", "policy: {ports: {first: 8150}}\n")
    (tmp_path / "other.yaml").write_text("policy: {max_deployments: 2}\n")
    policy = sources.load(config_file=tmp_path / "other.yaml").config.policy
    assert (policy.max_deployments, policy.bind, policy.ports.first) == (2, "127.0.0.1", 8150)


def test_only_visible_yaml_files_are_drop_ins(sources):
    sources.write("agentd.d/.a.yaml", "nonsense: 1\n")
    sources.write("agentd.d/a.yaml.bak", "nonsense: 1\n")
    sources.load()


def test_reserved_variables_are_no_configuration(sources):
    sources.load(AGENTD_SOCKET="/x", AGENTD_FAILPOINTS="a=kill")


def test_engines_are_named_with_their_dots(sources):
    loaded = sources.load("engines.llama.cpp.binary=[/opt/llama-server, --x]")
    assert loaded.config.engines["llama.cpp"].binary == ("/opt/llama-server", "--x")
    assert loaded.origins["engines.llama.cpp.binary"] == "--set engines.llama.cpp.binary"
    assert sources.load(AGENTD_ENGINES="{llama.cpp: {binary: [/y]}}").config.engines["llama.cpp"].binary == ("/y",)


@pytest.mark.parametrize("written", ["0660", "'0660'", '"660"'])
def test_a_file_mode_is_octal(sources, written):
    loaded = sources.load(f"api.control.mode={written}")
    assert loaded.config.api.control.mode == 0o660
    assert loaded.config.model_dump(mode="json")["api"]["control"]["mode"] == "0660"


def test_what_is_in_force_can_be_written_into_a_file_again(sources, tmp_path):
    loaded = sources.load("policy.limits.max_num_seqs={default: 2, max: 4}", "engines.llama.cpp={}")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(loaded.config.model_dump(mode="json")))
    assert sources.load(config_file=tmp_path / "again.yaml").config == loaded.config


# Mistakes

MISTAKES = [
    ("polcy: {}\n", "polcy", "unknown key 'polcy'; did you mean 'policy'?"),
    ("policy: {port: {first: 1}}\n", "policy.port", "unknown key 'port'; did you mean 'ports'?"),
    ("policy:\n", "policy", "must be a mapping of keys to values (got nothing)"),
    ("api: 5\n", "api", "must be a mapping of keys to values (got 5)"),
    ("policy: {ports: {first: 80}}\n", "policy.ports.first", "must be at least 1024 (got 80)"),
    (
        "policy: {ports: {first: 9000}}\n",
        "policy.ports.first",
        "must be at most policy.ports.last, which is 8199 (got 9000)",
    ),
    (
        "policy: {ports: {last: 8000}}\n",
        "policy.ports.first",
        "must be at most policy.ports.last, which is 8000 (got 8100)",
    ),
    (
        "policy: {limits: {max_model_len: {default: 20000000, max: 10000000}}}\n",
        "policy.limits.max_model_len.default",
        "must be at most max, which is 10000000 (got 20000000)",
    ),
    (
        "policy: {limits: {gpu_memory_utilization: {default: 0.9, max: 0.8}}}\n",
        "policy.limits.gpu_memory_utilization.default",
        "must be at most max, which is 0.8 (got 0.9)",
    ),
    ("policy: {bind: localhost}\n", "policy.bind", "must be an IP address such as 127.0.0.1 or ::1 (got 'localhost')"),
    ("policy: {bind: 127}\n", "policy.bind", "must be a string (got 127, a number: put it in quotes)"),
    ("policy: {model_sources: [fil]}\n", "policy.model_sources[0]", "(got 'fil'); did you mean 'file'?"),
    ("policy: {model_directories: [models]}\n", "policy.model_directories[0]", "must be an absolute path"),
    ("policy: {extra_args: --a}\n", "policy.extra_args", "must be a list (got '--a')"),
    ("directories: {state: ~/state}\n", "directories.state", "~ and variables are not expanded (got '~/state')"),
    ("directories: {state: /a/../b}\n", "directories.state", "must be an absolute path without '..'"),
    (f"directories: {{runtime: /{'x' * 120}}}\n", "api.control.path", "must have at most 107 bytes, Linux's limit"),
    (
        "api: {readonly: {path: /run/user/7/llm-node-agent/control.sock}}\n",
        "api.readonly.path",
        "must differ from api.cont",
    ),
    ("api: {control: {mode: 660}}\n", "api.control.mode", "must be a file mode of three octal digits in quotes"),
    ("api: {control: {mode: '0999'}}\n", "api.control.mode", "such as '0660' (got '0999')"),
    ("api: {control: {mode: '4755'}}\n", "api.control.mode", "must be a file mode"),
    (
        "engines: {llama.cpp: {binary: llama-server}}\n",
        "engines.llama.cpp.binary",
        "must be a list (got 'llama-server')",
    ),
    ("engines: {llama.cpp: {binary: []}}\n", "engines.llama.cpp.binary", "must have at least 1 entry"),
    ("engines: {llama.cpp: {bin: [x]}}\n", "engines.llama.cpp.bin", "unknown key 'bin'; did you mean 'binary'?"),
    ("engines: {vLLM: {}}\n", "engines.vLLM", "must be an engine's name, in lower case"),
    ("logs: {max_bytes: 1}\n", "logs.max_bytes", "must be at least 65536 (got 1)"),
    ("daemon: {log_level: warn}\n", "daemon.log_level", "did you mean 'warning'?"),
    ("daemon: {cgroups: off}\n", "daemon.cgroups", "must be 'auto' or 'off' (got false)"),
    ("daemon: {sweep_seconds: .inf}\n", "daemon.sweep_seconds", "must be a finite number (got Infinity)"),
    ("node_name: [a]\n", "node_name", "must be a string (got a list)"),
    ("scope: system\n", "scope", "is 'user' by the way in which agentd was started"),
]


@pytest.mark.parametrize(
    ("text", "field", "rule"), MISTAKES, ids=[f"{field}-{rule[:30]}" for _, field, rule in MISTAKES]
)
def test_a_mistake_is_named_with_its_source_its_field_and_the_rule(sources, text, field, rule):
    path = sources.write("agentd.yaml", text)
    error = sources.refused()
    assert error.violations[0].field == field
    assert rule in error.violations[0].rule
    # A default that follows from a directory is nobody's line.
    assert error.violations[0].rule.endswith(f"(set by {BUILT_IN if 'runtime' in text else path})")
    assert error.message.startswith(f"{field}: ")


def test_a_mistake_in_a_variable_or_on_the_command_line_is_named_by_it(sources):
    rule = sources.refused(AGENTD_POLICY__PORTS__FIRST="x").violations[0].rule
    assert rule.endswith("(set by environment variable AGENTD_POLICY__PORTS__FIRST)")
    assert sources.refused("policy.ports.first=x").violations[0].rule.endswith("(set by --set policy.ports.first)")
    assert sources.refused("polcy.ports.first=1").message.startswith(
        "polcy: unknown key 'polcy'; did you mean 'policy'?"
    )


def test_a_section_that_is_plain_in_one_source_and_a_mapping_in_the_next_is_refused(sources):
    main = sources.write("agentd.yaml", "policy: 5\n")
    sources.write("agentd.d/a.yaml", "policy: {max_deployments: 1}\n")
    error = sources.refused()
    assert error.violations[0].field == "policy"
    assert str(main) in error.message
    assert "a.yaml" in error.message


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("AGENTD_POLCY__PORTS__FIRST", "did you mean AGENTD_POLICY__PORTS__FIRST?"),
        ("AGENTD_POLICY_PORTS_FIRST", "did you mean AGENTD_POLICY__PORTS__FIRST?"),
        ("AGENTD_X", "AGENTD_ goes before a field's path, as in AGENTD_POLICY__PORTS__FIRST"),
        ("AGENTD_", "AGENTD_ goes before a field's path, as in AGENTD_POLICY__PORTS__FIRST"),
        ("AGENTD_ENGINES__LLAMA_CPP__BINARY", "is no setting"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(sources, name, advice):
    error = sources.refused(**{name: "1"})
    assert error.violations[0].field == name
    assert advice in error.violations[0].rule


@pytest.mark.parametrize("override", ["", "=", "=1", "policy", "policy.ports.first", "policy..first=1", ".a=1", "a.=1"])
def test_an_override_that_is_no_assignment_is_refused(sources, override):
    assert sources.refused(override).message == "--set: must be FIELD=VALUE, such as policy.ports.last=8299"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"policy:\n\tports: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        (b"policy: {}\npolicy: {}\n", "line 2, column 1: the key 'policy' is given twice"),
        (b"a: 1\n---\nb: 1\n", "must be one YAML document (has 2)"),
        (b"[]\n", "line 1, column 1: must be a mapping"),
        (b"a: \xff\n", "must be UTF-8 text (byte 4 is not)"),
        (b"a: \x00\n", "character 4 is a control character (U+0000)"),
        (b"#" * (1024**2 + 1), "is longer than 1048576 characters"),
    ],
)
def test_a_file_that_is_no_yaml_is_named_with_the_position(sources, text, problem):
    path = sources.directory / "agentd.yaml"
    path.write_bytes(text)
    assert sources.refused().message.startswith(f"{path}: {problem}")


def test_a_variable_that_is_no_yaml_is_named(sources):
    assert sources.refused(AGENTD_ENGINES="{").message.startswith("AGENTD_ENGINES: line 1, column 2: ")
    assert sources.refused("engines={").message.startswith("--set engines: line 1, column 2: ")


def test_a_given_file_must_exist_and_be_a_regular_file(sources, tmp_path):
    assert "No such file" in sources.refused(config_file=tmp_path / "absent.yaml").message
    assert "is not a regular file" in sources.refused(config_file=tmp_path).message
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    assert "is not a regular file" in sources.refused(config_file=tmp_path / "pipe").message


def test_a_drop_in_directory_that_is_a_file_is_refused(sources):
    (sources.directory / "agentd.d").rmdir()
    path = sources.write("agentd.d", "")
    assert sources.refused().message == f"{path}: Not a directory"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.[]", max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [(*path, name) for path, model in sections(NodeConfig) for name in model.model_fields]


@given(st.dictionaries(st.sampled_from(FIELDS), TREES, min_size=1, max_size=4))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_values_in_any_source_are_understood_or_refused(tmp_path, changes):
    """Never another exception than ours, and never without a word on where."""
    file = tmp_path / "agentd.yaml"
    head, *rest = changes.items()
    file.write_text(yaml.safe_dump(nested(*head)), encoding="utf-8")
    environ = {"HOME": str(tmp_path)} | {
        f"AGENTD_{'__'.join(path).upper()}": yaml.safe_dump(value) for path, value in rest
    }
    try:
        loaded = load_config("user", config_file=file, environ=environ)
    except InvalidArgument as error:
        outcome: Any = error
    else:
        outcome = loaded
    if isinstance(outcome, InvalidArgument):
        assert re.search("agentd.yaml|environment variable|AGENTD_|built-in", outcome.message)
        assert all(violation.field and violation.rule for violation in outcome.violations)


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {head: nested(tuple(rest), value) if rest else value}


# What is made from the models


@pytest.mark.parametrize("name", sorted(derived_files()))
def test_derived_files_are_fresh(name):
    """If this fails: `python -m agent.schemas`."""
    assert (ROOT / name).read_text(encoding="utf-8") == derived_files()[name]


def uncommented(text: str) -> str:
    """The example with the lines that depend on the host; prose begins with '# '."""
    return re.sub(r"^#(?! \S)", "", text, flags=re.MULTILINE)


def test_the_example_is_valid_as_it_stands_and_changes_nothing(sources):
    example = ROOT / "configs/agentd.example.yaml"
    assert sources.load(config_file=example).config == sources.load().config


def test_the_example_shows_every_field_at_its_default(tmp_path):
    shown = yaml.safe_load(uncommented((ROOT / "configs/agentd.example.yaml").read_text()))
    tree = defaults("system", {}, {}) | {"node_name": "node-1"}
    config = validate(NodeConfig, tree, "config")
    assert validate(NodeConfig, shown, "config") == config
    assert keys(shown) == keys(config.model_dump())


def keys(tree: Any) -> Any:
    return {key: keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None


@pytest.mark.parametrize("path", sorted((ROOT / "configs/examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_specs_are_valid(path):
    for spec in load_specs(path.read_text(), str(path)):
        assert parse_spec(spec)
        jsonschema.validate(spec, yaml.safe_load((ROOT / "configs/schema/deployment.schema.json").read_text()))


def test_the_configuration_schema_accepts_the_example_and_every_part_of_it():
    jsonschema.Draft202012Validator.check_schema(config_schema())
    validator = jsonschema.Draft202012Validator(config_schema())
    example = yaml.safe_load(uncommented((ROOT / "configs/agentd.example.yaml").read_text()))
    validator.validate(example)
    for key, value in example.items():
        validator.validate({key: value})
    assert not validator.is_valid({"polcy": {}})


@pytest.mark.parametrize("model", [DeploymentSpec, NodeConfig])
def test_every_field_says_what_it_means(model: type[Strict]):
    models = [section for _, section in sections(model)]
    models += filter(None, (model_in(field.annotation) for field in model.model_fields.values()))
    for section in models:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith("."), f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("model", "page"), [(DeploymentSpec, "docs/reference/spec.md"), (NodeConfig, "docs/reference/config.md")]
)
def test_the_reference_lists_every_field_once(model: type[Strict], page: str):
    text = (ROOT / page).read_text()
    for path, section in sections(model):
        heading = f"## {'.'.join(path) or 'Fields'}\n"
        (part,) = text.split(heading)[1:]
        listed = re.findall(r"^\| `(\w+)` \|", part.partition("\n## ")[0], re.MULTILINE)
        assert listed == list(section.model_fields)
