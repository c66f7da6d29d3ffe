"""The LiteLLM proxy: the adapter of a gateway. It computes nothing and forwards to other deployments of the node.

The server is LiteLLM's own below our launcher (`agent/embedded/litellm_server.py`), which takes over a new list of back
ends while it serves. Verified against litellm 1.106.2. docs/reference/engines/litellm.md
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.engines import openai, prometheus
from agent.engines.base import (
    Activity,
    BackEnd,
    Capabilities,
    Command,
    EngineDefaults,
    Hardware,
    HttpReply,
    HttpRequest,
    Located,
    Metric,
)
from agent.engines.executables import configured_or_on_path, python_of, version
from agent.engines.litellm_failures import diagnose
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_LAUNCHER = Path(__file__).parent.parent / "embedded" / "litellm_server.py"
_VERSION = re.compile(r"version: (litellm .+)")
_MIB = 1024**2
#: Resident once it is ready: 332 MiB with 1.106.2. What requests in flight take comes on top.
_PROCESS = MemoryTerm("process", 340 * _MIB, "measured", uncertainty=100 * _MIB)
#: A request with its answer is held as Python objects: about a hundred KiB of a long one.
_REQUEST = 100 * 1024
_HEALTH, _ALIVE = HttpRequest("GET", "/health/readiness"), HttpRequest("GET", "/health/liveliness")
#: What is forwarded, and LiteLLM's name for a server of it: any with OpenAI's API; and for scores, which that has not,
#: any that answers `/v1/rerank` as Jina does: vLLM, and llama.cpp (litellm/llms/hosted_vllm/rerank/transformation.py).
_PROVIDERS: Mapping[str, str] = MappingProxyType(
    {"chat": "openai", "completion": "openai", "embedding": "openai", "rerank": "hosted_vllm"}
)
#: It fetches nothing at its start, reads no `.env`, and tells nobody.
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True", "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_TELEMETRY": "False",
}  # fmt: skip
_CONFIGURED = "the agent writes the proxy's configuration from the deployments that are ready"
#: Names of environment variables -> why they are refused.
REFUSED_VARIABLES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("CONFIG_FILE_PATH", "WORKER_CONFIG", "DATABASE_URL", "DIRECT_URL", "STORE_MODEL_IN_DB",
                   "LITELLM_CONFIG_BUCKET_NAME", "LITELLM_CONFIG_BUCKET_OBJECT_KEY"), _CONFIGURED)
    | dict.fromkeys(_ENVIRONMENT, "the agent sets it")
    | {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "give a key: `secrets: {LITELLM_MASTER_KEY: ...}`"}
)  # fmt: skip


class LiteLLM:
    """Satisfies `agent.engines.base.GatewayEngine`."""

    name = "litellm"
    executable = "litellm"
    capabilities = Capabilities(
        formats=frozenset({"gateway"}),
        tasks=frozenset(_PROVIDERS),
        accelerators=frozenset({"cpu"}),
        kv_cache_dtypes=MappingProxyType({"none": 0.0}),
        most_devices=0,
        offload=False,
        suits=MappingProxyType({Hardware.CPU: 70}),
    )
    defaults = EngineDefaults(
        max_num_seqs=256,
        max_model_len_cap=0,
        kv_cache_dtype="none",
        max_num_batched_tokens=0,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "requests that are forwarded at once; more are refused instead of held in memory",
                "max_model_len": "each back end has its own",
                "kv_cache_dtype": "it computes nothing",
                "max_num_batched_tokens": "it computes nothing",
                "gpu_memory_utilization": "it uses no device",
            }
        ),
    )
    #: The launcher's. TTFT and tokens are the back ends' own.
    metrics: Mapping[Metric, str] = MappingProxyType({Metric.RUNNING: "litellm_running"})
    container = None
    configuration_file = "litellm.yaml"

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """`litellm`, or the Python of its environment: the launcher runs with that Python."""
        native = configured_or_on_path(configured, self.executable)
        python = python_of(native[0][0]) if native else ""
        if native is None or not python:
            return None
        argv = (python, "-E", "-P", str(_LAUNCHER), *native[0][1:])
        found = version(argv, _VERSION)
        return None if found == "unknown" else Located(argv, found, native[1])

    def device_layers(self, profile: ModelProfile) -> int:
        return 0

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        held = MemoryTerm("requests", limits.max_num_seqs * _REQUEST, f"{limits.max_num_seqs} x {_REQUEST} bytes")
        return ((_PROCESS, held),)

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        rule = "the gateway takes no arguments but the plan's"
        return tuple(FieldViolation(f"extra_args[{index}]", rule) for index in range(len(arguments)))

    def check_variable(self, name: str) -> str:
        return REFUSED_VARIABLES.get(name, "")

    def command(self, plan: Plan, host: str, port: int) -> Command:
        argv = [
            *plan.binary,
            *("--config", self.configuration_file),  # in its own directory, which it starts in
            *("--served-name", plan.model_name),
            *("--host", host),
            *("--port", str(port)),
            *("--max-num-seqs", str(plan.limits.max_num_seqs)),
        ]
        return Command(tuple(argv), {**plan.placement.environment, **_ENVIRONMENT})

    def configuration(self, plan: Plan, back_ends: Sequence[BackEnd]) -> str:
        """LiteLLM's `model_list` with a group for each served name, and one under the gateway's own name: the first of
        its task, which falls back to the others. Named deployments fall back to those that are named after them.
        """
        known = [each for each in back_ends if each.task in _PROVIDERS]
        groups: dict[str, list[BackEnd]] = {}
        for each in known:
            groups.setdefault(each.model, []).append(each)
        chain = list(dict.fromkeys(each.model for each in known if each.task == plan.task))
        falls = {name: chain[place:] for place, name in enumerate(chain, 1)} if not _all(plan) else {}
        if plan.model_name not in groups and chain:
            groups[plan.model_name] = groups[chain[0]]
            falls[plan.model_name] = chain[1:]
        return json.dumps(
            {
                "model_list": [_entry(name, each) for name, group in groups.items() for each in group],
                "router_settings": {
                    "num_retries": 0,  # what fails goes to a fallback, or to the client, at once
                    "allowed_fails": 1,
                    "cooldown_time": 5,  # seconds; the agent needs less to replace an engine
                    "fallbacks": [{name: others} for name, others in falls.items() if others],
                },
                "litellm_settings": {"num_retries": 0, "telemetry": False},
                "general_settings": {},
            },
            indent=1,
        )

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return _HEALTH

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return _HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return _ALIVE

    def inference_probe(self, plan: Plan) -> HttpRequest:
        """It computes nothing, and its back ends are probed themselves. (Its /health would send each a request.)"""
        return _ALIVE

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0

    def activity_request(self, plan: Plan) -> HttpRequest:
        return openai.METRICS

    def parse_activity(self, body: str) -> Activity:
        return prometheus.activity(body, "litellm_running", "", "litellm_requests_total")

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (HttpRequest("GET", "/gateway"),)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        """What the launcher says of itself."""
        card = openai.decoded(replies[0])
        if not isinstance(card, dict):
            return Granted()
        name, sequences = card.get("id"), card.get("max_num_seqs")
        return Granted(
            max_num_seqs=sequences if isinstance(sequences, int) else None, model=name if isinstance(name, str) else ""
        )

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # it reports nothing

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {"api_key": "LITELLM_MASTER_KEY"}


def _all(plan: Plan) -> bool:
    """Whether it stands before whatever is there, in no order that anybody chose."""
    return plan.variant.source.endswith(":*")


def _entry(name: str, to: BackEnd) -> dict[str, Any]:
    """The identity keeps what the router knows of it over a new list."""
    model = f"{_PROVIDERS[to.task]}/{to.model}"
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_base": f"{to.url}/v1", "api_key": to.key or "none"},
        "model_info": {"id": f"{name}@{to.deployment}"},
    }
