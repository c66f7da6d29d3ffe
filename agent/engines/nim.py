"""NVIDIA NIM for language models: vLLM in NVIDIA's containers, behind nginx, with its own health endpoints.

After the documentation of version 2.1 (which bundles vLLM 0.31 or SGLang 0.5.21; the containers with vLLM are the usual
ones, and the only ones that this adapter means). Not run by us: docs/reference/engines/nim.md. Everything that is not
said here is as in vLLM's adapter.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from agent.engines.base import CACHE_FOLDER, Command, Containerized, Hardware, HttpReply, HttpRequest, Located
from agent.engines.openai import MODELS
from agent.engines.signatures import Signature, find
from agent.engines.vllm import VLLM
from agent.models.profile import ModelProfile
from agent.planning.memory import vllm as memory
from agent.planning.memory.base import GIB, Card, Estimate, Request
from agent.planning.plan import Limits, Placement, Plan
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

#: The vLLM that NIM 2.1.5 bundles.
BUNDLED = (0, 31, 0)
#: NVIDIA tests NIM from Ampere on.
_LEAST = (8, 0)
_CUDA = frozenset({"cuda"})
_READY = HttpRequest("GET", "/v1/health/ready")
_METRICS = HttpRequest("GET", "/v1/metrics")
#: What NIM itself says before it starts its engine, which then never comes.
_SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"Could not find a profile that is currently runnable",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "none of the profiles in NIM's image is for the device, or less of its memory is free than they want",
        "the lines after it list the devices that it saw; vllm serves the same files on more devices",
    ),
    Signature(
        r"ManifestDownloadError: .*(?:[Pp]ermission error|[Aa]uthenti|[Uu]nauthorized)",
        DiagnosisCode.MODEL_GATED,
        "NGC does not give NIM's files to this key",
        "give a key of an account with access to them as the secret NGC_API_KEY",
    ),
)


class NIM(VLLM):
    """Satisfies `agent.engines.base.RanksEngine`."""

    name = "nim"
    executable = "nim-serve"  # the container's default action
    capabilities = replace(
        VLLM.capabilities,
        formats=frozenset({"safetensors"}),
        tasks=frozenset({"chat", "completion"}),
        accelerators=_CUDA,
        native=False,
        quantizations=MappingProxyType(
            {
                name: replace(support, accelerators=_CUDA, least=max(support.least, _LEAST))
                for name, support in (VLLM.capabilities.quantizations or {}).items()
                if "cuda" in support.accelerators
            }
        ),
        data=False,
        suits=MappingProxyType({Hardware.NVIDIA: 60, Hardware.NVIDIA_SMALL: 80}),
    )  # fmt: skip
    #: Docker quick start of the documentation. Its entry point takes the action, then the engine's flags.
    container = Containerized(
        ("nim-serve",), own_entrypoint=True, shm_bytes=16 * GIB,
        caches=MappingProxyType({"NIM_CACHE_PATH": CACHE_FOLDER}),
    )  # fmt: skip

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        return None  # there is no native one

    def check_variable(self, name: str) -> str:
        if name.startswith("NIM_"):
            return "the agent sets them, and flags are given in `extra_args`, where they are checked"
        return super().check_variable(name)

    def command(self, plan: Plan, host: str, port: int) -> Command:
        """What the container takes. `host` is the container runtime's to bind; inside, NIM listens on all addresses."""
        limits, placement = plan.limits, plan.placement
        argv = [
            *plan.binary,
            *("--max-num-seqs", str(limits.max_num_seqs)),
            *("--max-num-batched-tokens", str(limits.max_num_batched_tokens)),
            *("--kv-cache-dtype", limits.kv_cache_dtype),
            *("--gpu-memory-utilization", f"{limits.gpu_memory_utilization or 0:g}"),
            *(("--enable-expert-parallel",) if placement.experts else ()),
            *plan.extra_args,
        ]
        environment = {
            "NIM_MODEL_PATH": plan.variant.path,
            "NIM_SERVED_MODEL_NAME": plan.model_name,
            "NIM_SERVER_PORT": str(port),
            "NIM_MAX_MODEL_LEN": str(limits.max_model_len),
            "NIM_TENSOR_PARALLEL_SIZE": str(placement.tensor),
            "NIM_PIPELINE_PARALLEL_SIZE": str(placement.pipeline),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        return Command(tuple(argv), {**placement.environment, **environment})

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return _READY  # /v1/health/live is nginx's own answer, 200 before the model is loaded

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return _READY

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return _READY  # nginx goes on answering when the engine behind it is dead

    def loading(self, reply: HttpReply) -> bool:
        return reply.status in {0, 502, 503}

    def activity_request(self, plan: Plan) -> HttpRequest:
        return _METRICS

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (MODELS, _METRICS)

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return find(_SIGNATURES, log_tail) or super().diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}  # whether its health endpoints stay open with a key of vLLM's is not documented

    def batch_defaults(self, profile: ModelProfile, card: Card, task: str) -> tuple[int, int]:
        return memory.usual_batch(card, BUNDLED, profile.context_length or 2048)

    def estimate(self, profile: ModelProfile, limits: Limits, task: str, placement: Placement, card: Card) -> Estimate:
        """vLLM's, of the version in the container."""
        request = Request(
            "vllm", card, BUNDLED, tensor=placement.tensor, pipeline=placement.pipeline, expert=placement.experts,
            utilization=limits.gpu_memory_utilization, max_model_len=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens,
            kv_dtype=limits.kv_cache_dtype,
        )  # fmt: skip
        return memory.estimate(profile, request)
