"""The memory model of llama.cpp on devices, against what llama.cpp itself printed.

`RUNS` were measured with llama.cpp 0c1e57098 and its RPC devices: real placements and real allocators, with the host's
memory standing in for the device's. `LOGS` are of others, on real GPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from agent.engines.llama_cpp import LlamaCpp
from agent.models.profile import ModelProfile
from agent.planning.plan import Limits, MemoryTerm, Placement

MIB = 1024**2
ENGINE = LlamaCpp()


def model(
    *, width: int, feed_forward: int, layers: int, kv_heads: int, head: int, vocabulary: int, embedding: float,
    repeating: float, tied: bool = False,
) -> ModelProfile:  # fmt: skip
    """Sizes in MiB: of the embedding (the output is as large), and of all repeating layers."""
    output = 0 if tied else int(embedding * MIB)
    total = int((embedding + repeating) * MIB) + output
    return ModelProfile(
        path="/m.gguf", format="gguf", architecture="llama", name="m", quantization="F16", file_bytes=total,
        tensor_bytes=total, parameters=1, layers=layers, embedding_length=width, feed_forward_length=feed_forward,
        heads=8, kv_heads=(kv_heads,) * layers, key_length=head, value_length=head, context_length=8192,
        vocabulary=vocabulary, embedding_bytes=int(embedding * MIB), output_bytes=output,
    )  # fmt: skip


A = model(
    width=512, feed_forward=1536, layers=8, kv_heads=4, head=64, vocabulary=32000, embedding=31.25, repeating=48.03
)
D = model(
    width=2048, feed_forward=6144, layers=4, kv_heads=8, head=128, vocabulary=32768, embedding=36.0, repeating=108.07
)
T = model(
    width=1024, feed_forward=3072, layers=6, kv_heads=4, head=64, vocabulary=64000, embedding=66.41, repeating=73.36,
    tied=True,
)  # fmt: skip
SMOLLM2 = model(
    width=576, feed_forward=1536, layers=30, kv_heads=3, head=64, vocabulary=49152, embedding=28.69, repeating=63.41,
    tied=True,
)  # fmt: skip


class Device(NamedTuple):
    """What llama.cpp printed of one device, in MiB."""

    weights: float
    kv: float
    compute: float


class Run(NamedTuple):
    """MiB. `compute` of the host is its compute buffer and its output buffer."""

    profile: ModelProfile
    slots: int
    context: int
    task: str
    layers: tuple[int, ...]
    host_kv: float
    host_compute: float
    devices: tuple[Device, ...]


RUNS = {
    "all layers on one": Run(A, 4, 2048, "chat", (9,), 0, 4.50, (Device(79.28, 64, 14.01),)),
    "all layers on two": Run(
        A, 4, 2048, "chat", (5, 4), 0, 13.54, (Device(30.02, 40, 24.04), Device(49.26, 24, 24.04))
    ),
    "some on one": Run(A, 4, 2048, "chat", (5,), 32, 15.50, (Device(55.27, 32, 13.01),)),
    "only the output": Run(A, 4, 2048, "chat", (1,), 64, 15.50, (Device(31.25, 0, 0.5),)),
    "some on two": Run(A, 4, 2048, "chat", (1, 3), 40, 15.50, (Device(6.00, 8, 11.00), Device(43.26, 16, 13.01))),
    "long context": Run(D, 1, 8192, "chat", (3,), 64, 60.13, (Device(90.04, 64, 52.01),)),
    "tied, on two": Run(T, 2, 4096, "chat", (3, 4), 0, 26.54, (Device(36.68, 24, 48.04), Device(103.09, 24, 48.04))),
    "tied, some": Run(T, 2, 4096, "chat", (2,), 40, 30.50, (Device(78.64, 8, 12.01),)),
    "embeddings": Run(T, 2, 1024, "embedding", (7,), 0, 10.53, (Device(139.77, 12, 254.0),)),
    "SmolLM2": Run(SMOLLM2, 4, 1024, "chat", (31,), 0, 4.01, (Device(92.10, 90, 13.38),)),
    "SmolLM2, some": Run(SMOLLM2, 4, 1024, "chat", (16,), 45, 15.26, (Device(60.40, 45, 12.26),)),
}


def terms(run: Run, dtype: str = "f16", accelerator: str = "cuda") -> list[dict[str, MemoryTerm]]:
    limits = Limits(run.slots, run.context, dtype, 2048, 8)
    pools = ENGINE.memory_terms(run.profile, limits, run.task, Placement(accelerator, run.layers))
    return [{term.name: term for term in pool} for pool in pools]


@pytest.mark.parametrize("name", RUNS)
def test_weights_and_cache_are_where_llama_cpp_puts_them(name: str) -> None:
    run = RUNS[name]
    host, *devices = terms(run)

    assert host["KV cache"].bytes == run.host_kv * MIB
    for predicted, measured in zip(devices, run.devices, strict=True):
        assert predicted["KV cache"].bytes == measured.kv * MIB
        assert predicted["weights"].bytes / MIB == pytest.approx(measured.weights, abs=0.05)


@pytest.mark.parametrize("name", RUNS)
def test_compute_buffers_are_never_larger_than_predicted_and_seldom_much_smaller(name: str) -> None:
    run = RUNS[name]
    host, *devices = terms(run)

    measured = [run.host_compute, *(device.compute for device in run.devices)]
    for pool, size in zip([host, *devices], measured, strict=True):
        assert size <= pool["compute"].bytes / MIB + 0.1
        assert pool["compute"].bytes / MIB <= 1.3 * size + 14


class Log(NamedTuple):
    """What a log says of a model that is wholly on one GPU, in MiB."""

    source: str
    profile: ModelProfile
    context: int
    dtype: str
    host_weights: float
    weights: float
    kv: float


LOGS = [
    Log(
        "mozilla-ai/llamafile#552, RTX 4080",
        model(
            width=3072, feed_forward=9216, layers=30, kv_heads=24, head=128, vocabulary=50688, embedding=297.0,
            repeating=7020.7,
        ),
        512, "f16", 297.0, 7317.71, 180.0,
    ),
    Log(
        "ggml-org/llama.cpp CI, Pythia 2.8B",
        model(
            width=2560, feed_forward=10240, layers=32, kv_heads=32, head=80, vocabulary=50304, embedding=245.62,
            repeating=4804.09,
        ),
        2048, "f16", 245.62, 5049.71, 640.0,
    ),
    Log(
        "Qwen3.6 27B, RTX 3090: a layer in four keeps a cache",
        model(
            width=5120, feed_forward=17408, layers=64, kv_heads=1, head=256, vocabulary=248320, embedding=682.03,
            repeating=13350.2,
        ),
        200192, "q8_0", 682.03, 14032.23, 6647.0,
    ),
]  # fmt: skip


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.source)
def test_what_public_logs_of_gpus_say_is_predicted(log: Log) -> None:
    run = Run(log.profile, 1, log.context, "chat", (log.profile.layers + 1,), 0, 0, ())
    host, device = terms(run, log.dtype)

    assert host["weights"].bytes / MIB == pytest.approx(log.host_weights, abs=0.01)
    assert device["weights"].bytes / MIB == pytest.approx(log.weights, abs=0.1)
    assert device["KV cache"].bytes / MIB == pytest.approx(log.kv, rel=0.001)


def test_a_quantized_cache_is_unpacked_a_layer_at_a_time() -> None:
    """CUDA's flash attention reserves 16-bit keys and values of all cells in the compute buffer."""
    run = RUNS["all layers on one"]
    plain, packed = (terms(run, dtype)[1]["compute"].bytes for dtype in ("f16", "q8_0"))

    assert packed - plain == 2 * (4 * 2048) * 4 * (64 + 64)


def test_what_a_driver_takes_beside_the_buffers_is_counted_on_each_device() -> None:
    """Public logs: 451 to 753 MiB with CUDA, 253 to 318 MiB with ROCm."""
    run = RUNS["all layers on two"]
    cuda, rocm = (terms(run, accelerator=name)[1:] for name in ("cuda", "rocm"))

    assert all(pool["context"].bytes + pool["context"].uncertainty >= 753 * MIB for pool in cuda)
    assert all(pool["context"].bytes + pool["context"].uncertainty >= 318 * MIB for pool in rocm)


def test_without_devices_nothing_is_said_of_any() -> None:
    pools = ENGINE.memory_terms(A, Limits(4, 2048, "f16", 2048, 8), "chat", Placement())

    assert len(pools) == 1
    assert pools[0][0].bytes == A.tensor_bytes
    assert "accelerator's libraries" not in {term.name for term in pools[0]}
