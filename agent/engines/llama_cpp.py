"""llama.cpp's `llama-server`: the adapter. Its flags, probes, memory and failures, and nothing else about it.

Verified against build 10434 (flags: `llama_cpp_options.txt`) and, running, against build 11549 in the embedded
wheel. Memory: docs/decisions/0003-llama-cpp-memory.md.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import MappingProxyType

from agent.embedded.llama_server import spellings
from agent.engines import openai
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
)
from agent.engines.executables import configured_or_on_path, devices, version
from agent.engines.llama_cpp_devices import LIST_DEVICES, PREFIXES, flags, listed, names_of
from agent.engines.llama_cpp_failures import diagnose
from agent.engines.llama_cpp_memory import CACHE_BYTES, memory_terms, physical_batch
from agent.engines.llama_cpp_refusals import REFUSED_FLAGS
from agent.engines.llama_cpp_report import parse
from agent.engines.prometheus import activity
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_EMBEDDED = Path(__file__).parent.parent / "embedded" / "llama_server.py"
_VERSION = re.compile(r"version:\s*(.+)")
#: Counters that grow with every piece of work. A request that is being read counts only when its prompt is done, so
#: `requests_processing` must be looked at too.
_WORK = ("llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total", "llamacpp:n_decode_total")


class LlamaCpp:
    """Satisfies `agent.engines.base.Engine`."""

    name = "llama.cpp"
    executable = "llama-server"
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),
        tasks=frozenset({"chat", "completion", "embedding", "rerank"}),
        accelerators=frozenset({"cpu", *PREFIXES}),
        kv_cache_dtypes=CACHE_BYTES,
        context_extending_flags=frozenset(
            {"--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx"}
        ),
        pooling_flags=frozenset({"--pooling"}),
        suits=MappingProxyType(
            {
                Hardware.CPU: 10, Hardware.APPLE: 20, Hardware.NVIDIA: 40, Hardware.NVIDIA_SMALL: 10,
                Hardware.NVIDIA_OLD: 10, Hardware.AMD: 30, Hardware.AMD_SMALL: 10, Hardware.INTEL: 10,
                "development": 10,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=4,
        max_model_len_cap=4096,
        kv_cache_dtype="f16",
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "llama-server's own number of slots",
                "max_model_len": "enough for a conversation; every sequence reserves its whole context",
                "kv_cache_dtype": "llama-server's own type, without loss",
                "max_num_batched_tokens": "llama-server's own logical batch",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )

    metrics: Mapping[Metric, str] = MappingProxyType(
        {
            Metric.RUNNING: "llamacpp:requests_processing",
            Metric.WAITING: "llamacpp:requests_deferred",
            Metric.PROMPT_TOKENS: "llamacpp:prompt_tokens_total",
            Metric.GENERATED_TOKENS: "llamacpp:tokens_predicted_total",
        }
    )

    #: `.devops/*.Dockerfile`: the server lies in /app with its libraries, and writes nothing. NVIDIA's driver does:
    #: it has to compile the kernels for most devices before Ada (minutes).
    container = Containerized(
        ("/app/llama-server",), read_only_root=True, any_user=True,
        caches=MappingProxyType({"CUDA_CACHE_PATH": CACHE_FOLDER}),
    )  # fmt: skip

    def __init__(self) -> None:
        self._options = Options.read("llama_cpp_options.txt", REFUSED_FLAGS)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        if native := configured_or_on_path(configured, self.executable):
            argv, origin = native
            found = listed(devices(argv, LIST_DEVICES, lambda text: bool(listed(text))))
            accelerators = frozenset({"cpu", *(device.accelerator for device in found)})
            return Located(argv, version(argv, _VERSION), origin, accelerators, found, lists=("--help",))
        return None if configured else _embedded()

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        return memory_terms(profile, limits, task, placement)

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        # llama-server takes every flag from a variable too.
        return "flags are given in `extra_args`, where they are checked" if name.startswith("LLAMA_ARG_") else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits = plan.limits
        batch = physical_batch(limits, plan.task)
        argv = [
            *plan.binary,
            *("--model", plan.variant.path),
            *("--alias", plan.model_name),
            *("--host", host),
            *("--port", str(port)),
            # The context is given for all slots together, and each gets an equal, fixed part: a unified cache would
            # let one long sequence take the room that the plan promised to the others.
            *("--ctx-size", str(limits.max_model_len * limits.max_num_seqs)),
            *("--parallel", str(limits.max_num_seqs)),
            "--no-kv-unified",
            *("--batch-size", str(max(limits.max_num_batched_tokens, batch))),
            *("--ubatch-size", str(batch)),
            *("--threads", str(limits.threads)),
            *("--cache-type-k", limits.kv_cache_dtype),
            *("--cache-type-v", limits.kv_cache_dtype),
            *("--flash-attn", "on"),  # a quantized V cache needs it, and the memory model is that of this kernel
            *flags(plan),
            *("--fit", "off"),  # it would shrink the context behind the plan's back
            *("--cache-ram", "0"),  # 8 GiB by default, outside the budget
            *("--ctx-checkpoints", "0"),  # 32 copies of a slot's state for some models, outside the budget
            *("--log-verbosity", "4"),  # tells the sizes of its buffers at the start; 5 is for debugging
            "--metrics",
            "--slots",
            "--no-ui",
            "--offline",  # the artifact is there; nothing may be fetched instead
            *("--cors-origins", "localhost"),  # by default any web page may read answers from a local port
            *("--sse-ping-interval", "2"),  # seconds; an open stream ends only at a ping, so this bounds the stop
            *_TASK_FLAGS.get(plan.task, ()),
            *plan.extra_args,
        ]
        return Command(tuple(argv), plan.placement.environment)

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return openai.HEALTH

    def inference_probe(self, plan: Plan) -> HttpRequest:
        if plan.task == "embedding":
            return openai.post("/v1/embeddings", {"input": "a"})
        if plan.task == "rerank":
            return openai.post("/v1/rerank", {"query": "a", "documents": ["a"]})
        # Without the prompt cache the whole way is computed. The grammar keeps the token printable: a model may
        # answer bytes that are no text, and the server turns those into status 500.
        body = {"prompt": "a", "n_predict": 1, "cache_prompt": False, "grammar": "root ::= [a-z ]"}
        return openai.post("/completion", body)

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0 or (reply.status == 503 and "Loading model" in reply.body)

    def activity_request(self, plan: Plan) -> HttpRequest:
        return openai.METRICS

    def parse_activity(self, body: str) -> Activity:
        names = self.metrics
        return activity(body, names[Metric.RUNNING], names[Metric.WAITING], *_WORK)

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (HttpRequest("GET", "/slots"), openai.MODELS)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        slots = openai.decoded(replies[0])
        each = [slot.get("n_ctx") for slot in slots if isinstance(slot, dict)] if isinstance(slots, list) else []
        contexts = [context for context in each if isinstance(context, int)]
        model = openai.granted(replies[1]).model
        return Granted(max_model_len=min(contexts, default=None), max_num_seqs=len(contexts) or None, model=model)

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return parse(log, names_of(plan))

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {"api_key": "LLAMA_API_KEY"}


_TASK_FLAGS: Mapping[str, tuple[str, ...]] = {"embedding": ("--embedding",), "rerank": ("--rerank",)}


def _embedded() -> Located | None:
    """Our launcher over the `xllamacpp` wheel, where it is installed; found without importing it.

    The published wheel is built for the CPU alone, and the launcher takes no device.

    Run by path, without PYTHON* variables (-E) and without its folder in front of the module path (-P): neither the
    working directory nor the deployment's environment can put other modules in its way.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    try:
        wheel = distribution_version("xllamacpp")
    except PackageNotFoundError:
        return None
    argv = (sys.executable, "-E", "-P", str(_EMBEDDED))
    return Located(argv, f"xllamacpp {wheel}", "embedded", options=spellings())
