"""vLLM: the adapter. Its flags, probes, memory and failures, and nothing else about it.

Read in the sources of versions 0.32 and 0.33 (flags: `vllm_options.txt`), and run with the CPU build of 0.32:
docs/reference/engines/vllm.md has what was seen.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

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
from agent.engines.executables import configured_or_on_path
from agent.engines.prometheus import activity_of, labels
from agent.engines.vllm_failures import diagnose
from agent.engines.vllm_refusals import REFUSED_FLAGS, REFUSED_VARIABLES
from agent.engines.vllm_report import parse
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import CACHE, HOST, PROCESS, MeasuredTerm
from agent.planning.memory import vllm as memory
from agent.planning.memory import vllm_cpu
from agent.planning.memory.base import GIB, Card, Estimate, Request
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_ALL = frozenset({"cpu", "cuda", "rocm", "sycl"})
_GPUS, _CUDA, _CUDA_ROCM = _ALL - {"cpu"}, frozenset({"cuda"}), frozenset({"cuda", "rocm"})
#: The wheels and images have no kernels for older devices.
_TURING, _AMPERE, _ADA, _BLACKWELL = (7, 5), (8, 0), (8, 9), (10, 0)
#: AMD's that have FP8 (`supports_fp8` in `platforms/rocm.py`, which also names CDNA 2: it has none, and fails later).
_WITH_FP8 = ("gfx94", "gfx95", "gfx12")
#: Below Ada weights only (Marlin); vLLM itself would on Turing too.
_FP8 = Support(_GPUS, least=_AMPERE, native=_ADA, targets=_WITH_FP8)
#: `get_min_capability` in `model_executor/layers/quantization/`, and the kernels in `model_executor/kernels/linear/`:
#: on a CPU FP8 needs AMX, and packed weights must have 4 bits. GGUF and bitsandbytes are plugins.
_QUANTIZATIONS: Mapping[str, Support] = MappingProxyType(
    {
        "bf16": Support(_ALL, least=_TURING, native=_AMPERE),  # computed in f16 on Turing
        "f16": Support(_ALL, least=_TURING),
        "f32": Support(_ALL, least=_TURING),
        "fp8": _FP8,
        "fp8-block": _FP8,
        "int8": Support(_CUDA_ROCM | {"cpu"}, least=_TURING, below=_BLACKWELL),
        "awq": Support(_ALL, least=_TURING),
        "gptq": Support(_ALL, least=_TURING),
        "gptq-w8a16": Support(_CUDA_ROCM, least=_TURING),
        "w4a16": Support(_ALL, least=_TURING),
        "w8a16": Support(_CUDA_ROCM, least=_TURING),
        "nvfp4": Support(_CUDA, least=_AMPERE, native=_BLACKWELL),
        "nvfp4-w4a16": Support(_CUDA, least=_AMPERE),
        "mxfp4": Support(_CUDA_ROCM, least=_AMPERE, native=_BLACKWELL, targets=_WITH_FP8),
    }
)
#: Seconds that requests get to finish at SIGTERM. The agent drains before that; this is for those that came between.
_SHUTDOWN = 5
#: On a CPU, three processes with the smallest model: 0.56 + 0.52 + 0.63 GB resident.
_CPU_PROCESSES = int(1.75e9)


class VLLM:
    """Satisfies `agent.engines.base.RanksEngine`.

    On a CPU (`Placement(accelerator="cpu")`, one rank) the cache gets exactly what `estimate` says of its pool: whole
    blocks, in what `card.free` leaves beside the other terms and `host_terms`. The plan carries it as
    `capacity.kv_bytes`, and `command` passes it on.
    """

    name = "vllm"
    executable = "vllm"
    capabilities = Capabilities(
        formats=frozenset({"safetensors", "pytorch"}),
        tasks=frozenset({"chat", "completion", "embedding", "rerank"}),
        accelerators=_ALL,
        kv_cache_dtypes=MappingProxyType(
            {
                "auto": 2.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0,
                "int8_per_token_head": 1.0, "fp8_per_token_head": 1.0, "int4_per_token_head": 0.5, "nvfp4": 0.5625,
            }
        ),
        spread=Spread.RANKS,
        # It sizes its cache after these are loaded, within its share.
        sharing_flags=frozenset({"--enable-lora", "--speculative-config", "--spec-method"}),
        quantizations=_QUANTIZATIONS,
        offload=False,
        pipeline=True,
        data=True,
        experts=True,
        suits=MappingProxyType(
            {
                Hardware.CPU: 50, Hardware.NVIDIA: 10, Hardware.NVIDIA_SMALL: 20, Hardware.AMD: 10,
                Hardware.AMD_SMALL: 30, Hardware.INTEL: 20, "throughput": 10, "latency": 30, "long-context": 10,
                "structured-output": 20, "shared-prefixes": 20,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=256,
        max_model_len_cap=32768,
        kv_cache_dtype="auto",
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.92,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "vLLM's own number on a common device",
                "max_model_len": "enough for documents and agents; sequences share the cache, so long ones cost only "
                "when they come",
                "kv_cache_dtype": "the model's own type, without loss",
                "max_num_batched_tokens": "vLLM's own batch on a common device",
                "gpu_memory_utilization": "vLLM's own share; the rest is for what it takes after its cache is sized",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "vllm:num_requests_running",
            Metric.WAITING: "vllm:num_requests_waiting",
            Metric.CACHE_USAGE: "vllm:kv_cache_usage_perc",
            Metric.FIRST_TOKEN: "vllm:time_to_first_token_seconds",
            Metric.INTER_TOKEN: "vllm:inter_token_latency_seconds",
            Metric.PROMPT_TOKENS: "vllm:prompt_tokens_total",
            Metric.GENERATED_TOKENS: "vllm:generation_tokens_total",
            Metric.PREEMPTIONS: "vllm:num_preemptions_total",
        }
    )

    #: `docker/Dockerfile`, docs/deployment/docker.md. What it compiles lies below HOME. PyTorch wants the name of
    #: a user for its caches, and the image need not know this one.
    container = Containerized(
        ("vllm",), shm_bytes=16 * GIB, any_user=True, caches=MappingProxyType({"HOME": CACHE_FOLDER}),
        environment=MappingProxyType({"USER": "vllm"}),
    )  # fmt: skip

    def __init__(self) -> None:
        self._options = Options.read("vllm_options.txt", REFUSED_FLAGS, joins=True)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        if (native := configured_or_on_path(configured, self.executable)) is None:
            return None
        argv, origin = native
        version = ranks.package_version(argv[0], "vllm") or "unknown"
        accelerators = ranks.accelerators(argv[0], _CUDA)
        return Located(argv, version, origin, accelerators, lists=("serve", "--help=all"))

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        return "`devices` decides it" if name in DEVICE_VARIABLES else REFUSED_VARIABLES.get(name, "")

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits, placement = plan.limits, plan.placement
        argv = [
            *plan.binary,
            "serve",
            plan.variant.path,
            *("--served-model-name", plan.model_name),
            *("--host", host),
            *("--port", str(port)),
            *("--max-model-len", str(limits.max_model_len)),
            *("--max-num-seqs", str(limits.max_num_seqs)),
            *("--max-num-batched-tokens", str(limits.max_num_batched_tokens)),
            *("--kv-cache-dtype", limits.kv_cache_dtype),
            *("--tensor-parallel-size", str(placement.tensor)),
            *("--pipeline-parallel-size", str(placement.pipeline)),
            *("--data-parallel-size", str(placement.data)),
            *(("--enable-expert-parallel",) if placement.experts else ()),
            *(_cpu_flags(plan) if placement.accelerator == "cpu" else _share(limits)),
            *("--runner", "generate" if plan.task in {"chat", "completion"} else "pooling"),
            *("--shutdown-timeout", str(_SHUTDOWN)),
            # The agent's own probes would be most of the log.
            *("--disable-access-log-for-endpoints", "/health,/metrics,/v1/models"),
            *plan.extra_args,
        ]
        return Command(tuple(argv), {**placement.environment, **_environment(plan)})

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)

    def loading(self, reply: HttpReply) -> bool:
        # Nobody listens before the model is loaded; 503 means that the engine core died.
        return reply.status == 0

    def activity_request(self, plan: Plan) -> HttpRequest:
        return openai.METRICS

    def parse_activity(self, body: str) -> Activity:
        return activity_of(self.metrics, body)

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (openai.MODELS, openai.METRICS)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        models, metrics = replies
        caches = labels(metrics.body, "vllm:cache_config_info") if metrics.status == 200 else ()
        tokens = [cache.get("kv_cache_size_tokens", "") for cache in caches]  # of each replica
        told = bool(tokens) and all(map(str.isdecimal, tokens))
        return replace(openai.granted(models), kv_tokens=sum(map(int, tokens)) if told else None)

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return parse(log, plan)

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {"api_key": "VLLM_API_KEY"}

    def batch_defaults(self, profile: ModelProfile, card: Card, task: str) -> tuple[int, int]:
        return memory.usual_batch(card, memory.NEWEST, profile.context_length or 2048)

    def estimate(self, profile: ModelProfile, limits: Limits, task: str, placement: Placement, card: Card) -> Estimate:
        request = Request(
            self.name,
            card,
            version=memory.NEWEST,
            tensor=placement.tensor,
            pipeline=placement.pipeline,
            data=placement.data,
            expert=placement.experts,
            utilization=limits.gpu_memory_utilization,
            max_model_len=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            kv_dtype=limits.kv_cache_dtype,
        )
        if placement.accelerator != "cpu":
            return memory.estimate(profile, request)
        beside = sum(term.bytes + term.uncertainty for term in self.host_terms(profile, placement))
        free = (card.total if card.free is None else card.free) - beside
        return vllm_cpu.estimate(profile, replace(request, card=replace(card, free=max(0, free))))

    def host_terms(self, profile: ModelProfile, placement: Placement) -> tuple[MemoryTerm, ...]:
        if placement.accelerator == "cpu":
            source = f"API server, engine core and worker: {_CPU_PROCESSES / GIB:.2f} GiB with the smallest model"
            return (MemoryTerm(PROCESS, _CPU_PROCESSES, source, uncertainty=_CPU_PROCESSES // 5),)
        return ranks.processes(placement, 1 + placement.data, "API server, engine core, a worker for each device")


def _share(limits: Limits) -> tuple[str, ...]:
    return ("--gpu-memory-utilization", f"{limits.gpu_memory_utilization:g}") if limits.gpu_memory_utilization else ()


def _cpu_flags(plan: Plan) -> tuple[str, ...]:
    """The pool, or else the engine would want most of the host's memory. Compiling takes a compiler on the host and
    most of the start, and gains little there: who wants it gives --no-enforce-eager in `extra_args`.
    """
    size = plan.capacity.kv_bytes if plan.capacity is not None else 0
    if not size:  # a plan that does not count it
        size = sum(term.bytes for budget in plan.budgets if budget.pool == HOST for term in budget.terms
                   if term.name == CACHE)  # fmt: skip
    return ("--kv-cache-memory-bytes", str(size), "--enforce-eager")


def _environment(plan: Plan) -> Mapping[str, str]:
    # The artifact is there, so nothing may be fetched instead; how long loading may take is the startup probe's to say.
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENGINE_READY_TIMEOUT_S": "86400"}
    if plan.runtime == "process":
        # Its processes talk by sockets in the temporary folder, whose whole path may be too long for a socket's name;
        # they all start in the instance's own directory, which holds that folder.
        found["VLLM_RPC_BASE_PATH"] = "tmp"
    if plan.placement.accelerator == "cpu":
        # Bound threads of several engines would sit on the same cores.
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(plan.limits.threads)}
    return found
