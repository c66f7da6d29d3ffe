"""Hugging Face's Text Generation Inference: the adapter of an engine that gets no new models since December 2025.

Read in the sources of version 3.3.7; options: `tgi_options.txt`. Not run by us: docs/reference/engines/tgi.md.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from agent.engines.executables import configured_or_on_path, version
from agent.engines.prometheus import activity_of
from agent.engines.ranks import Room
from agent.engines.tgi_failures import diagnose
from agent.engines.tgi_refusals import REFUSED_FLAGS
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.memory import tgi as memory
from agent.planning.memory.base import GIB, Card, Estimate, Request
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_VERSION = re.compile(r"text-generation-launcher (\S+)")
_CUDA, _BOTH = frozenset({"cuda"}), frozenset({"cuda", "rocm"})
#: Its image has kernels for 8.0, 8.6 and 9.0, and code for newer ones of the same kind; none for Blackwell.
_AMPERE, _ADA, _BLACKWELL = (8, 0), (8, 9), (10, 0)
_CUDA_ONLY = Support(_CUDA, least=_AMPERE, below=_BLACKWELL)
_EVERYWHERE = Support(_BOTH, least=_AMPERE, below=_BLACKWELL)
_FP8 = Support(_BOTH, least=_AMPERE, below=_BLACKWELL, native=_ADA, targets=("gfx94",))
_QUANTIZATIONS: Mapping[str, Support] = MappingProxyType(
    {
        "bf16": _EVERYWHERE,
        "f16": _EVERYWHERE,
        "f32": _EVERYWHERE,
        "fp8": _FP8,
        "fp8-block": _FP8,
        "int8": _CUDA_ONLY,  # compressed-tensors
        "awq": _CUDA_ONLY,
        "gptq": _CUDA_ONLY,
        "gptq-w8a16": _CUDA_ONLY,
        "w4a16": _CUDA_ONLY,
        "w8a16": _CUDA_ONLY,
        "bitsandbytes": _CUDA_ONLY,
    }
)
#: Requests that wait, for each that may run: beyond them TGI answers 429.
_QUEUED = 4
_INFO = HttpRequest("GET", "/info")
_GENERATE = openai.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1}})


class TGI:
    """Satisfies `agent.engines.base.RanksEngine`."""

    name = "tgi"
    executable = "text-generation-launcher"
    capabilities = Capabilities(
        formats=frozenset({"safetensors"}),
        tasks=frozenset({"chat", "completion"}),
        accelerators=_BOTH,
        kv_cache_dtypes=MappingProxyType({"auto": 2.0, "fp8_e4m3fn": 1.0, "fp8_e5m2": 1.0}),
        context_extending_flags=frozenset({"--rope-scaling", "--rope-factor"}),
        spread=Spread.RANKS,
        quantizations=_QUANTIZATIONS,
        offload=False,
        pipeline=False,
        data=False,
        suits=MappingProxyType(
            {
                Hardware.NVIDIA: 50, Hardware.NVIDIA_SMALL: 70, Hardware.NVIDIA_OLD: 40, Hardware.AMD: 40,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=128,
        max_model_len_cap=16384,
        kv_cache_dtype="auto",
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "TGI's own number of concurrent requests",
                "max_model_len": "enough for documents; sequences share the cache",
                "kv_cache_dtype": "the model's own type, without loss",
                "max_num_batched_tokens": "TGI's own number where it does not know the device",
                "gpu_memory_utilization": "TGI itself leaves a tenth of a device free",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "tgi_batch_current_size",
            Metric.WAITING: "tgi_queue_size",
            Metric.INTER_TOKEN: "tgi_request_mean_time_per_token_duration",
            Metric.PROMPT_TOKENS: "tgi_request_input_length_sum",
            Metric.GENERATED_TOKENS: "tgi_request_generated_tokens_sum",
        }
    )

    #: Dockerfile, README: NCCL wants a gigabyte of shared memory.
    container = Containerized(
        ("/tgi-entrypoint.sh",), shm_bytes=GIB, caches=MappingProxyType({"HOME": CACHE_FOLDER}),
        stop_seconds=90,  # GRACEFUL_TERMINATION_TIMEOUT
    )  # fmt: skip

    def __init__(self) -> None:
        self._options = Options.read("tgi_options.txt", REFUSED_FLAGS, joins=True)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        if (native := configured_or_on_path(configured, self.executable)) is None:
            return None
        argv, origin = native
        return Located(argv, version(argv, _VERSION), origin, _CUDA, lists=("--help",))

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        if name == "API_KEY":
            return ""
        if name in _VARIABLES:
            return _VARIABLES[name]
        # The launcher takes every flag from a variable too.
        flag = "--" + name.lower().replace("_", "-")
        return "flags are given in `extra_args`, where they are checked" if flag in self._options.values else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits, placement = plan.limits, plan.placement
        argv = [
            *plan.binary,
            *("--model-id", plan.variant.path),
            *("--hostname", host),
            *("--port", str(port)),
            *("--num-shard", str(placement.tensor)),
            *("--max-total-tokens", str(limits.max_model_len)),
            *("--max-input-tokens", str(limits.max_model_len - 1)),
            *("--max-batch-size", str(limits.max_num_seqs)),
            *("--max-concurrent-requests", str(limits.max_num_seqs * (1 + _QUEUED))),
            *("--max-batch-prefill-tokens", str(limits.max_num_batched_tokens)),
            *("--cuda-memory-fraction", f"{ranks.share(plan, memory_mark):g}"),
            *(() if limits.kv_cache_dtype == "auto" else ("--kv-cache-dtype", limits.kv_cache_dtype)),
            # Two instances must not have the same.
            *("--shard-uds-path", f"/tmp/tgi-{port}"),  # noqa: S108 - a socket's path is at most 107 characters long
            *("--master-port", str(_beside(port, 1))),
            *("--prometheus-port", str(_beside(port, 2))),
            *("--usage-stats", "off"),
            *plan.extra_args,
        ]
        return Command(tuple(argv), {**placement.environment, "HF_HUB_OFFLINE": "1"})

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return _GENERATE  # it has the name of no model in it: TGI's is the path

    def loading(self, reply: HttpReply) -> bool:
        return reply.status in {0, 503}

    def activity_request(self, plan: Plan) -> HttpRequest:
        return openai.METRICS

    def parse_activity(self, body: str) -> Activity:
        return activity_of(self.metrics, body)

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (_INFO,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        """The context. How many run at once TGI does not tell, and its name of the model is the path of its files."""
        info = openai.decoded(replies[0])
        length = info.get("max_total_tokens") if isinstance(info, dict) else None
        return Granted(max_model_len=length if isinstance(length, int) else None)

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # it tells blocks of the cache, but no bytes

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {"api_key": "API_KEY"}

    def batch_defaults(self, profile: ModelProfile, card: Card, task: str) -> tuple[int, int]:
        return self.defaults.max_num_batched_tokens, self.defaults.max_num_seqs

    def estimate(self, profile: ModelProfile, limits: Limits, task: str, placement: Placement, card: Card) -> Estimate:
        """As `--cuda-memory-fraction` will have it (`memory_mark`)."""
        room = Room.on(card, limits)
        request = Request(
            self.name, replace(card, free=room.free), tensor=placement.tensor, utilization=1.0,
            max_model_len=limits.max_model_len, max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens, kv_dtype=limits.kv_cache_dtype,
        )  # fmt: skip
        first = memory.estimate(profile, request)
        return memory.estimate(profile, replace(request, utilization=memory_mark(room, first.terms)))

    def host_terms(self, profile: ModelProfile, placement: Placement) -> tuple[MemoryTerm, ...]:
        """Launcher and router are small programs in Rust; a Python process for each shard."""
        return ranks.processes(placement, 1, "launcher, router and shards")


def memory_mark(room: Room, terms: Sequence[MemoryTerm]) -> float:
    """`--cuda-memory-fraction`: 0.9 of this share of the device is a mark up to which weights, warm-up and cache go,
    whoever else holds memory below it; graphs are captured above it (`utils/import_utils.py`,
    `get_cuda_free_memory`: free - (1 - 0.9 x share) x total).

        share = (budget - graphs + what others hold) / (0.9 x total)
    """
    graphs = sum(term.bytes for term in terms if term.name == memory.GRAPHS)
    mark = min(room.budget, room.free) - graphs + room.total - room.free
    return ranks.rounded(mark / (memory.WIGGLE_ROOM * room.total))


def _beside(port: int, distance: int) -> int:
    """Another port, derived from the instance's own so that two instances have different ones."""
    return 1024 + (port - 1024 + 20_000 * distance) % 64_000


_VARIABLES: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "the agent sets it",
    "TGI_WIGGLE_ROOM": "the plan's memory depends on it",
    "XPU_MEMORY_FRACTION": "the plan's memory depends on it",
    "PREFILL_CHUNKING": "prompts longer than a batch would be refused",
}
