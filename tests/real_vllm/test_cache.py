"""The tokens that we say a pool of cache holds are those that vLLM prints, for each kind of attention."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.models.huggingface import from_config
from agent.planning.memory import vllm as memory
from agent.planning.memory import vllm_cpu
from agent.planning.memory.base import Card, Request
from tests.real_vllm.architectures import ARCHITECTURES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

#: Bytes, of no block's size; and no multiple of any block's tokens.
POOL, LENGTH, BATCH = 417_000_001, 3000, 2048
VERSION = (0, 32)
#: With 8-bit caches too; a CPU without AVX-512 refuses to compute with those, after it has sized the pool.
CASES = [*((name, "auto") for name in ARCHITECTURES), *((name, "fp8") for name in ("Llama-3.1-8B", "Gemma-3-1B"))]


def request(name: str, kind: str) -> Request:
    longest = ARCHITECTURES[name][1].get("max_position_embeddings", LENGTH)
    return Request(
        "vllm", Card(1 << 40), version=VERSION, max_model_len=min(LENGTH, longest), max_num_seqs=4,
        max_num_batched_tokens=BATCH, kv_dtype=kind,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reports(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """What vLLM says of each case."""
    folder, lines = tmp_path_factory.mktemp("architectures"), []
    for name, kind in CASES:
        model = folder / name
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps(ARCHITECTURES[name][1]))
        asked = request(name, kind)
        arguments = {
            "kv_cache_memory_bytes": POOL, "max_model_len": asked.max_model_len, "max_num_seqs": asked.max_num_seqs,
            "max_num_batched_tokens": asked.max_num_batched_tokens, "kv_cache_dtype": kind,
        }  # fmt: skip
        lines.append(json.dumps({"name": f"{name} {kind}", "model": str(model), "arguments": arguments}))
    script = Path(__file__).with_name("report.py")
    done = subprocess.run(
        [Path(vllm).with_name("python"), str(script)], input="\n".join(lines) + "\n", text=True, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=dict(os.environ),
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    (folder / "answers.json").write_text(json.dumps(answers, indent=1))
    return {(name, kind): answer for (name, kind), answer in zip(CASES, answers, strict=True)}


@pytest.mark.parametrize(("name", "kind"), CASES, ids=map(" ".join, CASES))
def test_the_predicted_tokens_are_those_that_the_engine_prints(
    name: str, kind: str, reports: Mapping[tuple[str, str], Mapping[str, Any]]
) -> None:
    profile = from_config(ARCHITECTURES[name][1])
    asked = vllm_cpu.defaults(profile, request(name, kind))
    tokens, concurrency = memory.counted(POOL, vllm_cpu.layout(profile, asked), asked)

    report = reports[name, kind]

    printed = re.search(r"KV cache size: ([\d,]+) tokens.* ([\d.]+)x", report["line"])
    assert printed is not None, report
    print(f"| {name} | {ARCHITECTURES[name][0]} | {kind} | {tokens} | {printed[1].replace(',', '')} |")
    assert tokens == int(printed[1].replace(",", ""))
    assert f"{concurrency:.2f}" == printed[2]
