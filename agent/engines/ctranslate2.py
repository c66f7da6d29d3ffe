"""CTranslate2: the adapter. It is a library; the server is ours (`agent/embedded/ctranslate2_server.py`).

It serves what `ct2-transformers-converter` made of a decoder-only model, with the model's tokenizer.json beside it.
Verified against ctranslate2 4.8.5 on the CPU; CUDA was not run here. docs/reference/engines/ctranslate2.md
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from agent.engines import openai, prometheus
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
from agent.engines.ctranslate2_failures import diagnose
from agent.engines.ctranslate2_memory import memory_terms
from agent.engines.executables import configured_or_on_path, version
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_SERVER = Path(__file__).parent.parent / "embedded" / "ctranslate2_server.py"
_VERSION = re.compile(r"version: (ctranslate2 .+)")
_ANYWHERE = frozenset({"cpu", "cuda"})


def _on_cuda_from(major: int, minor: int) -> Support:
    """What a device cannot compute natively is converted to another type while loading, as on the CPU."""
    return Support(_ANYWHERE, native=(major, minor))


class CTranslate2:
    """Satisfies `agent.engines.base.LayersEngine`."""

    name = "ctranslate2"
    executable = "python3"
    capabilities = Capabilities(
        formats=frozenset({"ctranslate2"}),
        tasks=frozenset({"completion"}),
        accelerators=_ANYWHERE,
        kv_cache_dtypes=MappingProxyType({"auto": 2.0}),
        # The library's documentation, "Quantization".
        quantizations=MappingProxyType(
            {
                "float32": Support(_ANYWHERE),
                "float16": _on_cuda_from(7, 0),
                "bfloat16": _on_cuda_from(8, 0),
                "int16": Support(_ANYWHERE),
                "int8_float32": _on_cuda_from(6, 1),
                "int8_float16": _on_cuda_from(7, 0),
                "int8_bfloat16": _on_cuda_from(8, 0),
                "int4_awq": Support(frozenset({"cuda"}), least=(7, 5)),
            }
        ),
        most_devices=1,
        offload=False,
        suits=MappingProxyType(
            {
                Hardware.CPU: 40, Hardware.NVIDIA: 90, Hardware.NVIDIA_SMALL: 90, Hardware.NVIDIA_OLD: 50,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=2,
        max_model_len_cap=2048,
        kv_cache_dtype="auto",
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "each is a worker with a part of the cores",
                "max_model_len": "enough for a completion; nothing is batched over requests",
                "kv_cache_dtype": "the type that it computes in; there is no other",
                "max_num_batched_tokens": "a prompt is computed in one piece",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "ctranslate2_running",
            Metric.WAITING: "ctranslate2_waiting",
            Metric.PROMPT_TOKENS: "ctranslate2_prompt_tokens_total",
            Metric.GENERATED_TOKENS: "ctranslate2_generated_tokens_total",
        }
    )
    container = None  # there is no image of it

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """The Python of an environment with ctranslate2 and tokenizers; without one configured, none is looked for."""
        native = configured_or_on_path(configured, self.executable) if configured else None
        if native is None:
            return None
        argv = (native[0][0], "-E", "-P", str(_SERVER), *native[0][1:])
        found = version(argv, _VERSION)
        return None if found == "unknown" else Located(argv, found, native[1], frozenset(found.split(", ")[1:]))

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        return memory_terms(profile, limits, placement)

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        rule = "the server takes no arguments but the plan's"
        return tuple(FieldViolation(f"extra_args[{index}]", rule) for index in range(len(arguments)))

    def check_variable(self, name: str) -> str:
        return "`devices` decides it" if name in DEVICE_VARIABLES else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits = plan.limits
        argv = [
            *plan.binary,
            *("--model", plan.variant.path),
            *("--served-name", plan.model_name),
            *("--host", host),
            *("--port", str(port)),
            *("--device", "cuda" if plan.devices else "cpu"),
            *("--max-model-len", str(limits.max_model_len)),
            *("--max-num-seqs", str(limits.max_num_seqs)),
            *("--threads", str(limits.threads)),
        ]
        return Command(tuple(argv), plan.placement.environment)

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

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
        return prometheus.activity(
            body, "ctranslate2_running", "ctranslate2_waiting", "ctranslate2_generated_tokens_total"
        )

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (openai.MODELS,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        return openai.granted(replies[0])

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # it reports nothing

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}
