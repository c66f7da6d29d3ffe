"""What each engine's container gets: command, mounts, devices, variables; and what it never gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.engines import ENGINES
from agent.engines.base import Containerized
from agent.planning.plan import Image, Limits, Placement, Plan, Variant
from agent.runtimes.base import Container, Mount
from agent.status import Progress
from agent.supervision import container_launch
from agent.supervision.container_launch import Place
from agent.supervision.containers import Together, paths
from agent.supervision.preparation import PreparationError

MODEL = "/cache/hub/models--org--m/snapshots/1"
LIMITS = Limits(4, 4096, "auto", 2048, 4, 0.9)
IMAGE = Image("docker.io/org/engine", "v1", id="sha256:1", environment={"NVIDIA_DISABLE_REQUIRE": "1"}, paths=(MODEL,))
CONTAINED = [name for name, engine in ENGINES.items() if engine.container is not None]


def how(name: str) -> Containerized:
    found = ENGINES[name].container
    assert found is not None
    return found


def plan(name: str, **fields: Any) -> Plan:
    variant = Variant("hf:org/m", MODEL, "safetensors", "bf16", 1, "llama")
    made = Plan(
        deployment="d", generation=1, model_name="served", task="chat", engine=name, engine_version="v1",
        binary=how(name).command, runtime="docker", variant=variant,
        devices=("GPU-1",), limits=LIMITS, budgets=(), image=IMAGE,
        placement=Placement("cuda", environment={"CUDA_VISIBLE_DEVICES": "GPU-1"}),
    )  # fmt: skip
    return replace(made, **fields)


def made(name: str, tmp_path: Path, **fields: Any) -> Container:
    files = ("/dev/kfd", "/dev/dri/renderD128", "/dev/kfd", "/dev/dri/renderD129")
    place = Place("/run/docker.sock", "127.0.0.1", 8100, tmp_path / "compiled" / "d", files)
    return container_launch.container(plan(name, **fields), how(name), place)


@pytest.mark.parametrize("name", CONTAINED)
def test_every_engine_is_started_by_its_images_command_on_all_addresses_of_its_own_network(name: str) -> None:
    command = ENGINES[name].command(plan(name), "0.0.0.0", 8100)
    started = command.argv[command.argv.index("--") + 1 :] if name == "ollama" else command.argv  # by its launcher
    assert started[: len(how(name).command)] == how(name).command
    words = [*command.argv, *command.environment.get("OLLAMA_HOST", "").split(":")]
    assert "8100" in (*words, command.environment.get("NIM_SERVER_PORT"))
    if name != "nim":
        assert "0.0.0.0" in words
    assert MODEL in (*command.argv, *command.environment.values())


@pytest.mark.parametrize("name", CONTAINED)
def test_weights_are_read_only_at_the_same_place_and_only_a_cache_is_written(name: str, tmp_path: Path) -> None:
    mounts = made(name, tmp_path).mounts
    assert mounts[0] == Mount(MODEL, MODEL, read_only=True)
    writable = [mount for mount in mounts if not mount.read_only]
    assert writable == (
        [Mount(str(tmp_path / "compiled" / "d"), "/cache", read_only=False)] if how(name).caches else []
    )
    assert (tmp_path / "compiled").exists() == bool(how(name).caches)


def test_files_that_a_command_names_are_seen_at_the_same_place(tmp_path: Path) -> None:
    command = ENGINES["tensorrt-llm"].command(plan("tensorrt-llm"), "0.0.0.0", 8100)
    settings = command.argv[command.argv.index("--config") + 1]
    assert Mount(settings, settings) in made("tensorrt-llm", tmp_path).mounts


def test_nvidias_devices_go_by_id_and_others_by_their_files(tmp_path: Path) -> None:
    nvidia = made("vllm", tmp_path)
    assert (nvidia.gpus, nvidia.device_files) == (("GPU-1",), ())
    amd = made("vllm", tmp_path, placement=Placement("rocm"), devices=("amd-1", "amd-2"))
    assert (amd.gpus, amd.device_files) == ((), ("/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129"))


def test_devices_are_counted_anew_where_only_the_plans_are_seen() -> None:
    variables = {"ROCR_VISIBLE_DEVICES": "2,3", "ZE_AFFINITY_MASK": "5", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    found = container_launch.environment(plan("vllm"), how("vllm"), variables)
    assert (found["ROCR_VISIBLE_DEVICES"], found["ZE_AFFINITY_MASK"]) == ("0,1", "0")
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    by_id = container_launch.environment(plan("vllm"), how("vllm"), {"ROCR_VISIBLE_DEVICES": "GPU-5a"})
    assert by_id["ROCR_VISIBLE_DEVICES"] == "GPU-5a"


def test_the_specs_variables_come_over_the_images_and_nothing_of_the_daemons_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAEMONS_OWN", "1")
    found = container_launch.environment(plan("sglang"), how("sglang"), {"NVIDIA_DISABLE_REQUIRE": "0"})
    assert found == {"HOME": "/cache", "NVIDIA_DISABLE_REQUIRE": "0"}


def test_an_image_that_was_not_pulled_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="was not pulled"):
        made("vllm", tmp_path, image=replace(IMAGE, id=""))


def test_a_hubs_snapshot_is_seen_with_the_folder_that_its_links_lead_to(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--m"
    snapshot, blobs = repository / "snapshots" / "1", repository / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/b")
    assert paths(str(snapshot)) == (str(repository),)

    elsewhere = tmp_path / "other.safetensors"
    elsewhere.write_text("")
    (snapshot / "model.safetensors").symlink_to(elsewhere)
    assert paths(str(snapshot)) == (str(repository), str(elsewhere))
    assert paths("/m/a-00001-of-00002.gguf") == ("/m/a-00001-of-00002.gguf", "/m/a-00002-of-00002.gguf")


def test_progress_of_image_and_weights_is_one_sum() -> None:
    told: list[Progress] = []
    together = Together(told.append)
    together.of("weights")(Progress("fetching", 5, 10))
    together.of("image")(Progress("fetching the image", 1, 100))
    together.of("weights")(Progress("fetching", 10, 10))
    assert told[1] == Progress("weights: fetching; image: fetching the image", 6, 110)
    assert told[2] == Progress("image: fetching the image", 11, 110)
