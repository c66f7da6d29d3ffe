"""The KV cache that llama.cpp allocates is the one that the adapter says, for each kind of attention and cache type."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from agent.engines import ENGINES
from agent.models.from_gguf import profile_of
from agent.models.header import Header
from agent.models.profile import ModelProfile
from agent.planning.plan import Limits, MemoryBudget, Placement, Plan, Variant
from tests.gguf_architectures import KINDS, write

ENGINE = ENGINES["llama.cpp"]
MIB = 1024**2
CASES = [*((name, "f16") for name in KINDS), ("Llama-3.1", "q8_0"), ("Gemma-3", "q4_0")]
#: Of no multiple of 256, and longer than any window.
CONTEXT, SEQUENCES = 2900, 3


def logged(model: Path, profile: ModelProfile, limits: Limits) -> float:
    """MiB of cache in the engine's own log of its start."""
    located = ENGINE.locate(None)
    assert located is not None
    plan = Plan(
        deployment="d", generation=1, model_name="d", task="chat", engine=ENGINE.name, engine_version="",
        binary=located.argv, runtime="process", devices=(), limits=limits, budgets=(MemoryBudget("host", ()),),
        variant=Variant(f"file:{model}", str(model), "gguf", "F16", profile.file_bytes, profile.architecture),
        extra_args=("--no-warmup",),
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    argv = ENGINE.command(plan, "127.0.0.1", port).argv
    sizes, lines = [], []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sizes += [float(size) for size in re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", line)]
            if "compute buffer size" in line or "error" in line:  # caches are allocated before it
                break
        process.kill()
    assert sizes, "".join(lines[-10:])
    return sum(sizes)


@pytest.mark.parametrize(("name", "kind"), CASES, ids=map(" ".join, CASES))
def test_the_predicted_cache_is_what_the_engine_allocates(name: str, kind: str, tmp_path: Path) -> None:
    model = write(tmp_path / "m.gguf", KINDS[name])
    header = Header(model)
    profile = profile_of(model, header, header.rows, size=model.stat().st_size, level="F16")
    limits = Limits(SEQUENCES, CONTEXT, kind, 2048, 1)

    terms = {term.name: term for term in ENGINE.memory_terms(profile, limits, "chat", Placement())[0]}

    assert terms["KV cache"].bytes / MIB == pytest.approx(logged(model, profile, limits), abs=0.011)
