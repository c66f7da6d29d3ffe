"""TensorRT-LLM's `trtllm-serve`: the adapter. Its flags, probes, memory and failures, and nothing else about it.

Written for the 1.3 line, whose only backend is PyTorch; options: `tensorrt_llm_options.txt`. Not run by us:
docs/reference/engines/tensorrt-llm.md.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from agent.engines import openai, ranks
from agent.engines.arguments import Options
from agent.engines.base import (
    CACHE_FOLDER,
    DEVICE_VARIABLES,
    Activity,
    Capabilities,
    Command,
    Containerized,
    EngineDefaults,
    Hardware,
    HttpReply,
    HttpRequest,
    Located,
    Metric,
    Spread,
    Support,
)
from agent.engines.executables import configured_or_on_path
from agent.engines.prometheus import activity_of
from agent.engines.ranks import Room
from agent.engines.tensorrt_llm_failures import diagnose
from agent.engines.tensorrt_llm_refusals import REFUSED_FLAGS
from agent.engines.tensorrt_llm_report import parse
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import CACHE, MeasuredTerm
from agent.planning.memory import tensorrt_llm as memory
from agent.planning.memory.base import GIB, Card, Estimate, Request
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

#: What it takes from no flag. A file of this package: a command can carry none.
_SETTINGS = Path(__file__).with_name("tensorrt_llm_serve.yaml")

_CUDA = frozenset({"cuda"})
_AMPERE, _ADA, _HOPPER, _BLACKWELL = (8, 0), (8, 9), (9, 0), (10, 0)
#: By the documentation's page on quantization and `_torch/model_config.py` (`load_hf_quant_config`): 4-bit integers
#: only as ModelOpt stores them.
_QUANTIZATIONS: Mapping[str, Support] = MappingProxyType(
    {
        "bf16": Support(_CUDA, least=_AMPERE),
        "f16": Support(_CUDA, least=_AMPERE),
        "fp8": Support(_CUDA, least=_ADA),
        "fp8-block": Support(_CUDA, least=_HOPPER),
        "nvfp4": Support(_CUDA, least=_BLACKWELL),
        "mxfp4": Support(_CUDA, least=_HOPPER, native=_BLACKWELL),
        "modelopt": Support(_CUDA, least=_AMPERE),
    }
)
_METRICS = HttpRequest("GET", "/prometheus/metrics")


class TensorRTLLM:
    """Satisfies `agent.engines.base.RanksEngine`."""

    name = "tensorrt-llm"
    executable = "trtllm-serve"
    capabilities = Capabilities(
        formats=frozenset({"safetensors"}),
        tasks=frozenset({"chat", "completion"}),
        accelerators=_CUDA,
        kv_cache_dtypes=MappingProxyType({"auto": 2.0, "fp8": 1.0, "nvfp4": 0.5625}),
        spread=Spread.RANKS,
        quantizations=_QUANTIZATIONS,
        offload=False,
        pipeline=True,
        data=False,
        experts=True,
        suits=MappingProxyType(
            {
                Hardware.NVIDIA: 30, Hardware.NVIDIA_SMALL: 60, "throughput": 30, "latency": 10, "long-context": 30,
                "structured-output": 30, "shared-prefixes": 30,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=256,
        max_model_len_cap=32768,
        kv_cache_dtype="auto",
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "an eighth of TensorRT-LLM's own number, which sizes its buffers for 2048",
                "max_model_len": "enough for documents and agents; sequences share the cache, so long ones cost only "
                "when they come",
                "kv_cache_dtype": "the model's own type, without loss",
                "max_num_batched_tokens": "TensorRT-LLM's own number",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "trtllm_num_requests_running",
            Metric.WAITING: "trtllm_num_requests_waiting",
            Metric.CACHE_USAGE: "trtllm_kv_cache_utilization",
            Metric.FIRST_TOKEN: "trtllm_time_to_first_token_seconds",
            Metric.INTER_TOKEN: "trtllm_time_per_output_token_seconds",
            Metric.PROMPT_TOKENS: "trtllm_prompt_tokens_total",
            Metric.GENERATED_TOKENS: "trtllm_generation_tokens_total",
        }
    )

    #: The documentation's quick start. NVIDIA's entry point puts compatibility libraries in place.
    container = Containerized(
        ("/opt/nvidia/nvidia_entrypoint.sh", "trtllm-serve"), shm_bytes=16 * GIB,
        ulimits=MappingProxyType({"memlock": -1, "stack": 64 * 1024**2}),
        caches=MappingProxyType({"HOME": CACHE_FOLDER}),
        files=(str(_SETTINGS),),
    )  # fmt: skip

    def __init__(self) -> None:
        self._options = Options.read("tensorrt_llm_options.txt", REFUSED_FLAGS, joins=True)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        if (native := configured_or_on_path(configured, self.executable)) is None:
            return None
        argv, origin = native
        version = ranks.package_version(argv[0], "tensorrt_llm") or "unknown"
        return Located(argv, version, origin, _CUDA, lists=("serve", "--help"))

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        return "the agent sets it" if name == "HF_HUB_OFFLINE" else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits, placement = plan.limits, plan.placement
        argv = [
            *plan.binary,
            plan.variant.path,
            *("--served_model_name", plan.model_name),
            *("--host", host),
            *("--port", str(port)),
            *("--tp_size", str(placement.tensor)),
            *("--pp_size", str(placement.pipeline)),
            *(("--ep_size", str(placement.tensor)) if placement.experts else ()),
            *("--max_seq_len", str(limits.max_model_len)),
            *("--max_batch_size", str(limits.max_num_seqs)),
            *("--max_num_tokens", str(limits.max_num_batched_tokens)),
            *("--kv_cache_dtype", limits.kv_cache_dtype),
            *("--kv_cache_free_gpu_memory_fraction", f"{ranks.share(plan, left_share):g}"),
            *_chunked(plan),
            *("--config", str(_SETTINGS)),
            *("--log_level", "info"),
            "--no-telemetry",
            *plan.extra_args,
        ]
        return Command(tuple(argv), {**placement.environment, "HF_HUB_OFFLINE": "1"})

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        # /health_generate computes for real, and would wait behind a long prefill.
        return openai.HEALTH

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)

    def loading(self, reply: HttpReply) -> bool:
        # The port is bound before the load, but nothing listens on it.
        return reply.status in {0, 503}

    def activity_request(self, plan: Plan) -> HttpRequest:
        return _METRICS

    def parse_activity(self, body: str) -> Activity:
        return activity_of(self.metrics, body)

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (openai.MODELS,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        (models,) = replies
        return openai.granted(models)

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return parse(log, plan)

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}  # it has no API key

    def batch_defaults(self, profile: ModelProfile, card: Card, task: str) -> tuple[int, int]:
        return self.defaults.max_num_batched_tokens, self.defaults.max_num_seqs

    def estimate(self, profile: ModelProfile, limits: Limits, task: str, placement: Placement, card: Card) -> Estimate:
        """As `--kv_cache_free_gpu_memory_fraction` will have it (`left_share`)."""
        room = Room.on(card, limits)
        request = Request(
            self.name, replace(card, free=room.free), tensor=placement.tensor, pipeline=placement.pipeline,
            expert=placement.experts, utilization=1.0, max_model_len=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens,
            kv_dtype=limits.kv_cache_dtype,
        )  # fmt: skip
        first = memory.estimate(profile, request)
        return memory.estimate(profile, replace(request, utilization=left_share(room, first.terms)))

    def host_terms(self, profile: ModelProfile, placement: Placement) -> tuple[MemoryTerm, ...]:
        """The server, its proxy, and a worker for each rank."""
        return ranks.processes(placement, 2, "server, proxy and workers")


def left_share(room: Room, terms: Sequence[MemoryTerm]) -> float:
    """`--kv_cache_free_gpu_memory_fraction`: the cache gets this share of what is free of the device once weights are
    loaded and the widest batch has run, whoever holds the rest (`_torch/pyexecutor/_util.py`: available = (total -
    peak) x share).

        share = (budget - weights - all else but the cache) / (free - weights - all else but the cache)
    """
    taken = sum(term.bytes for term in terms if term.name != CACHE)
    return ranks.rounded((min(room.budget, room.free) - taken) / max(1, room.free - taken))


def _chunked(plan: Plan) -> tuple[str, ...]:
    """Longer prompts than one batch holds are refused unless they are computed in chunks."""
    limits = plan.limits
    return ("--enable_chunked_prefill",) if limits.max_model_len > limits.max_num_batched_tokens else ()
