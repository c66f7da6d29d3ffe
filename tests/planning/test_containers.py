"""How an engine is run: natively or by an image, and which image; all of it pure, for machines that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.engines.base import Located
from agent.engines.images import ImageRules, load, shipped
from agent.hardware.simulated import parse
from agent.planning.plan import Plan
from agent.planning.request import Containers, PlanRequest
from agent.status import DiagnosisCode
from tests.planning.machines import LOCATED, ask, made, published, refused, sentence

AWQ_8B = published("Qwen/Qwen3-8B", "awq")
GGUF_8B = published("Qwen/Qwen3-8B", "Q4_K_M")
DOCKER = Containers(shipped(), ImageRules(), "docker 28.2")
EMBEDDED = {"llama.cpp": Located(("/usr/bin/python", "x"), "xllamacpp 1", "embedded")}
CUDA_BUILD = Located(("/usr/bin/llama-server",), "11549", "path", frozenset({"cpu", "cuda"}))


def question(*args: Any, containers: Containers | None = DOCKER, **fields: Any) -> PlanRequest:
    return replace(ask(*args, **{"located": {}, **fields}), containers=containers)


def test_a_gpu_box_with_docker_serves_by_the_image_and_says_why() -> None:
    answer = made(question(AWQ_8B, "h100-sxm"))

    assert (answer.engine, answer.runtime) == ("vllm", "docker")
    assert answer.image is not None
    assert answer.image.name == "docker.io/vllm/vllm-openai:v0.33.0"
    assert (answer.binary, answer.engine_version) == (("vllm",), "v0.33.0")
    assert "docker 28.2 runs its image" in sentence(answer, "runtime")
    assert sentence(answer, "image") == "the preferred image for cuda"


def test_an_older_driver_gets_the_older_image_with_the_reason() -> None:
    machine = {"devices": [{"model": "a100-40-pcie"}], "driver": {"nvidia": "550.54.15", "cuda": "12.4"}}
    answer = made(question(AWQ_8B, machine, engine="vllm"))

    assert answer.image is not None
    assert answer.image.tag == "v0.31.0-cu129"
    assert "driver 550.54.15 cannot run the CUDA 13.0 image" in sentence(answer, "image")
    assert answer.image.environment == {"NVIDIA_DISABLE_REQUIRE": "1"}


def test_a_simulated_machine_shows_the_image_that_it_would_pull() -> None:
    answer = made(replace(ask(AWQ_8B, "h100-sxm"), containers=replace(DOCKER, engine="a container engine")))

    assert answer.runtime == "docker"
    assert answer.image is not None
    assert sentence(answer, "runtime") == "assumed: the machine runs containers"


def test_without_a_container_engine_nothing_is_different() -> None:
    with_none = made(ask(AWQ_8B, "h100-sxm"))

    assert (with_none.runtime, with_none.image) == ("process", None)
    assert sentence(with_none, "runtime") == "the engine runs natively"
    refusal = refused(question(AWQ_8B, "h100-sxm", containers=None, engine="vllm"))
    assert refusal.diagnosis.code == DiagnosisCode.BINARY_MISSING


@pytest.mark.parametrize(
    ("hardware", "native", "runtime"),
    [
        ("cpu", EMBEDDED["llama.cpp"], "process"),  # it is here already
        ("rtx4090", EMBEDDED["llama.cpp"], "docker"),  # it reaches no device, and the image does
        ("rtx4090", CUDA_BUILD, "process"),
        ("rtx4090", replace(CUDA_BUILD, accelerators=frozenset({"cpu"})), "docker"),
        ("rtx4090", replace(CUDA_BUILD, origin="config"), "process"),
    ],
)  # fmt: skip
def test_what_is_here_is_preferred_unless_only_the_image_reaches_the_devices(
    hardware: str, native: Located, runtime: str
) -> None:
    answer = made(question(GGUF_8B, hardware, located={"llama.cpp": native}, engine="llama.cpp"))
    assert answer.runtime == runtime
    assert {device.startswith("GPU") for device in answer.devices} == ({True} if hardware != "cpu" else set())


def test_the_spec_and_the_policy_decide_over_that() -> None:
    both: dict[str, Any] = {"located": EMBEDDED, "engine": "llama.cpp"}
    boxed = made(question(GGUF_8B, "cpu", runtime="docker", **both))
    assert boxed.image is not None
    assert boxed.image.tag.startswith("server-b")
    assert sentence(boxed, "runtime") == "the spec says so"

    only = made(question(GGUF_8B, "cpu", policy={"runtimes": ["docker"]}, **both))
    assert (only.runtime, sentence(only, "runtime")) == ("docker", "the node policy allows nothing else")
    never = made(question(GGUF_8B, "rtx4090", policy={"runtimes": ["process"]}, **both))
    assert (never.runtime, never.devices) == ("process", ())


def test_docker_where_there_is_none_is_refused_and_said() -> None:
    asked = refused(question(GGUF_8B, "cpu", containers=None, located=EMBEDDED, runtime="docker", engine="llama.cpp"))
    assert asked.diagnosis.code == DiagnosisCode.RUNTIME_UNAVAILABLE
    assert "no container engine" in asked.diagnosis.message

    sick = replace(DOCKER, problem="docker 28.2 cannot be used: it does not answer within 2 s")
    asked = refused(question(AWQ_8B, "h100-sxm", containers=sick, engine="vllm"))
    assert asked.diagnosis.code == DiagnosisCode.RUNTIME_UNAVAILABLE
    assert "does not answer within 2 s" in asked.diagnosis.message


def test_gpus_that_no_container_gets_are_a_missing_toolkit() -> None:
    without = replace(DOCKER, no_gpus="docker cannot give NVIDIA's devices to containers: no nvidia runtime")
    refusal = refused(question(AWQ_8B, "h100-sxm", containers=without, engine="sglang"))
    assert refusal.diagnosis.code == DiagnosisCode.TOOLKIT_MISSING
    natively = made(question(GGUF_8B, "h100-sxm", containers=without, located={"llama.cpp": CUDA_BUILD}))
    assert natively.runtime == "process"


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        (ImageRules(repositories=("registry.example.com",)), DiagnosisCode.POLICY_DENIED),
        (ImageRules(require_digest=True), DiagnosisCode.POLICY_DENIED),
    ],
)
def test_images_that_the_policy_refuses_are_not_planned(rules: ImageRules, code: DiagnosisCode) -> None:
    refusal = refused(question(AWQ_8B, "h100-sxm", containers=replace(DOCKER, rules=rules), engine="vllm"))
    assert refusal.diagnosis.code == code


OWN = "registry.example.com/ours/vllm:v9"
PIN = "sha256:" + "a" * 64


def test_an_image_of_the_spec_is_taken_over_the_catalogs() -> None:
    answer = made(question(AWQ_8B, "h100-sxm", engine="vllm", image=f"{OWN}@{PIN}"))

    assert answer.image is not None
    assert (answer.runtime, answer.image.name, answer.image.digest) == ("docker", OWN, PIN)
    assert answer.binary == ("vllm",)
    assert answer.devices
    assert sentence(answer, "image") == "set in the spec; no catalog knows it"
    assert sentence(answer, "runtime") == "the spec names an image"


def test_what_a_catalog_knows_of_an_image_of_the_spec_holds() -> None:
    machine = {"devices": [{"model": "a100-40-pcie"}], "driver": {"nvidia": "550.54.15", "cuda": "12.4"}}
    older = made(question(AWQ_8B, machine, engine="vllm", image="docker.io/vllm/vllm-openai:v0.31.0-cu129"))
    assert older.image is not None
    assert older.image.environment == {"NVIDIA_DISABLE_REQUIRE": "1"}
    assert sentence(older, "image") == "set in the spec"

    newer = refused(question(AWQ_8B, machine, engine="vllm", image="docker.io/vllm/vllm-openai:v0.33.0"))
    assert newer.diagnosis.code == DiagnosisCode.DRIVER_UNSUPPORTED
    assert "driver 550.54.15 cannot run the CUDA 13.0 image" in newer.diagnosis.message


def test_an_engine_without_images_in_the_catalog_gets_the_one_of_the_spec() -> None:
    answer = made(question(AWQ_8B, "h100-sxm", engine="nim", image="nvcr.io/nim/qwen/qwen3-8b:1"))
    assert answer.image is not None
    assert answer.image.repository == "nvcr.io/nim/qwen/qwen3-8b"


@pytest.mark.parametrize("located", [{}, LOCATED])  # this node, and a machine that is only described
@pytest.mark.parametrize(
    ("containers", "fields", "why"),
    [
        (DOCKER, {}, "the catalog of images names none of it"),
        (None, {}, "this node has no container engine"),
        (DOCKER, {"runtime": "process"}, "allow no containers"),
    ],
)
def test_an_engine_that_is_an_image_only_is_not_planned_without_one(
    located: dict[str, Located], containers: Containers | None, fields: dict[str, Any], why: str
) -> None:
    asked = question(AWQ_8B, "h100-sxm", containers=containers, located=located, engine="nim", **fields)
    diagnosis = refused(asked).diagnosis
    assert diagnosis.code == DiagnosisCode.IMAGE_MISSING
    assert why in diagnosis.message
    assert "catalog/engines.yaml" in diagnosis.hint


def test_an_engine_that_is_an_image_only_is_planned_with_the_operators_image(tmp_path: Path) -> None:
    own = tmp_path / "engines.yaml"
    own.write_text(
        "engines: {nim: [{repository: nvcr.io/nim/own, tag: '1', accelerators: [cuda], architectures: [amd64]}]}\n"
    )
    answer = made(question(AWQ_8B, "h100-sxm", containers=replace(DOCKER, catalog=load(own)), engine="nim"))
    assert answer.image is not None
    assert (answer.runtime, answer.image.name) == ("docker", "nvcr.io/nim/own:1")
    assert sentence(answer, "runtime") == "nim is published as an image only; docker 28.2 runs it"


def test_what_would_bring_an_engine_here_depends_on_what_the_model_is() -> None:
    bare = refused(question(AWQ_8B, "h100-sxm", containers=None)).diagnosis
    assert bare.code == DiagnosisCode.BINARY_MISSING
    assert "run Docker or podman" in bare.hint
    assert "name a GGUF variant of the model" in bare.hint

    gguf = refused(question(GGUF_8B, "h100-sxm", containers=None)).diagnosis
    assert "install llm-node-agent[embedded]" in gguf.hint
    other = refused(question(GGUF_8B, "h100-sxm", containers=None, engine="ollama")).diagnosis
    assert "engines.ollama.binary" in other.hint
    assert "embedded" not in other.hint
    native = refused(question(GGUF_8B, "cpu", containers=None, engine="lm-studio")).diagnosis
    assert native.hint == "install it, or name it in engines.lm-studio.binary"


def test_an_image_that_does_not_run_here_is_no_reason_where_the_engine_could_serve_no_variant() -> None:
    described = {"containers": replace(DOCKER, engine="a container engine"), "located": LOCATED}
    answer = refused(question("Qwen/Qwen3-8B", "b200", quantization="nvfp4", **described))
    assert answer.diagnosis.code == DiagnosisCode.MODEL_UNSUPPORTED
    assert answer.diagnosis.message == "no variant of the model is nvfp4"
    assert "fp8" in answer.diagnosis.hint

    task = {"task": "rerank", "engine": "tgi"}
    answer = refused(question(AWQ_8B, "b200", **task, **described))
    assert answer.diagnosis.message == "tgi does not serve the task rerank"
    able = refused(question(published("Qwen/Qwen3-8B", "bf16"), "b200", containers=DOCKER, engine="tgi"))
    assert able.diagnosis.code == DiagnosisCode.DEVICE_UNSUPPORTED


def test_an_executable_is_not_asked_for_where_the_policy_wants_images() -> None:
    policy = {"runtimes": ["docker"]}
    installed = {"vllm": LOCATED["vllm"]}
    for located, code, words in (
        ({}, DiagnosisCode.IMAGE_MISSING, "vllm can run as an image only, and this node has no container engine"),
        (installed, DiagnosisCode.POLICY_DENIED, "does not let vllm run natively"),
    ):
        answer = refused(question(AWQ_8B, "h100-sxm", containers=None, located=located, policy=policy))
        assert answer.diagnosis.code == code
        assert words in answer.diagnosis.message


@pytest.mark.parametrize(
    ("image", "rules", "allowed"),
    [
        (OWN, ImageRules(repositories=("docker.io/vllm",)), False),
        (OWN, ImageRules(repositories=("registry.example.com",)), True),
        (OWN, ImageRules(require_digest=True), False),
        (f"{OWN}@{PIN}", ImageRules(require_digest=True), True),
    ],
)
def test_the_policy_holds_for_images_of_the_spec(image: str, rules: ImageRules, allowed: bool) -> None:
    asked = question(AWQ_8B, "h100-sxm", containers=replace(DOCKER, rules=rules), engine="vllm", image=image)
    if allowed:
        assert made(asked).runtime == "docker"
    else:
        refusal = refused(asked)
        assert refusal.diagnosis.code == DiagnosisCode.POLICY_DENIED
        assert f"the spec's image {image} cannot run on this node" in refusal.diagnosis.message


def test_an_image_of_the_spec_is_never_replaced_by_an_executable() -> None:
    native = {"llama.cpp": CUDA_BUILD}
    refusal = refused(question(GGUF_8B, "cpu", containers=None, located=native, engine="llama.cpp", image=OWN))
    assert refusal.diagnosis.code == DiagnosisCode.RUNTIME_UNAVAILABLE


def test_a_device_without_code_in_the_image_is_left_out() -> None:
    machine = {"devices": [{"model": "v100-32"}, {"model": "a100-80-sxm"}]}
    newer = next(device.id for device in parse(machine).inventory.devices if device.compute_capability == "8.0")
    answer = made(question(AWQ_8B, machine, engine="vllm"))
    assert answer.devices == (newer,)


def test_devices_of_the_cpu_alone_get_the_processors_image() -> None:
    answer = made(question(GGUF_8B, "rtx4090", devices="cpu", engine="llama.cpp"))
    assert answer.image is not None
    assert answer.image.tag.startswith("server-b")
    assert answer.devices == ()


def test_a_plan_with_an_image_is_stored_and_read_and_older_ones_are_too() -> None:
    answer = made(question(AWQ_8B, "h100-sxm"))
    assert Plan.from_json(answer.to_json()) == answer
    assert Plan.from_json(replace(answer, image=None).to_json()).image is None
