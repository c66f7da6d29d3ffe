"""Deployments in all conditions, as a node reports them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from agent import __version__
from agent.planning.plan import GIB, Limits, MemoryBudget, MemoryTerm, Plan, Reason, Rejected, Variant
from agent.status import (
    Condition,
    DeploymentStatus,
    Desired,
    Diagnosis,
    DiagnosisCode,
    ExitStatus,
    Granted,
    InstanceStatus,
    NodeStatus,
    Phase,
    ProbeKind,
    ProbeVerdict,
    Progress,
    Verdict,
)

NOW = 1_700_100_000.0
DAY = 86400.0

NODE = NodeStatus(
    name="node1",
    uid="node-1",
    version=__version__,
    started_at=NOW - 2 * DAY,
    scope="system",
    inventory_json='{"devices": []}',
    policy_json="{}",
    conditions=(
        Condition("StateHealthy", True, "Ok", "the store takes writes", NOW - 60),
        Condition("DiskSpace", False, "LowDisk", "2.0 GiB free", NOW - 60),
        Condition("RuntimeReachable", None, "NotChecked", "not looked at yet", NOW - 60),
    ),
    memory_total=32 * GIB,
    memory_available=12 * GIB,
    memory_reserved=4 * GIB,
)

SPEC: dict[str, Any] = {
    "name": "chat",
    "model": "file:/models/SmolLM2-135M-Instruct.Q4_1.gguf",
    "task": "chat",
    "engine": "auto",
}

PLAN = Plan(
    deployment="chat",
    generation=3,
    model_name="smollm2",
    task="chat",
    engine="llama.cpp",
    engine_version="b6000",
    binary=("/usr/bin/llama-server",),
    runtime="process",
    variant=Variant(SPEC["model"], "/models/SmolLM2-135M-Instruct.Q4_1.gguf", "gguf", "Q4_1", 98_000_000, "llama"),
    devices=(),
    limits=Limits(max_num_seqs=4, max_model_len=2048, kv_cache_dtype="f16", max_num_batched_tokens=512, threads=2),
    budgets=(
        MemoryBudget(
            "host",
            (
                MemoryTerm("weights", 3 * GIB, "bytes of the tensors"),
                MemoryTerm("kv_cache", GIB // 2, "4 x 2048 tokens x 64 KiB"),
                MemoryTerm("compute", GIB // 4, "measured for llama", GIB // 4),
            ),
        ),
    ),
    reasons=(Reason("limits.max_model_len", "2048", "from-policy", "the node's default"),),
    rejected=(Rejected("vllm", "no-device", "needs a GPU, and this node has none"),),
)

INSTANCE = InstanceStatus(
    id="chat-3-1",
    deployment="chat",
    generation=3,
    attempt=2,
    runtime="process",
    live=True,
    pid=4711,
    port=8100,
    created_at=NOW - 200,
    started_at=NOW - 200,
    ready_at=NOW - 192,
    probes=(
        ProbeVerdict(ProbeKind.READINESS, Verdict.PASS, NOW - 3),
        ProbeVerdict(ProbeKind.LIVENESS, Verdict.FAIL, NOW - 5, "503 Service Unavailable", 2),
    ),
    log_path="/var/log/llm-node-agent/chat/2.log",
    memory_bytes=3_650_722_201,
    enforcement=("memory: cgroup, 4.0 GiB", "cpus: not enforced, no cpu controller"),
)

READY = DeploymentStatus(
    name="chat",
    uid="uid-chat",
    generation=3,
    observed_generation=3,
    etag="e3",
    desired=Desired.RUN,
    phase=Phase.READY,
    reason="Ready",
    message="the engine answers",
    since=NOW - 192,
    created_at=NOW - 3 * DAY - 4 * 3600,
    updated_at=NOW - 200,
    spec_json=json.dumps(SPEC),
    plan_json=PLAN.to_json(),
    endpoint="http://127.0.0.1:8100",
    restarts=1,
    granted=Granted(max_model_len=2048, max_num_seqs=4, model="smollm2"),
    instance=INSTANCE,
    previous=replace(
        INSTANCE,
        id="chat-3-0",
        attempt=1,
        live=False,
        pid=None,
        memory_bytes=None,
        probes=(),
        enforcement=(),
        ended_at=NOW - 201,
        exit=ExitStatus(signal=11, at=NOW - 201),
        diagnosis=Diagnosis(DiagnosisCode.CRASHED, "it died by itself", "Segmentation fault"),
    ),
)

DIAGNOSIS = Diagnosis(
    DiagnosisCode.DOES_NOT_FIT,
    "needs 24.0 GiB of host memory, and 11.2 GiB are free",
    "weights 22.0 GiB\nKV cache 2.0 GiB",
    "lower limits.max_model_len, or choose a smaller quantization",
)

FAILED = DeploymentStatus(
    name="large",
    uid="uid-large",
    generation=1,
    observed_generation=0,
    etag="e1",
    desired=Desired.RUN,
    phase=Phase.FAILED,
    reason="Failed",
    message="no retry can mend it",
    since=NOW - 30,
    created_at=NOW - 31,
    updated_at=NOW - 31,
    spec_json=json.dumps(SPEC | {"name": "large", "model": "package:llm_large/large.gguf"}),
    diagnosis=DIAGNOSIS,
)

LOADING = replace(
    READY,
    name="embed",
    uid="uid-embed",
    phase=Phase.LOADING,
    reason="Launched",
    message="the process runs",
    restarts=0,
    granted=None,
    previous=None,
    instance=replace(INSTANCE, id="embed-1", deployment="embed", probes=()),
    progress=Progress("loading", 45 << 20, 100 << 20),
    created_at=NOW - 45,
    since=NOW - 44,
)

BACKOFF = replace(
    LOADING,
    name="flaky",
    uid="uid-flaky",
    phase=Phase.BACKOFF,
    reason="BackOff",
    message="a retry may help",
    progress=None,
    endpoint="",
    next_attempt_at=NOW + 12,
    diagnosis=Diagnosis(DiagnosisCode.CRASHED, "exit status 1 two seconds after its start"),
)
