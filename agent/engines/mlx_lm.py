"""MLX LM's `mlx_lm.server`: the adapter. It runs below our launcher (`agent/embedded/mlx_server.py`), which says why.

Verified against mlx-lm 0.32.2 with mlx 0.32.4: flags (`mlx_lm_options.txt`), and running, on Linux' CPU. What was not
run here: Metal and CUDA. docs/reference/engines/mlx-lm.md
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from agent.engines import openai, prometheus
from agent.engines.arguments import Options
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
    Support,
)
from agent.engines.executables import configured_or_on_path, python_of, version
from agent.engines.mlx_lm_failures import diagnose
from agent.engines.mlx_lm_memory import PROMPT_CACHE, memory_terms
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.memory import mlx
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_LAUNCHER = Path(__file__).parent.parent / "embedded" / "mlx_server.py"
_VERSION = re.compile(r"version: (mlx-lm .+)")
_ANY = Support(frozenset({"cpu", "cuda", "metal"}), least=(7, 5))  # of `mlx[cuda12]`

#: Spellings -> why a deployment may not give it.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--model": "`model` decides it",
        "--host": "the node's `policy.bind` decides it",
        "--port": "`port` decides it",
        "--decode-concurrency --prompt-concurrency": "`limits.max_num_seqs` decides it",
        "--prefill-step-size": "the plan decides it: it sizes the activations",
        "--kv-bits --kv-group-size --quantized-kv-start": "`limits.kv_cache_dtype` decides it",
        "--prompt-cache-size --prompt-cache-bytes": "the plan decides it: it is part of the budget",
        "--adapter-path --draft-model": "its memory is not part of the plan's budget",
        "--trust-remote-code": "it executes code out of the model's directory",
        "--pipeline": "it computes on other hosts",
        "--log-level": "the agent keeps the engine's log and reads failures from it",
        "--help": "it prints something and exits instead of serving",
    }
)


class MlxLm:
    """Satisfies `agent.engines.base.LayersEngine`."""

    name = "mlx-lm"
    executable = "mlx_lm.server"
    capabilities = Capabilities(
        formats=frozenset({"mlx", "safetensors"}),
        tasks=frozenset({"chat", "completion"}),
        accelerators=frozenset({"cpu", "cuda", "metal"}),
        kv_cache_dtypes=mlx.CACHE_TYPES,
        # `load_model` in mlx_lm/utils.py. FP8 and compressed-tensors' integers it reads for some architectures only.
        quantizations=MappingProxyType(
            dict.fromkeys(("bf16", "f16", "f32", "mlx", "awq", "gptq", "mxfp4", "mxfp8", "nvfp4", "bitnet"), _ANY)
        ),
        most_devices=1,
        offload=False,
        suits=MappingProxyType({Hardware.APPLE: 10}),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=4,
        max_model_len_cap=8192,
        kv_cache_dtype="auto",
        max_num_batched_tokens=mlx.PREFILL,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "a few users; each sequence's cache is planned whole",
                "max_model_len": "enough for long conversations; the cache grows only as tokens come",
                "kv_cache_dtype": "the model's own type; with another, requests are computed one after the other",
                "max_num_batched_tokens": "mlx-lm's own prefill step",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )

    #: The launcher's: mlx-lm itself offers none.
    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "mlx_lm_running",
            Metric.WAITING: "mlx_lm_waiting",
            Metric.PROMPT_TOKENS: "mlx_lm_prompt_tokens_total",
        }
    )
    container = None  # there is no image of it

    def __init__(self) -> None:
        self._options = Options.read("mlx_lm_options.txt", REFUSED_FLAGS)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """`mlx_lm.server`, or the Python of its environment: the launcher runs with that Python."""
        native = configured_or_on_path(configured, self.executable)
        python = python_of(native[0][0]) if native else ""
        if native is None or not python:
            return None
        argv = (python, "-E", "-P", str(_LAUNCHER), *native[0][1:])
        found = version(argv, _VERSION)
        if found == "unknown":
            return None
        return Located(argv, found, native[1], frozenset(found.split(", ")[2:]), lists=("--help",))

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        return memory_terms(profile, limits, placement)

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        return "the model's files are there, and nothing is fetched instead" if name in _OFFLINE else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits, seqs = plan.limits, str(plan.limits.max_num_seqs)
        argv = [
            *plan.binary,
            *("--served-name", plan.model_name),  # the launcher's flags come first
            *("--max-model-len", str(limits.max_model_len)),
            *("--max-num-seqs", seqs),
            *("--device", "gpu" if plan.devices else "cpu"),
            *("--model", plan.variant.path),
            *("--host", host),
            *("--port", str(port)),
            *("--decode-concurrency", seqs),
            *("--prompt-concurrency", "1"),  # prompts one after the other: each takes the activations of a step
            *("--prefill-step-size", str(limits.max_num_batched_tokens)),
            *("--prompt-cache-bytes", str(_prompt_cache(plan))),
            *_CACHE_FLAGS[limits.kv_cache_dtype],
            *("--allowed-origins", "http://localhost"),  # by default any web page may read answers from a local port
            *plan.extra_args,
        ]
        return Command(tuple(argv), {**plan.placement.environment, **_OFFLINE})

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)  # health says nothing of whether the model can be computed

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0 or (reply.status == 503 and "loading" in reply.body)

    def activity_request(self, plan: Plan) -> HttpRequest:
        return openai.METRICS

    def parse_activity(self, body: str) -> Activity:
        return prometheus.activity(body, "mlx_lm_running", "mlx_lm_waiting", "mlx_lm_requests_total")

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (openai.MODELS,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        """What the launcher enforces."""
        return openai.granted(replies[0])

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # it reports nothing of its weights and buffers

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}


_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_CACHE_FLAGS: Mapping[str, tuple[str, ...]] = {
    "auto": (),
    # From the first token on: mlx-lm starts at 5000 by default, and what is before stays as large as it was.
    "int8": ("--kv-bits", "8", "--kv-group-size", "64", "--quantized-kv-start", "0"),
    "int4": ("--kv-bits", "4", "--kv-group-size", "64", "--quantized-kv-start", "0"),
}


def _prompt_cache(plan: Plan) -> int:
    terms = (term for budget in plan.budgets for term in budget.terms)
    return next((term.bytes for term in terms if term.name == PROMPT_CACHE), 0)
