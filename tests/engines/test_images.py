"""The catalog of engine images, and the choice of one for a node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES, images
from agent.engines.images import Catalog, Host, Image, ImageChoice, ImageRules, NoImage, is_data_centre, load, shipped
from agent.errors import InvalidArgument
from agent.hardware.simulated import parse
from agent.planning.images import image_host
from agent.status import DiagnosisCode

EDITED = Path(__file__).parents[2] / "configs" / "catalog" / "engines.yaml"
ANY = ImageRules()

A100 = Host("x86_64", "cuda", "580.65.06", ("8.0",), devices=("NVIDIA A100-SXM4-80GB",))
RTX4090 = Host("x86_64", "cuda", "580.65.06", ("8.9",), devices=("NVIDIA GeForce RTX 4090",))
MI300X = Host("x86_64", "rocm", "6.14", targets=("gfx942",), devices=("AMD Instinct MI300X",))
CPU = Host("x86_64", "cpu")


def choose(engine: str, host: Host, rules: ImageRules = ANY, known: Catalog | None = None) -> ImageChoice:
    return (known or shipped()).choose(engine, host, rules)


def refused(engine: str, host: Host, rules: ImageRules = ANY) -> NoImage:
    with pytest.raises(NoImage) as caught:
        choose(engine, host, rules)
    return caught.value


def test_what_ships_is_what_people_edit() -> None:
    shipped_text = Path(images.__file__).with_name("images.json").read_text(encoding="utf-8")

    assert shipped_text == images.derived(EDITED), "run: python -m agent.engines.images"


def test_every_image_is_of_a_known_engine_for_accelerators_that_it_has_and_says_where_its_facts_are_from() -> None:
    for engine, known in shipped().engines.items():
        accelerators = ENGINES[engine].capabilities.accelerators
        for image in known:
            assert set(image.accelerators) <= accelerators, image.name
            assert image.sources, image.name
            assert image.tag != "latest", image.name


@pytest.mark.parametrize(
    ("engine", "host", "tag"),
    [
        ("vllm", A100, "v0.33.0"),
        ("vllm", RTX4090, "v0.33.0"),
        ("vllm", replace(A100, machine="aarch64"), "v0.33.0"),
        ("vllm", replace(A100, driver="550.54.15"), "v0.31.0-cu129"),
        ("vllm", replace(RTX4090, driver="575.57"), "v0.31.0-cu129"),
        ("vllm", MI300X, "v0.33.0"),
        ("vllm", CPU, "v0.33.0-x86_64"),
        ("vllm", Host("aarch64", "cpu"), "v0.33.0-arm64"),
        ("vllm", Host("x86_64", "sycl"), "v0.33.0"),
        ("sglang", replace(A100, driver="575.57"), "v0.5.19-cu129"),
        ("sglang", MI300X, "v0.5.20-rocm10-mi30x"),
        ("sglang", replace(MI300X, targets=("gfx950",)), "v0.5.20-rocm10-mi35x"),
        ("llama.cpp", A100, "server-cuda-b11312"),
        ("llama.cpp", RTX4090, "server-cuda-b11312"),
        ("llama.cpp", replace(RTX4090, driver="615.71.09"), "server-cuda13-b11312"),
        ("llama.cpp", replace(RTX4090, driver="615.71.09", capabilities=("7.0",)), "server-cuda-b11312"),
        ("llama.cpp", replace(A100, driver="535.183.01"), "server-cuda-b11312"),
        ("tensorrt-llm", A100, "1.3.0rc24"),
        ("llama.cpp", CPU, "server-b11312"),
        ("ollama", replace(A100, capabilities=("6.1",)), "0.33.3"),
        ("tgi", A100, "3.3.7"),
    ],
)
def test_the_first_image_that_runs_on_the_node_is_chosen(engine: str, host: Host, tag: str) -> None:
    assert choose(engine, host).image.tag == tag


def test_a_driver_that_is_too_old_is_told_with_what_was_chosen_instead() -> None:
    chosen = choose("vllm", replace(RTX4090, driver="575.57.08"))

    assert chosen.reasons[0].sentence == (
        "v0.33.0: driver 575.57.08 cannot run the CUDA 13.0 image, which needs 580 or newer, or branch 570 or branch "
        "535 with data-centre devices; chose v0.31.0-cu129, the last tag with CUDA 12 that was seen"
    )
    assert [(each.candidate, each.code) for each in chosen.rejected] == [
        ("docker.io/vllm/vllm-openai:v0.33.0", "driver")
    ]


def test_compatibility_libraries_serve_data_centre_devices_only_and_are_switched_on() -> None:
    server = choose("vllm", replace(A100, driver="570.124.06"))
    older = choose("vllm", replace(A100, driver="550.54.15"))

    assert (server.image.tag, server.environment) == ("v0.33.0", {"VLLM_ENABLE_CUDA_COMPATIBILITY": "1"})
    assert "compatibility libraries" in server.reasons[1].sentence
    assert (older.image.tag, older.environment) == ("v0.31.0-cu129", {"NVIDIA_DISABLE_REQUIRE": "1"})
    assert choose("vllm", A100).environment == {}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp", "tgi"])
def test_other_devices_get_no_image_that_is_newer_than_their_driver(engine: str) -> None:
    """It would start, and then CUDA would say that forward compatibility was attempted on non supported hardware."""
    found = refused(engine, replace(RTX4090, driver="535.183.01"))

    assert found.diagnosis.code == DiagnosisCode.DRIVER_UNSUPPORTED
    assert "535 or newer with data-centre devices" in found.diagnosis.message


@pytest.mark.parametrize(
    ("engine", "host", "code", "said"),
    [
        ("vllm", replace(A100, driver="470.57"), DiagnosisCode.DRIVER_UNSUPPORTED, "needs 575.51 or newer, or 535"),
        ("vllm", replace(A100, capabilities=("7.0",)), DiagnosisCode.DEVICE_UNSUPPORTED, "compute capability 7.0"),
        ("tgi", replace(A100, capabilities=("8.0", "10.0")), DiagnosisCode.DEVICE_UNSUPPORTED, "ends below 10.0"),
        ("llama.cpp", replace(MI300X, targets=("gfx950",)), DiagnosisCode.DEVICE_UNSUPPORTED, "no code for gfx950"),
        ("tgi", replace(A100, machine="aarch64"), DiagnosisCode.CPU_UNSUPPORTED, "built for amd64, not for arm64"),
        ("sglang", CPU, DiagnosisCode.IMAGE_MISSING, "no image of sglang for cpu is known"),
        ("mlx-lm", CPU, DiagnosisCode.IMAGE_MISSING, "no image of mlx-lm for cpu is known"),
    ],
)
def test_where_no_image_runs_each_ones_rule_is_told(engine: str, host: Host, code: DiagnosisCode, said: str) -> None:
    found = refused(engine, host)

    assert found.diagnosis.code == code
    assert said in found.diagnosis.message
    assert found.diagnosis.hint


def test_policy_rejects_repositories_and_unpinned_images_with_its_own_rule() -> None:
    elsewhere = refused("vllm", A100, ImageRules(repositories=("docker.io/lmsysorg", "docker.io/vllm/vllm")))
    unpinned = refused("vllm", A100, ImageRules(require_digest=True))

    assert elsewhere.diagnosis.code == unpinned.diagnosis.code == DiagnosisCode.POLICY_DENIED
    assert {each.code for each in elsewhere.rejected if each.code != "accelerator"} == {"repository"}
    assert "images.require_digest" in unpinned.diagnosis.message
    assert choose("vllm", A100, ImageRules(repositories=("docker.io/vllm",))).image.tag == "v0.33.0"


def test_a_driver_that_is_not_known_rejects_nothing_and_is_named_as_an_assumption() -> None:
    chosen = choose("vllm", replace(A100, driver=""))

    assert chosen.image.tag == "v0.33.0"
    assert [reason.code for reason in chosen.reasons] == ["computed", "assumed"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA GH200 480GB", True),
        ("NVIDIA B300 SXM6 AC", True),
        ("Tesla V100-SXM2-16GB", True),
        ("Tesla T4", True),
        ("NVIDIA L40S", True),
        ("NVIDIA GeForce RTX 4090", False),
        ("NVIDIA RTX A6000", False),
        ("NVIDIA GB10", False),
        ("NVIDIA T400", False),
        ("Quadro P4000", False),
    ],
)
def test_data_centre_devices_are_known_by_name(name: str, expected: bool) -> None:
    assert is_data_centre(name) is expected


VERSIONS = st.tuples(st.integers(390, 600), st.integers(0, 200)).map(lambda parts: f"{parts[0]}.{parts[1]:02d}")
HOSTS = st.builds(
    Host,
    machine=st.sampled_from(["x86_64", "aarch64"]),
    accelerator=st.just("cuda"),
    driver=VERSIONS,
    capabilities=st.sampled_from(["5.0", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.1"]).map(
        lambda capability: (capability,)
    ),
    devices=st.sampled_from([("NVIDIA H200",), ("NVIDIA GeForce RTX 4090",), ("Tesla T4", "NVIDIA GeForce RTX 5090")]),
)
SERVED = st.sampled_from([engine for engine, known in shipped().engines.items() if any(
    "cuda" in image.accelerators for image in known)])  # fmt: skip


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@given(SERVED, HOSTS)
def test_the_rules_of_the_chosen_image_hold_and_those_before_it_broke_one(engine: str, host: Host) -> None:
    known = shipped().engines[engine]
    try:
        chosen = choose(engine, host)
    except NoImage as error:
        told = [each.candidate for each in error.rejected]
        assert told == [image.name for image in known]
        return
    position = len(chosen.rejected)
    image = known[position]
    assert [each.candidate for each in chosen.rejected] == [each.name for each in known[:position]]
    assert (chosen.image.repository, chosen.image.tag) == (image.repository, image.tag)
    assert "cuda" in image.accelerators
    assert chosen.image.architecture in image.architectures
    assert image.capability is None or number(image.capability.least) <= number(host.capabilities[0])
    assert image.driver is not None
    if number(host.driver) >= number(image.driver):
        assert chosen.environment == {}
    else:
        assert any(
            number(older.driver) <= number(host.driver)
            and chosen.environment == older.environment
            and (not older.data_centre or all(map(is_data_centre, host.devices)))
            for older in image.older_drivers
        )


@given(SERVED, HOSTS, VERSIONS)
def test_a_newer_driver_never_takes_an_image_away(engine: str, host: Host, driver: str) -> None:
    older, newer = sorted((host.driver, driver), key=number)
    try:
        choose(engine, replace(host, driver=older))
    except NoImage:
        return

    assert choose(engine, replace(host, driver=newer)).image


def test_the_plans_devices_say_what_the_node_offers() -> None:
    inventory = parse("h100-sxm:2").inventory
    first = inventory.devices[0]

    host = image_host(inventory, "cuda", (first.id,))

    assert host == Host(inventory.machine, "cuda", inventory.drivers[0].version, ("9.0",), (), (first.name,))
    assert image_host(inventory, "cpu", ()) == Host(inventory.machine, "cpu")


# The operator's file


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_operator_pins_a_shipped_image_by_naming_it(tmp_path: Path) -> None:
    digest = f"sha256:{'a' * 64}"
    own = write(tmp_path / "engines.yaml", "engines:\n  vllm:\n    - {repository: docker.io/vllm/vllm-openai, tag: "
                f"v0.31.0-cu129, digest: '{digest}'}}\n")  # fmt: skip

    known = load(own)

    assert choose("vllm", A100, ImageRules(require_digest=True), known).image.digest == digest
    assert len(known.engines["vllm"]) == len(shipped().engines["vllm"])
    assert known.engines["sglang"] == shipped().engines["sglang"]


def test_an_operators_own_image_comes_first_and_may_be_of_an_engine_that_has_none(tmp_path: Path) -> None:
    image = "{repository: registry.example.com:5000/ml/engine, tag: '1', accelerators: [cuda], architectures: [amd64]}"
    known = load(write(tmp_path / "engines.yaml", f"engines: {{vllm: [{image}], nim: [{image}]}}"))

    assert choose("vllm", A100, known=known).image.repository == "registry.example.com:5000/ml/engine"
    assert choose("nim", A100, known=known).image.tag == "1"
    assert choose("vllm", MI300X, known=known).image.tag == "v0.33.0"


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ("engines: {vllm: [{repository: vllm/x y}]}", "engines.vllm[0].repository", "must be a registry and a path"),
        ("engines: {vllm: [{tag: latest}]}", "engines.vllm[0].repository", "is required"),
        ("engines: {vllm: [{repositry: docker.io/a/b}]}", "engines.vllm[0].repositry", "did you mean 'repository'?"),
        ("engines: {vllm: none}", "engines.vllm", "must be a list"),
        ("engines: [vllm]", "engines", "must be a mapping"),
        ("{}", "engines", "is required"),
        ("engines: {vllm: [{repository: docker.io/vllm/vllm-openai, tag: v0.33.0, driver: 580}]}",
         "engines.vllm[0].driver", "put it in quotes"),
        ("engines: {vllm: [{repository: docker.io/vllm/vllm-openai, tag: v0.33.0, digest: abc}]}",
         "engines.vllm[0].digest", "64 hexadecimal digits"),
        (("engines: {x: [{repository: docker.io/a/b, tag: a, accelerators: [cpu], architectures: [amd64], capability: "
         "{least: '8.0'}}]}"), "engines.x[0].capability", "accelerators must have cuda"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_field_and_rule(tmp_path: Path, text: str, field: str, rule: str) -> None:
    own = write(tmp_path / "engines.yaml", text)

    with pytest.raises(InvalidArgument) as caught:
        load(own)

    assert str(own) in caught.value.message
    told = [violation.rule for violation in caught.value.violations if violation.field == field]
    assert [rule in each for each in told] == [True], caught.value.violations


def test_without_a_file_of_the_operator_the_shipped_catalog_is_taken(tmp_path: Path) -> None:
    assert load(tmp_path / "engines.yaml") is shipped()


def test_an_image_says_its_own_rules() -> None:
    fields: dict[str, Any] = {"repository": "docker.io/a/b", "tag": "t", "accelerators": ["cpu"]}

    with pytest.raises(ValueError, match="older_drivers"):
        Image(
            **fields, architectures=["amd64"], older_drivers=[{"driver": "1", "environment": {"A": "b"}, "note": "n"}]
        )
