"""What is asked for: the spec of one deployment, as a person writes it.

Every field has its meaning, unit and the reason of its default in its description; the reference page, the JSON
schema and the example are made from them (`python -m agent.schemas`). A value that an operator leaves out is decided
by planning, within the node policy; what a spec says is never widened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from agent.documents import load_documents
from agent.errors import FieldViolation, InvalidArgument
from agent.quantities import (
    MIB,
    AbsolutePath,
    Argument,
    Bytes,
    Fraction,
    Label,
    Line,
    Seconds,
    VariableName,
    Word,
)
from agent.references import Devices, ImageName, ModelReference, PlainVariable, PortChoice, SecretVariable
from agent.strict import Strict, broken, invalid, plain, validate

ROOT = "spec"


class SecretRef(Strict):
    """Where a secret is read at each launch. Exactly one of the two."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["file"]}, {"required": ["env"]}]})

    file: Annotated[
        AbsolutePath | None, Field(description="File with the value, readable by the agent; a last newline is cut off.")
    ] = None
    env: Annotated[
        VariableName | None, Field(description="Variable of the agent's own environment that holds the value.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _is_reference(cls, data: Any) -> Any:
        # Never "unknown key 'hf_...'": what is written in the wrong place here may be the secret itself.
        given = {key for key, value in data.items() if value is not None} if isinstance(data, Mapping) else set()
        if given not in ({"file"}, {"env"}):
            raise broken(
                "must be exactly one of {file: /absolute/path} and {env: NAME}; the value itself has no place here"
            )
        return data


# Hints and limits


Aim = Literal["auto", "throughput", "latency", "long-context", "structured-output", "shared-prefixes", "development"]


class Workload(Strict):
    """What the deployment is used for: hints that shape the defaults of the limits, and limit nothing themselves."""

    concurrency: Annotated[
        int | None,
        Field(ge=1, le=65_536, description="Requests that are expected at the same time; default of max_num_seqs."),
    ] = None
    context_tokens: Annotated[
        int | None,
        Field(ge=1, le=100_000_000, description="Tokens of a long request with its answer; default of max_model_len."),
    ] = None
    aim: Annotated[
        Aim,
        Field(
            description="What matters most; it ranks engines. auto: throughput for more than 10 requests at a time, "
            "else what suits the hardware."
        ),
    ] = "auto"


class LimitsSpec(Strict):
    """Limits of the engine and of its process. What is left out comes from the node policy, or from the engine."""

    gpu_memory_utilization: Annotated[
        Fraction | None,
        Field(description="Part of a device's memory that the engine may use; without meaning on a CPU."),
    ] = None
    max_num_seqs: Annotated[
        int | None, Field(ge=1, le=65_536, description="Sequences that are computed at the same time.")
    ] = None
    max_model_len: Annotated[
        int | None,
        Field(ge=16, le=100_000_000, description="Tokens of context of one sequence: prompt and answer together."),
    ] = None
    kv_cache_dtype: Annotated[
        Word | None, Field(description="Type of the KV cache's elements, by the engine's own name (f16, q8_0, fp8).")
    ] = None
    memory_bytes: Annotated[
        Annotated[int, Bytes(minimum=MIB)] | None,
        Field(
            description="Hard limit of host memory; beyond it the kernel ends the engine. Default: none, because "
            "mapped weights count too. At least 1MiB: less is a forgotten unit."
        ),
    ] = None
    cpus: Annotated[
        float | None,
        Field(ge=0.01, le=8192, description="CPU time, in cores (1.5 is one and a half). Default: all of them."),
    ] = None
    pids: Annotated[
        int | None, Field(ge=1, le=4_194_304, description="Processes and threads that may exist at the same time.")
    ] = None
    threads: Annotated[
        int | None,
        Field(ge=1, le=8192, description="Threads that compute. Default: one for each physical core it may use."),
    ] = None


# Probes, restarts


class StartupProbe(Strict):
    """Asks a starting engine until it answers. No restart before the deadline, which the load's progress extends."""

    base_seconds: Annotated[
        float,
        Seconds(1),
        Field(description="Start-up time without the load. 120: slow imports and graph captures fit."),
    ] = 120.0
    max_seconds: Annotated[
        float, Seconds(1), Field(description="The deadline never grows beyond. 1800: half an hour loads any model.")
    ] = 1800.0
    period_seconds: Annotated[
        float,
        Seconds(0.1),
        Field(description="Time between two looks. 0.25: a small model is seen as soon as it is ready."),
    ] = 0.25
    read_bytes_per_second: Annotated[
        int,
        Bytes(minimum=MIB),
        Field(description="Slowest storage assumed: the deadline is base plus weights by this. 100MiB: a hard disk."),
    ] = 100 * MIB

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.base_seconds > self.max_seconds:
            raise broken(_at_most("max_seconds", self.max_seconds, self.base_seconds), "base_seconds")
        return self


class _HealthProbe(Strict):
    period_seconds: float
    timeout_seconds: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.timeout_seconds > self.period_seconds:
            raise broken(_at_most("period_seconds", self.period_seconds, self.timeout_seconds), "timeout_seconds")
        return self


def _at_most(field: str, bound: float, value: float) -> str:
    return f"must be at most {field}, which is {plain(bound)} (got {plain(value)})"


class ReadinessProbe(_HealthProbe):
    """Decides between READY and UNREADY; it restarts nothing."""

    period_seconds: Annotated[
        float,
        Seconds(0.1),
        Field(description="Time between two probes. 5: clients learn of trouble within ten seconds."),
    ] = 5.0
    timeout_seconds: Annotated[
        float,
        Seconds(0.1),
        Field(description="Wait for an answer. 5: a busy engine may answer late; at most the period."),
    ] = 5.0
    success_threshold: Annotated[
        int, Field(ge=1, le=1000, description="Answers in a row that make it READY. 1: one answer is proof.")
    ] = 1
    failure_threshold: Annotated[
        int, Field(ge=1, le=1000, description="Failures in a row that make it UNREADY. 2: one may be chance.")
    ] = 2


class LivenessProbe(_HealthProbe):
    """Finds an engine that hangs, and has it replaced."""

    period_seconds: Annotated[
        float, Seconds(0.1), Field(description="Time between two probes. 10: a hang shows within a minute.")
    ] = 10.0
    timeout_seconds: Annotated[
        float,
        Seconds(0.1),
        Field(description="Wait for an answer. 5: a long prefill starves HTTP threads; 1 s would end busy engines."),
    ] = 5.0
    failure_threshold: Annotated[
        int,
        Field(ge=1, le=1000, description="Failures in a row that mean a hang. 6: a false alarm costs a whole load."),
    ] = 6


class InferenceProbe(Strict):
    """One token for real, while the engine is idle or seems stuck: finds those whose health answers for ever."""

    enabled: Annotated[bool, Field(description="Whether it runs. true: a hung context answers health for ever.")] = True
    period_seconds: Annotated[
        float, Seconds(0.1), Field(description="Time between two probes. 60: a token a minute costs nothing.")
    ] = 60.0
    timeout_seconds: Annotated[
        float, Seconds(0.1), Field(description="Wait for the token. 30: the first one after a pause may be slow.")
    ] = 30.0
    idle_seconds: Annotated[
        float, Seconds(0), Field(description="Idle time before it runs. 60: clients at work are proof enough.")
    ] = 60.0
    stall_seconds: Annotated[
        float,
        Seconds(0),
        Field(description="Time without progress of requests in flight before it runs. 1800: above any long prompt's."),
    ] = 1800.0
    failure_threshold: Annotated[
        int, Field(ge=1, le=1000, description="Failures in a row that mean a hang. 3: three minutes without a token.")
    ] = 3


class Probes(Strict):
    """How the agent finds out how an instance is."""

    startup: Annotated[StartupProbe, Field(description="Whether it has come up.")] = Field(default_factory=StartupProbe)
    readiness: Annotated[ReadinessProbe, Field(description="Whether it answers now.")] = Field(
        default_factory=ReadinessProbe
    )
    liveness: Annotated[LivenessProbe, Field(description="Whether it hangs.")] = Field(default_factory=LivenessProbe)
    inference: Annotated[InferenceProbe, Field(description="Whether it generates.")] = Field(
        default_factory=InferenceProbe
    )


class RestartPolicy(Strict):
    """What happens after a failure that a retry may mend. The first one after a healthy run restarts at once."""

    policy: Annotated[
        Literal["always", "never"],
        Field(description="always: restart after every end that nobody asked for; never: FAILED at the first one."),
    ] = "always"
    initial_delay_seconds: Annotated[
        float,
        Seconds(),
        Field(
            description="Delay before the second restart in a row; it doubles from there. 1: short, yet no busy loop."
        ),
    ] = 1.0
    max_delay_seconds: Annotated[
        float, Seconds(), Field(description="The delay never grows beyond. 300: five minutes, as the kubelet's.")
    ] = 300.0
    jitter: Annotated[
        float,
        Field(ge=0, le=1, description="Random part of a delay, up or down. 0.2: hosts that failed together spread."),
    ] = 0.2
    reset_after_seconds: Annotated[
        float,
        Seconds(),
        Field(description="Time READY that forgets the delay. 600: counted from READY, not from start."),
    ] = 600.0
    max_failures: Annotated[
        int,
        Field(ge=1, le=1000, description="Failures within the window that end in FAILED. 5: more hides the fault."),
    ] = 5
    window_seconds: Annotated[
        float, Seconds(1), Field(description="The window in which failures count. 1800: as long as the longest start.")
    ] = 1800.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.initial_delay_seconds > self.max_delay_seconds:
            rule = _at_most("max_delay_seconds", self.max_delay_seconds, self.initial_delay_seconds)
            raise broken(rule, "initial_delay_seconds")
        return self


# The whole


Runtime = Literal["auto", "process", "docker"]


class Task(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class DeploymentSpec(Strict):
    """The desired serving of one model."""

    private: ClassVar[frozenset[str]] = frozenset({"environment", "secrets"})

    name: Annotated[Label, Field(description="Name of the deployment, unique on the node.")]
    model: Annotated[
        ModelReference,
        Field(
            description="file:/absolute/path.gguf; package:import_name/path.gguf inside of a Python package; or "
            "hf:owner/name[@revision][:quantization] of the Hugging Face hub, where hf: may be left out. Also, "
            "where the node allows them, https://, s3://, gs://, oci:, ollama: and ms: (docs/reference/artifacts.md). "
            "gateway:name,other forwards to these deployments, the first that answers; gateway:* to all."
        ),
    ]
    served_name: Annotated[Line, Field(description="What clients send as `model`. Default: the deployment's name.")] = (
        ""
    )
    task: Annotated[
        Task, Field(strict=False, description="What it is asked to do. chat: most models are tuned for it.")
    ] = Task.CHAT
    engine: Annotated[
        Word, Field(description="Name of an engine. auto: the agent chooses one that can serve the model here.")
    ] = "auto"
    runtime: Annotated[
        Runtime,
        Field(
            description="How the engine is run: process (natively) or docker (in a container). auto: natively where an "
            "executable is here that uses the node's devices, else by the engine's image."
        ),
    ] = "auto"
    image: Annotated[
        ImageName,
        Field(
            description="The image to run the engine in, as registry/repository:tag[@sha256:...], instead of the one "
            "that the catalog would choose. It needs `engine`, and makes `auto` a container. Default: the catalog's."
        ),
    ] = ""
    quantization: Annotated[
        Word,
        Field(description="Name of a quantization (Q4_K_M, awq). auto: the best of what the reference names."),
    ] = "auto"
    workload: Annotated[Workload, Field(description="Hints for the defaults of the limits.")] = Field(
        default_factory=Workload
    )
    limits: Annotated[LimitsSpec, Field(description="Limits of the engine and its process.")] = Field(
        default_factory=LimitsSpec
    )
    devices: Annotated[
        Devices,
        Field(
            description="auto, cpu, or devices as `agentctl devices` shows them: by id, by the beginning of one, or by "
            "index. auto: the fewest devices that hold the model, of these the tightest fit, else the CPU."
        ),
    ] = "auto"
    port: Annotated[
        PortChoice, Field(description="TCP port. auto: a free one out of the node's range, and it is kept.")
    ] = "auto"
    environment: Annotated[
        dict[PlainVariable, Argument],
        Field(max_length=256, description="Variables of the engine; no secrets, and nothing that loads code into it."),
    ] = Field(default_factory=dict)
    secrets: Annotated[
        dict[SecretVariable, SecretRef],
        Field(
            max_length=256, description="Variables of the engine that are read from files or the agent's environment."
        ),
    ] = Field(default_factory=dict)
    extra_args: Annotated[
        tuple[Argument, ...],
        Field(
            strict=False,
            max_length=256,
            description="More arguments for the engine; the adapter refuses what the agent sets itself, and the node "
            "policy what it does not list.",
        ),
    ] = ()
    probes: Annotated[Probes, Field(description="How the agent finds out how an instance is.")] = Field(
        default_factory=Probes
    )
    restart: Annotated[RestartPolicy, Field(description="What happens after a failure.")] = Field(
        default_factory=RestartPolicy
    )
    drain_seconds: Annotated[
        float,
        Seconds(0),
        Field(description="Time for requests in flight before a stop. 30: most answers are done by then."),
    ] = 30.0
    stop_seconds: Annotated[
        float,
        Seconds(),
        Field(description="Time from TERM to KILL. 30: a GPU's memory takes seconds to be given back."),
    ] = 30.0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.image and self.runtime == "process":
            raise broken("is for containers: leave it out, or let `runtime` be docker or auto", "image")
        if self.image and self.engine == "auto":
            raise broken("must be named where `image` is: it says what is in it", "engine")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        for name in self.secrets.keys() & self.environment.keys():
            raise broken("must not be in `environment` as well", f"secrets.{name}")
        return self

    def to_json(self) -> str:
        """Canonical: equal specs give equal text. Defaults are written out, so that a newer agent changes nothing."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> DeploymentSpec:
        """The inverse of `to_json`. Raises `InvalidArgument`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise invalid(FieldViolation(ROOT, f"must be JSON ({error})")) from None
        return parse_spec(data)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def parse_spec(data: Mapping[str, Any]) -> DeploymentSpec:
    """Plain data (out of YAML, JSON or protobuf) as a spec. Raises `InvalidArgument` that names every broken rule."""
    return validate(DeploymentSpec, data, ROOT)


def load_specs(text: str, source: str) -> list[dict[str, Any]]:
    """The deployments in YAML text, one a document, not yet checked by `parse_spec`.

    Raises `InvalidArgument` with line and column; `source` is what the message calls the text.
    """
    documents = load_documents(text, source)
    if not documents:
        raise InvalidArgument(f"{source}: holds no deployment; one has at least `name` and `model`")
    return documents
