"""SGLang: the adapter. Its flags, probes, memory and failures, and nothing else about it.

Read in the sources of versions 0.5.19 to 0.5.23; options: `sglang_options.txt`. Not run by us:
docs/reference/engines/sglang.md.
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
from agent.engines.sglang_failures import diagnose
from agent.engines.sglang_refusals import REFUSED_FLAGS
from agent.engines.sglang_report import parse
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import CONTEXT, MeasuredTerm
from agent.planning.memory import sglang as memory
from agent.planning.memory.base import GIB, Card, Estimate, Request
from agent.planning.memory.decision import CONTEXT as CONTEXT_BYTES
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

#: The term of what the static share must leave.
REST = "activations and graphs"
_OUTSIDE = "outside of PyTorch"

_CUDA, _BOTH = frozenset({"cuda"}), frozenset({"cuda", "rocm"})
_AMPERE, _ADA, _BLACKWELL = (8, 0), (8, 9), (10, 0)
_CDNA3 = ("gfx94", "gfx95")  # and CDNA 4: those with FP8
_W4A16 = Support(_CUDA, least=_AMPERE)  # Marlin
#: `get_min_capability` in `layers/quantization/`; INT8 kernels end with Hopper.
_QUANTIZATIONS: Mapping[str, Support] = MappingProxyType(
    {
        "bf16": Support(_BOTH, least=_AMPERE),
        "f16": Support(_BOTH, least=(7, 5)),
        "f32": Support(_BOTH, least=(7, 5)),
        "fp8": Support(_BOTH, least=_AMPERE, native=_ADA, targets=_CDNA3),
        "fp8-block": Support(_BOTH, least=_AMPERE, native=_ADA, targets=_CDNA3),
        "int8": Support(_CUDA, least=_AMPERE, below=_BLACKWELL),
        "awq": _W4A16,
        "gptq": _W4A16,
        "gptq-w8a16": _W4A16,
        "w4a16": _W4A16,
        "w8a16": _W4A16,
        "nvfp4": Support(_CUDA, least=_AMPERE, native=_BLACKWELL),
        "nvfp4-w4a16": Support(_CUDA, least=_AMPERE),
        "mxfp4": Support(_BOTH, least=_AMPERE, native=_BLACKWELL, targets=_CDNA3),
        "modelopt": Support(_CUDA, least=_ADA),  # mixed FP8 and NVFP4
        "bitsandbytes": Support(_CUDA, least=(7, 5)),
    }
)
_SEQUENCES = "effective_max_running_requests_per_dp"
_INFO = HttpRequest("GET", "/server_info")


class SGLang:
    """Satisfies `agent.engines.base.RanksEngine`."""

    name = "sglang"
    executable = "sglang"
    capabilities = Capabilities(
        formats=frozenset({"safetensors"}),
        tasks=frozenset({"chat", "completion", "embedding"}),
        accelerators=_BOTH,
        kv_cache_dtypes=MappingProxyType({"auto": 2.0, "bf16": 2.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0}),
        context_extending_flags=frozenset({"--json-model-override-args"}),
        pooling_flags=frozenset(),
        spread=Spread.RANKS,
        quantizations=_QUANTIZATIONS,
        offload=False,
        pipeline=True,
        data=True,
        experts=True,
        suits=MappingProxyType(
            {
                Hardware.CPU: 60, Hardware.NVIDIA: 20, Hardware.NVIDIA_SMALL: 30, Hardware.AMD: 20,
                Hardware.AMD_SMALL: 40, Hardware.INTEL: 30, "throughput": 20, "latency": 20, "long-context": 20,
                "structured-output": 10, "shared-prefixes": 10,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=32,
        max_model_len_cap=32768,
        kv_cache_dtype="auto",
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "as many as SGLang captures decode graphs for on a common device",
                "max_model_len": "enough for documents and agents; sequences share the cache, so long ones cost only "
                "when they come",
                "kv_cache_dtype": "the model's own type, without loss",
                "max_num_batched_tokens": "SGLang's own chunk of prefill on a common device",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "sglang:num_running_reqs",
            Metric.WAITING: "sglang:num_queue_reqs",
            Metric.CACHE_USAGE: "sglang:token_usage",
            Metric.FIRST_TOKEN: "sglang:time_to_first_token_seconds",
            Metric.INTER_TOKEN: "sglang:inter_token_latency_seconds",
            Metric.PROMPT_TOKENS: "sglang:prompt_tokens_total",
            Metric.GENERATED_TOKENS: "sglang:generation_tokens_total",
            Metric.PREEMPTIONS: "sglang:num_retracted_requests_total",
        }
    )

    #: docs/get-started/install, docker/compose.yaml: the image has no entry point.
    container = Containerized(
        ("python3", "-m", "sglang.launch_server"), shm_bytes=32 * GIB,
        ulimits=MappingProxyType({"memlock": -1, "stack": 64 * 1024**2}),
        caches=MappingProxyType({"HOME": CACHE_FOLDER}),
    )  # fmt: skip

    def __init__(self) -> None:
        self._options = Options.read("sglang_options.txt", REFUSED_FLAGS, joins=True)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        if (native := configured_or_on_path(configured, self.executable)) is None:
            return None
        argv, origin = native
        version = ranks.package_version(argv[0], "sglang") or "unknown"
        # Without the backend's name it also lists options of servers of other kinds.
        lists = ("serve", "--model-type", "llm", "--help") if self._is_script(argv) else ("--help",)
        return Located(argv, version, origin, ranks.accelerators(argv[0], _CUDA), lists=lists)

    def _is_script(self, argv: Sequence[str]) -> bool:
        """`sglang`, and not `python3 -m sglang.launch_server`, which takes no subcommand."""
        return Path(argv[-1]).name == self.executable

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        return _VARIABLES.get(name, "")

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits, placement = plan.limits, plan.placement
        argv = [
            *plan.binary,
            *(("serve",) if self._is_script(plan.binary) else ()),
            *("--model-path", plan.variant.path),
            *("--served-model-name", plan.model_name),
            *("--host", host),
            *("--port", str(port)),
            *("--tp-size", str(placement.tensor)),
            *("--pp-size", str(placement.pipeline)),
            *("--dp-size", str(placement.data)),
            *(("--ep-size", str(placement.tensor)) if placement.experts else ()),
            *("--context-length", str(limits.max_model_len)),
            *("--max-running-requests", str(limits.max_num_seqs)),
            *("--chunked-prefill-size", str(limits.max_num_batched_tokens)),
            *("--max-prefill-tokens", str(limits.max_num_batched_tokens)),
            *("--kv-cache-dtype", limits.kv_cache_dtype),
            *("--mem-fraction-static", f"{ranks.share(plan, static_share):g}"),
            *_token_cap(plan),
            "--enable-metrics",
            *("--log-level", "info"),  # its lines tell the sizes of weights and cache
            # The agent's own probes would be most of the log.
            *("--uvicorn-access-log-exclude-prefixes", "/health", "/metrics", "/server_info", "/v1/models"),
            *_TASK_FLAGS.get(plan.task, ()),
            *plan.extra_args,
        ]
        return Command(tuple(argv), {**plan.placement.environment, **_ENVIRONMENT})

    def startup_probe(self, plan: Plan) -> HttpRequest:
        # Not /ready, which answers the same since 0.5.20: in the images for CUDA 12 it does not exist.
        return openai.HEALTH

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)

    def loading(self, reply: HttpReply) -> bool:
        # The port is closed until the weights are loaded; then everything is 503 until the warm-up is done.
        return reply.status in {0, 503}

    def activity_request(self, plan: Plan) -> HttpRequest:
        return openai.METRICS

    def parse_activity(self, body: str) -> Activity:
        return activity_of(self.metrics, body)

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (openai.MODELS, _INFO)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        models, info = replies
        body = openai.decoded(info)
        states = body.get("internal_states") if isinstance(body, dict) else None
        if not isinstance(states, list):
            return openai.granted(models)
        each = [state.get(_SEQUENCES) for state in states if isinstance(state, dict)]
        sequences = min((count for count in each if isinstance(count, int)), default=None)
        tokens = body.get("max_total_num_tokens")  # of one replica; each has a state
        total = tokens * len(states) if isinstance(tokens, int) and states else None
        return replace(openai.granted(models), max_num_seqs=sequences, kv_tokens=total)

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return parse(log, plan)

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}  # its API key can only be given on the command line

    def batch_defaults(self, profile: ModelProfile, card: Card, task: str) -> tuple[int, int]:
        found = memory.defaults(Request(self.name, card), profile)
        return found.max_num_batched_tokens, found.max_num_seqs

    def estimate(self, profile: ModelProfile, limits: Limits, task: str, placement: Placement, card: Card) -> Estimate:
        """As `--mem-fraction-static` will have it (`static_share`). What the share must leave counts with its whole
        uncertainty: it cannot take anything back from a cache that is allocated before.
        """
        room = Room.on(card, limits)
        free = max(1, room.free - CONTEXT_BYTES)
        request = Request(
            self.name, replace(card, total=free, free=free), tensor=placement.tensor, pipeline=placement.pipeline,
            expert=placement.experts, utilization=0.5, max_model_len=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens,
            kv_dtype=limits.kv_cache_dtype,
        )  # fmt: skip
        first = memory.estimate(profile, request)
        rest = first.beyond.bytes + first.beyond.uncertainty if first.beyond is not None else 0
        others = (
            MemoryTerm(CONTEXT, CONTEXT_BYTES, "driver and libraries, before the engine measures what is free"),
            MemoryTerm(REST, rest, "what the static share leaves: as much as they may take"),
        )
        share = static_share(room, (*first.terms, *others))
        found = memory.estimate(profile, replace(request, utilization=share))
        return replace(found, terms=(*found.terms, *others), beyond=None)

    def host_terms(self, profile: ModelProfile, placement: Placement) -> tuple[MemoryTerm, ...]:
        """The API server, the detokenizer, and with replicas their controller; a scheduler for each rank."""
        return ranks.processes(placement, 2 + (placement.data > 1), "API server, detokenizer and schedulers")


def static_share(room: Room, terms: Sequence[MemoryTerm]) -> float:
    """`--mem-fraction-static`: weights and cache get this share of what is free once context and NCCL are there; the
    rest of it is left to activations and graphs (`mem_cache/kv_cache_configurator.py`, `_profile_available_bytes`:
    the pool is what is free after loading, less (1 - share) x what was free before).

        share = (budget - context - NCCL - activations and graphs) / (free - context - NCCL)
    """
    before = sum(term.bytes for term in terms if term.name in {CONTEXT, _OUTSIDE})
    static = min(room.budget, room.free) - ranks.beside(terms)
    return ranks.rounded(static / max(1, room.free - before), most=0.99)


def _token_cap(plan: Plan) -> tuple[str, ...]:
    """Where others hold much of a device and give it back, the same share would be more than the budget."""
    room = ranks.Room.of(plan)
    if room is None or room.free >= _MOSTLY_FREE * room.total or plan.capacity is None:
        return ()
    tokens = plan.capacity.kv_tokens // plan.placement.data
    return ("--max-total-tokens", str(tokens)) if tokens >= plan.limits.max_model_len else ()


#: Of a device: then what others hold is too little for them to give back much.
_MOSTLY_FREE = 0.9
_TASK_FLAGS: Mapping[str, tuple[str, ...]] = {"embedding": ("--is-embedding",)}
_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",  # the artifact is there; nothing may be fetched instead
    "SGL_FORCE_SHUTDOWN": "1",  # the agent drains before it sends TERM, and the engine's own drain has no end
    # Else /health computes a token and waits up to 20 s for it: a long prefill would fail it. The inference probe asks
    # for one when the engine is idle.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
}
_VARIABLES: Mapping[str, str] = {
    "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": "the plan's memory depends on when the cache is sized",
    "SGLANG_USE_MODELSCOPE": "it downloads; `model` names what is fetched and verified",
    "SGLANG_USE_MLX": "another engine serves Apple silicon",
    **dict.fromkeys(_ENVIRONMENT, "the agent sets it"),
}
