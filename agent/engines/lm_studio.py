"""LM Studio's headless daemon (llmster): the adapter, for plans. No instance of it is started on this node;
docs/reference/engines/lm-studio.md says why.

Facts are from the source of its command line (`lms`, 2026-08-13) and its documentation (2026-04-29); nothing ran here.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agent.engines import openai
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
)
from agent.engines.llama_cpp_failures import diagnose
from agent.engines.llama_cpp_memory import CACHE_BYTES, PHYSICAL_BATCH, memory_terms
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

#: Of `lms load`; spellings -> why a deployment may not give it.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--identifier": "`served_name` decides it",
        "--context-length": "`limits.max_model_len` decides it",
        "--parallel": "`limits.max_num_seqs` decides it",
        "--gpu": "`devices` decides it",
        "--ttl": "the model would be unloaded while the deployment is shown as ready",
        "--speculative-draft-simple --speculative-draft-model": "its memory is not part of the plan's budget",
        "--estimate-only --help": "it prints something and exits instead of serving",
        "--yes": "the agent sets it",
        "--host --port": "it computes on other hosts",
    }
)
#: The daemon, the model by its key ("$1") with its flags, and the server.
_SCRIPT = '{lms} daemon up && {lms} load "$@" && {lms} server start --port {port} --bind {host}'


class LmStudio:
    """Satisfies `agent.engines.base.LayersEngine`."""

    name = "lm-studio"
    executable = "lms"
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),  # and MLX's on Apple silicon, where mlx-lm serves it
        tasks=frozenset({"chat", "completion", "embedding"}),
        accelerators=frozenset({"cpu", "cuda", "rocm", "vulkan", "metal"}),
        kv_cache_dtypes=MappingProxyType({"f16": CACHE_BYTES["f16"]}),  # `lms load` has no flag for another
        most_devices=1,  # how it splits a model is a setting of the app
        offload=False,  # its share of layers is of a number that it does not tell
        not_run="lm-studio can only be planned: it is one daemon for a user, not a process for a deployment, so use "
        "llama.cpp, which serves the same file",
        suits=MappingProxyType(
            {
                Hardware.CPU: 30, Hardware.APPLE: 40, Hardware.NVIDIA: 80, Hardware.NVIDIA_SMALL: 50,
                Hardware.NVIDIA_OLD: 30, Hardware.AMD: 60, Hardware.AMD_SMALL: 50, Hardware.INTEL: 50,
                "development": 30,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=4,
        max_model_len_cap=4096,
        kv_cache_dtype="f16",
        max_num_batched_tokens=PHYSICAL_BATCH,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "LM Studio's own number of concurrent predictions",
                "max_model_len": "enough for a conversation; every sequence reserves its whole context",
                "kv_cache_dtype": "LM Studio's own type, without loss",
                "max_num_batched_tokens": "LM Studio's own evaluation batch",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType({})  # not offered
    container = None  # there is no image of it

    def __init__(self) -> None:
        self._options = Options.read("lm_studio_options.txt", REFUSED_FLAGS)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        return None

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        return memory_terms(profile, limits, task, placement)  # llama.cpp's, which it runs

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name == "LMS_SERVER_HOST":
            return "the node's `policy.bind` decides it"
        return "`devices` decides it" if name in DEVICE_VARIABLES else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits = plan.limits
        load = [
            plan.variant.path,
            *("--identifier", plan.model_name),
            *("--context-length", str(limits.max_model_len)),
            *("--parallel", str(limits.max_num_seqs)),
            *("--gpu", "max" if plan.devices else "off"),
            "--yes",
            *plan.extra_args,
        ]
        script = _SCRIPT.format(lms=" ".join(plan.binary), host=host, port=port)
        return Command(("/bin/sh", "-c", script, "lms", *load), plan.placement.environment)

    def startup_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)  # /v1/models lists what could be loaded, too

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return openai.MODELS

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return openai.MODELS

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0

    def activity_request(self, plan: Plan) -> HttpRequest:
        return _LOADED

    def parse_activity(self, body: str) -> Activity:
        return Activity(None, None, None)  # it does not say

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (_LOADED,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        """Of the only instance that is loaded; with several, whose it is cannot be told."""
        instances = _instances(openai.decoded(replies[0]))
        if len(instances) != 1:
            return Granted()
        (instance,) = instances
        config = instance.get("config")
        name, told = instance.get("id"), config if isinstance(config, dict) else {}
        length, parallel = told.get("context_length"), told.get("parallel")
        return Granted(
            max_model_len=length if isinstance(length, int) else None,
            max_num_seqs=parallel if isinstance(parallel, int) else None,
            model=name if isinstance(name, str) else "",
        )

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # the daemon keeps its log to itself

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}  # tokens are made in the app


_LOADED = HttpRequest("GET", "/api/v1/models")


def _instances(body: object) -> list[dict[str, Any]]:
    models = body.get("models") if isinstance(body, dict) else None
    found: list[dict[str, Any]] = []
    for model in models if isinstance(models, list) else []:
        loaded = model.get("loaded_instances") if isinstance(model, dict) else None
        found += [instance for instance in loaded if isinstance(instance, dict)] if isinstance(loaded, list) else []
    return found
