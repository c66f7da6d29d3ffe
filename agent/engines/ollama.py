"""Ollama: the adapter. Its launcher (`agent/embedded/ollama.sh`) makes a store of links, and has the model loaded.

Facts are from the source of v0.33 (`envconfig/config.go`, `manifest/`, `server/`, `llm/llama_server.go`); nothing of it
ran here.
"""

# ruff: noqa: ARG002 - the signatures are those of all engines, whether this one needs each argument or not

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from agent.engines import openai
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
from agent.engines.executables import configured_or_on_path, version
from agent.engines.llama_cpp_memory import CACHE_BYTES, PHYSICAL_BATCH
from agent.engines.llama_cpp_memory import memory_terms as llama_cpp_terms
from agent.engines.ollama_failures import diagnose
from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.ledger import MeasuredTerm
from agent.planning.memory.base import MIB
from agent.planning.memory.ollama import RESERVE
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

_LAUNCHER = Path(__file__).parent.parent / "embedded" / "ollama.sh"
#: Where a server of another version runs on this host, that one's is told first.
_VERSION_SAID = re.compile(r"(?s)(?:.*client )?version is (\S+)")
#: Folders of the libraries beside the executable, as its archive has them -> what they compute on.
_LIBRARIES: Mapping[str, str] = MappingProxyType({"cuda_*": "cuda", "rocm*": "rocm"})
#: `types/model/name.go`: [NAMESPACE/]MODEL[:TAG].
_NAME = re.compile(r"(?:(\w[\w-]{0,79})/)?(\w[\w.-]{0,79})(?::(\w[\w.-]{0,79}))?", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_RESERVE = MemoryTerm("reserve", RESERVE, "Ollama leaves it free of each device")
#: The server in front of llama-server, written in Go.
_SERVER = MemoryTerm("Ollama", 64 * MIB, "estimate, not measured", uncertainty=32 * MIB)

#: Variables that carry what a plan decides -> what decides it.
REFUSED_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "OLLAMA_HOST": "`port` and the node's `policy.bind` decide it",
        "OLLAMA_MODELS": "`model` decides it",
        "OLLAMA_NUM_PARALLEL": "`limits.max_num_seqs` decides it",
        "OLLAMA_CONTEXT_LENGTH": "`limits.max_model_len` decides it",
        "OLLAMA_KV_CACHE_TYPE": "`limits.kv_cache_dtype` decides it",
        "OLLAMA_MAX_LOADED_MODELS": "an instance serves the one model of its deployment",
        "OLLAMA_KEEP_ALIVE": "the model would be unloaded while the deployment is shown as ready",
        "OLLAMA_LOAD_TIMEOUT": "`probes.startup` decides how long loading may take",
        "OLLAMA_FLASH_ATTENTION": "the plan's memory depends on it",
        "OLLAMA_GPU_OVERHEAD": "the plan's memory depends on it",
        "OLLAMA_SCHED_SPREAD": "`devices` decides it",
        "OLLAMA_LLM_LIBRARY": "`devices` decides it",
        "OLLAMA_IGPU_ENABLE": "`devices` decides it",
        "OLLAMA_VULKAN": "`devices` decides it",
        "OLLAMA_NO_CLOUD": "the agent sets it: a deployment computes on this node",
        "OLLAMA_NOPRUNE": "the agent sets it",
        "OLLAMA_DEBUG_LOG_REQUESTS": "it writes what clients ask to disk",
    }
)


class Ollama:
    """Satisfies `agent.engines.base.LayersEngine`."""

    name = "ollama"
    executable = "ollama"
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),
        tasks=frozenset({"chat", "completion", "embedding"}),
        accelerators=frozenset({"cpu", "cuda", "rocm", "metal"}),
        kv_cache_dtypes=MappingProxyType({name: CACHE_BYTES[name] for name in ("f16", "q8_0", "q4_0")}),
        split=False,
        suits=MappingProxyType(
            {
                Hardware.CPU: 20, Hardware.APPLE: 30, Hardware.NVIDIA: 70, Hardware.NVIDIA_SMALL: 40,
                Hardware.NVIDIA_OLD: 20, Hardware.AMD: 50, Hardware.AMD_SMALL: 20, Hardware.INTEL: 40,
                "development": 20,
            }
        ),
    )  # fmt: skip
    defaults = EngineDefaults(
        max_num_seqs=1,
        max_model_len_cap=4096,
        kv_cache_dtype="f16",
        max_num_batched_tokens=PHYSICAL_BATCH,
        gpu_memory_utilization=0.9,
        reasons=MappingProxyType(
            {
                "max_num_seqs": "Ollama's own number of parallel requests",
                "max_model_len": "Ollama's own context on a small device",
                "kv_cache_dtype": "Ollama's own type, without loss",
                "max_num_batched_tokens": "Ollama's own num_batch",
                "gpu_memory_utilization": "a tenth of a device is left for what was estimated too low",
            }
        ),
    )
    metrics: Mapping[Metric, str] = MappingProxyType({})  # not offered
    #: Whatever it writes lies in the store that the launcher makes, below /tmp; what NVIDIA's driver compiles of its
    #: kernels is kept.
    container = Containerized(
        ("/bin/ollama",), read_only_root=True, any_user=True, files=(str(_LAUNCHER),),
        caches=MappingProxyType({"CUDA_CACHE_PATH": CACHE_FOLDER}),
    )  # fmt: skip

    def __init__(self) -> None:
        text = resources.files("agent.engines").joinpath("ollama_variables.txt").read_text(encoding="utf-8")
        self._variables = {line for line in text.splitlines() if line and not line.startswith("#")}

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        native = configured_or_on_path(configured, self.executable)
        if native is None:
            return None
        argv, origin = native
        libraries = Path(argv[0]).resolve().parent.parent / "lib" / "ollama"
        found = {accelerator for pattern, accelerator in _LIBRARIES.items() if any(libraries.glob(pattern))}
        return Located(argv, version(argv, _VERSION_SAID), origin, frozenset({"cpu", *found}))

    def device_layers(self, profile: ModelProfile) -> int:
        return profile.layers + 1

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        """llama.cpp's, which it runs, and what it adds."""
        host, *devices = llama_cpp_terms(profile, limits, task, placement)
        return ((*host, _SERVER), *((*terms, _RESERVE) for terms in devices))

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        rule = "`ollama serve` takes no arguments; its settings are variables, in `environment`"
        return tuple(FieldViolation(f"extra_args[{index}]", rule) for index in range(len(arguments)))

    def check_variable(self, name: str) -> str:
        if name in DEVICE_VARIABLES:
            return "`devices` decides it"
        if name in REFUSED_VARIABLES:
            return REFUSED_VARIABLES[name]
        if name.startswith("LLAMA_ARG_"):
            return "it would change llama-server's flags behind the plan's back"
        if name.startswith("OLLAMA_") and name not in self._variables:
            nearest = difflib.get_close_matches(name, self._variables - REFUSED_VARIABLES.keys(), n=1)
            return "ollama has no such variable" + (f"; did you mean {nearest[0]}?" if nearest else "")
        return ""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        limits = plan.limits
        environment = {
            **(plan.placement.environment if plan.devices else _NO_DEVICE),
            "OLLAMA_HOST": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "OLLAMA_NUM_PARALLEL": str(limits.max_num_seqs),
            "OLLAMA_CONTEXT_LENGTH": str(limits.max_model_len),  # of each request; it multiplies itself
            "OLLAMA_KV_CACHE_TYPE": limits.kv_cache_dtype,
            "OLLAMA_FLASH_ATTENTION": "1",  # a quantized cache needs it, and the memory model is that of this kernel
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_KEEP_ALIVE": "-1",  # it would unload after five minutes without a request
            "OLLAMA_LOAD_TIMEOUT": "0",  # it would give a load up after five minutes without a line of progress
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_VULKAN": "0",  # it would see devices that are not the plan's
            # Its environment reaches llama-server, whose prompt cache of 8 GiB in host memory it leaves on.
            "LLAMA_ARG_CACHE_RAM": "0",
            **({"OLLAMA_SCHED_SPREAD": "1"} if len(plan.devices) > 1 else {}),
        }
        prompt = "a" if plan.task == "embedding" else ""  # `ollama run` wants something to embed
        store = (part for entry in _store(plan) for part in entry)
        argv = ("/bin/sh", str(_LAUNCHER), plan.model_name, prompt, *store, "--", *plan.binary)
        return Command(argv, environment)

    def startup_probe(self, plan: Plan) -> HttpRequest:
        """The models that are loaded: /api/version answers long before one is."""
        return _LOADED

    def readiness_probe(self, plan: Plan) -> HttpRequest:
        return _VERSION

    def liveness_probe(self, plan: Plan) -> HttpRequest:
        return _VERSION

    def inference_probe(self, plan: Plan) -> HttpRequest:
        model = {"model": plan.model_name, "keep_alive": -1}
        if plan.task == "embedding":
            return openai.post("/api/embed", {**model, "input": "a"})
        options = {"num_predict": 1}
        return openai.post("/api/generate", {**model, "prompt": "a", "raw": True, "stream": False, "options": options})

    def loading(self, reply: HttpReply) -> bool:
        return reply.status == 0 or (reply.status == 200 and not _models(reply))

    def activity_request(self, plan: Plan) -> HttpRequest:
        return _LOADED

    def parse_activity(self, body: str) -> Activity:
        return Activity(None, None, None)  # it does not say

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        return (_LOADED,)

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted:
        """Of the model that is loaded; how many requests it takes at once is nowhere told."""
        models = _models(replies[0])
        if not models or not isinstance(models[0], dict):
            return Granted()
        name, length = models[0].get("name"), models[0].get("context_length")
        return Granted(
            max_model_len=length if isinstance(length, int) else None,
            model=name.removesuffix(":latest") if isinstance(name, str) else "",
        )

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        return ()  # llama-server's lines are in its log, but no such log was seen here

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        return diagnose(exit, log_tail)

    def secret_flags(self) -> Mapping[str, str]:
        return {}  # it knows no API key


_VERSION = HttpRequest("GET", "/api/version")
_LOADED = HttpRequest("GET", "/api/ps")
_NO_DEVICE = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "ROCR_VISIBLE_DEVICES": "-1"}


def _models(reply: HttpReply) -> list[object]:
    """What /api/ps lists: a model is on it from the end of its load."""
    body = openai.decoded(reply)
    models = body.get("models") if isinstance(body, dict) else None
    return models if isinstance(models, list) else []


def _store(plan: Plan) -> Sequence[tuple[str, str]]:
    """A store with the plan's model, as `manifest/manifest.go` reads it: paths in it, each with its content; the first
    is that of the weights, with where they are.
    """
    variant, limits = plan.variant, plan.limits
    config = json.dumps(
        {
            "model_format": "gguf",
            "model_family": variant.architecture,
            "model_families": [variant.architecture],
            "file_type": variant.quantization,
        }
    )
    parameters = json.dumps(
        {
            "num_gpu": sum(plan.placement.layers),  # as many layers as are planned, not as it estimates
            "num_thread": limits.threads,
            "num_batch": limits.max_num_batched_tokens,
        }
    )
    # Of a file in its store it never looks at the digest again: where none is known, that of the path is as good.
    weights = variant.digest if _DIGEST.fullmatch(variant.digest) else _digest(variant.path)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _layer("application/vnd.docker.container.image.v1+json", _digest(config), len(config)),
        "layers": [
            _layer("application/vnd.ollama.image.model", weights, variant.bytes),
            _layer("application/vnd.ollama.image.params", _digest(parameters), len(parameters)),
        ],
    }
    return (
        (_blob(weights), variant.path),
        (_manifest(plan.model_name), json.dumps(manifest)),
        *((_blob(_digest(text)), text) for text in (config, parameters)),
    )


def _layer(kind: str, digest: str, size: int) -> Mapping[str, object]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _manifest(name: str) -> str:
    """Where the manifest of that name lies: inside of the store, also of one that Ollama will refuse."""
    match = _NAME.fullmatch(name)
    namespace, model, tag = match.groups() if match else (None, "refused", None)
    return f"manifests/registry.ollama.ai/{namespace or 'library'}/{model}/{tag or 'latest'}"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '-')}"


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
