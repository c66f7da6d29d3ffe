"""Ollama: the adapter, for plans. No instance of it is started on this node; docs/reference/engines/ollama.md says why.

Facts are from the source of v0.33 (`envconfig/config.go`, `server/`, `llm/llama_server.go`); nothing of it ran here.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from types import MappingProxyType

from agent.engines import openai
from agent.engines.base import (
    DEVICE_VARIABLES,
    Activity,
    Capabilities,
    Command,
    EngineDefaults,
    Hardware,
    HttpReply,
    HttpRequest,
    Located,
    Metric,
)
from agent.engines.llama_cpp_memory import CACHE_BYTES, PHYSICAL_BATCH
from agent.engines.llama_cpp_memory import memory_terms as llama_cpp_terms
from agent.engines.ollama_failures import diagnose
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.memory.base import MIB
from agent.planning.memory.ollama import RESERVE
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_RESERVE = MemoryTerm("reserve", RESERVE, "Ollama leaves it free of each device")
#: The server in front of llama-server, written in Go.
_SERVER = MemoryTerm("Ollama", 64 * MIB, "estimate, not measured", uncertainty=32 * MIB)

#: Variables that carry what a plan decides -> what decides it.
REFUSED_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "OLLAMA_HOST": "`port` and the node's `policy.bind` decide it",
        "OLLAMA_MODELS": "`model` decides it",
        "OLLAMA_NUM_PARALLEL": "`limits.max_num_seqs` decides it",
        "OLLAMA_CONTEXT_LENGTH": "`limits.max_model_len` decides it",
        "OLLAMA_KV_CACHE_TYPE": "`limits.kv_cache_dtype` decides it",
        "OLLAMA_MAX_LOADED_MODELS": "an instance serves the one model of its deployment",
        "OLLAMA_KEEP_ALIVE": "the model would be unloaded while the deployment is shown as ready",
        "OLLAMA_FLASH_ATTENTION": "the plan's memory depends on it",
        "OLLAMA_GPU_OVERHEAD": "the plan's memory depends on it",
        "OLLAMA_SCHED_SPREAD": "`devices` decides it",
        "OLLAMA_LLM_LIBRARY": "`devices` decides it",
        "OLLAMA_IGPU_ENABLE": "`devices` decides it",
        "OLLAMA_VULKAN": "`devices` decides it",
        "OLLAMA_NO_CLOUD": "the agent sets it: a deployment computes on this node",
        "OLLAMA_NOPRUNE": "the agent sets it",
        "OLLAMA_DEBUG_LOG_REQUESTS": "it writes what clients ask to disk",
    }
)


class Ollama:
    """Satisfies `agent.engines.base.LayersEngine`."""

    name = "ollama"
    executable = "ollama"
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),
        tasks=frozenset({"chat", "completion", "embedding"}),
        accelerators=frozenset({"cpu", "cuda", "rocm", "metal"}),
        kv_cache_dtypes=MappingProxyType({name: CACHE_BYTES[name] for name in ("f16", "q8_0", "q4_0")}),
        not_run="ollama can only be planned: it copies a model's weights before it serves them, so use llama.cpp, "
        "which reads the same file in place",
        suits=MappingProxyType(
            {
                Hardware.CPU: 20, Hardware.APPLE: 30, Hardware.NVIDIA: 70, Hardware.NVIDIA_SMALL: 40,
                Hardware.NVIDIA_OLD: 20, Hardware.AMD: 50, Hardware.AMD_SMALL: 20, Hardware.INTEL: 40,
                "development": 10,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=1,
        max_model_len_cap=4096,
        kv_cache_dtype="f16",
        max_num_batched_tokens=PHYSICAL_BATCH,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "Ollama's own number of parallel requests",
                "max_model_len": "Ollama's own context on a small device",
                "kv_cache_dtype": "Ollama's own type, without loss",
                "max_num_batched_tokens": "Ollama's own num_batch",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType({})  # not offered
    container = None  # see `not_run`

    def __init__(self) -> None:
        text = resources.files("agent.engines").joinpath("ollama_variables.txt").read_text(encoding="utf-8")
        self._variables = {line for line in text.splitlines() if line and not line.startswith("#")}

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        return None

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        """llama.cpp's, which it runs, and what it adds."""
        host, *devices = llama_cpp_terms(profile, limits, task, placement)
        return ((*host, _SERVER), *((*terms, _RESERVE) for terms in devices))

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        rule = "`ollama serve` takes no arguments; its settings are variables, in `environment`"
        return tuple(FieldViolation(f"extra_args[{index}]", rule) for index in range(len(arguments)))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        if name in REFUSED_VARIABLES:
            return REFUSED_VARIABLES[name]
        if name.startswith("LLAMA_ARG_"):
            return "it would change llama-server's flags behind the plan's back"
        if name.startswith("OLLAMA_") and name not in self._variables:
            nearest = difflib.get_close_matches(name, self._variables - REFUSED_VARIABLES.keys(), n=1)
            return "ollama has no such variable" + (f"; did you mean {nearest[0]}?" if nearest else "")
        return ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits = plan.limits
        environment = {
            **plan.placement.environment,
            "OLLAMA_HOST": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "OLLAMA_NUM_PARALLEL": str(limits.max_num_seqs),
            "OLLAMA_CONTEXT_LENGTH": str(limits.max_model_len),  # of each request; it multiplies itself
            "OLLAMA_KV_CACHE_TYPE": limits.kv_cache_dtype,
            "OLLAMA_FLASH_ATTENTION": "1",  # a quantized cache needs it, and the memory model is that of this kernel
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_KEEP_ALIVE": "-1",  # it would unload after five minutes without a request
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_NOPRUNE": "1",
            # Its environment reaches llama-server, whose prompt cache of 8 GiB in host memory it leaves on.
            "LLAMA_ARG_CACHE_RAM": "0",
            **({"OLLAMA_SCHED_SPREAD": "1"} if len(plan.devices) > 1 else {}),
        }
        return Command((*plan.binary, "serve"), environment)

    def startup_probe(self, plan: Plan) -> HttpRequest:
        """It loads a model when it is first asked for: /api/version answers long before."""
        return self.inference_probe(plan)

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return _VERSION

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return _VERSION

    def inference_probe(self, plan: Plan) -> HttpRequest:
        model = {"model": plan.model_name, "keep_alive": -1}
        if plan.task == "embedding":
            return openai.post("/api/embed", {**model, "input": "a"})
        options = {"num_predict": 1}
        return openai.post("/api/generate", {**model, "prompt": "a", "raw": True, "stream": False, "options": options})

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0

    def activity_request(self, plan: Plan) -> HttpRequest:
        return _LOADED

    def parse_activity(self, body: str) -> Activity:
        return Activity(None, None, None)  # it does not say

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (_LOADED,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        """Of the model that is loaded; how many requests it takes at once is nowhere told."""
        body = openai.decoded(replies[0])
        models = body.get("models") if isinstance(body, dict) else None
        first = models[0] if isinstance(models, list) and models else None
        if not isinstance(first, dict):
            return Granted()
        name, length = first.get("name"), first.get("context_length")
        return Granted(
            max_model_len=length if isinstance(length, int) else None,
            model=name.removesuffix(":latest") if isinstance(name, str) else "",
        )

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # llama-server's lines are in its log, but no such log was seen here

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}  # it knows no API key


_VERSION = HttpRequest("GET", "/api/version")
_LOADED = HttpRequest("GET", "/api/ps")
