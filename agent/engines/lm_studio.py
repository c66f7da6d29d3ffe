"""LM Studio's headless daemon (llmster): the adapter. Its launcher (`agent/embedded/lm_studio.sh`) gives each instance
a daemon and a home of its own.

Facts are from the source of its command line (`lms`, 2026-08-13), its documentation (2026-04-29) and what others saw of
the daemon, whose source is not open; nothing of it ran here. docs/reference/engines/lm-studio.md says which is which.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from agent.engines.executables import configured_or_on_path
from agent.engines.llama_cpp_memory import CACHE_BYTES, PHYSICAL_BATCH
from agent.engines.llama_cpp_memory import memory_terms as llama_cpp_terms
from agent.engines.lm_studio_failures import diagnose
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.memory.base import MIB
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_LAUNCHER = Path(__file__).parent.parent / "embedded" / "lm_studio.sh"
#: Its engines' folders (`extensions/backends/llama.cpp-linux-x86_64-nvidia-cuda12-avx2-2.31.2`): what they compute on.
_ENGINES = re.compile(r"llama\.cpp.*?-(cuda|rocm|vulkan|metal)|llama\.cpp")
#: What the daemon, its node processes and the HTTP server take besides llama.cpp.
_DAEMON = MemoryTerm("LM Studio", 512 * MIB, "estimate, not measured", uncertainty=256 * MIB)

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
        "--exact --local --yes": "the agent sets it",
        "--host --port": "it computes on other hosts",
    }
)


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
        split=False,
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
    container = None  # its only image is a preview for CPUs, of whose start nothing is documented

    def __init__(self) -> None:
        self._options = Options.read("lm_studio_options.txt", REFUSED_FLAGS)

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """The daemon, and the `lms` that was installed with it: no other knows its key."""
        native = configured_or_on_path(configured, self.executable)
        if native is None:
            return None
        (named, *_), origin = native
        for lms in dict.fromkeys((Path(named), Path(named).resolve())):
            home = lms.parent.parent
            try:
                place = json.loads((home / ".internal" / "llmster-install-location.json").read_bytes())
                daemon = Path(place["path"])
                engines = [path.name for path in (home / "extensions" / "backends").glob("llama.cpp*")]
            except (OSError, ValueError, TypeError, KeyError):
                continue
            if daemon.is_file():
                found = {match[1] or "cpu" for name in engines if (match := _ENGINES.match(name))}
                return Located((str(daemon), str(lms)), daemon.parent.name, origin, frozenset({"cpu", *found}))
        return None  # the app alone has no daemon

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        """llama.cpp's, which it runs, and what it adds."""
        host, *devices = llama_cpp_terms(profile, limits, task, placement)
        return ((*host, _DAEMON), *devices)

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        return tuple(self._options.check(arguments))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        if name.startswith("LLAMA_ARG_"):
            return "it would change llama-server's flags behind the plan's back"
        return "the agent sets what `lms` and its daemon read" if name.startswith("LMS_") else ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits = plan.limits
        load = [
            *("--identifier", plan.model_name),
            *("--context-length", str(limits.max_model_len)),
            *("--parallel", str(limits.max_num_seqs)),
            *("--gpu", "max" if plan.devices else "off"),
            *plan.extra_args,
        ]
        how = (plan.variant.path, plan.placement.accelerator, host, str(port))
        return Command(
            ("/bin/sh", str(_LAUNCHER), *how, *plan.binary, *load),
            plan.placement.environment if plan.devices else _NO_DEVICE,
        )

    def startup_probe(self, plan: Plan) -> HttpRequest:
        """The models, and what is loaded of them. By a status it tells nothing: what it does not know is a 200, too."""
        return _LOADED

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return _GREETING

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return _GREETING

    def inference_probe(self, plan: Plan) -> HttpRequest:
        return openai.inference(plan)

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0 or (reply.status == 200 and not _instances(openai.decoded(reply)))

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


#: What `lms` itself asks for to know whether the server is up.
_GREETING = HttpRequest("GET", "/lmstudio-greeting")
_LOADED = HttpRequest("GET", "/api/v1/models")
_NO_DEVICE = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "ROCR_VISIBLE_DEVICES": "-1"}


def _instances(body: object) -> list[dict[str, Any]]:
    models = body.get("models") if isinstance(body, dict) else None
    found: list[dict[str, Any]] = []
    for model in models if isinstance(models, list) else []:
        loaded = model.get("loaded_instances") if isinstance(model, dict) else None
        found += [instance for instance in loaded if isinstance(instance, dict)] if isinstance(loaded, list) else []
    return found
