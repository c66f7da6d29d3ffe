import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_PENDING: _ClassVar[Phase]
    PHASE_PLANNING: _ClassVar[Phase]
    PHASE_FETCHING: _ClassVar[Phase]
    PHASE_STARTING: _ClassVar[Phase]
    PHASE_LOADING: _ClassVar[Phase]
    PHASE_READY: _ClassVar[Phase]
    PHASE_UNREADY: _ClassVar[Phase]
    PHASE_DRAINING: _ClassVar[Phase]
    PHASE_STOPPING: _ClassVar[Phase]
    PHASE_STUCK: _ClassVar[Phase]
    PHASE_BACKOFF: _ClassVar[Phase]
    PHASE_FAILED: _ClassVar[Phase]
    PHASE_STOPPED: _ClassVar[Phase]
    PHASE_DELETED: _ClassVar[Phase]

class Desired(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESIRED_UNSPECIFIED: _ClassVar[Desired]
    DESIRED_RUN: _ClassVar[Desired]
    DESIRED_STOP: _ClassVar[Desired]
    DESIRED_DELETE: _ClassVar[Desired]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
    SEVERITY_ERROR: _ClassVar[Severity]

class Ternary(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TERNARY_UNSPECIFIED: _ClassVar[Ternary]
    TERNARY_TRUE: _ClassVar[Ternary]
    TERNARY_FALSE: _ClassVar[Ternary]

class DeviceCondition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_CONDITION_UNSPECIFIED: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_HEALTHY: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_DEGRADED: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_QUARANTINED: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_LOST: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_UNKNOWN: _ClassVar[DeviceCondition]

class FindingLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINDING_LEVEL_UNSPECIFIED: _ClassVar[FindingLevel]
    FINDING_LEVEL_OK: _ClassVar[FindingLevel]
    FINDING_LEVEL_WARNING: _ClassVar[FindingLevel]
    FINDING_LEVEL_ERROR: _ClassVar[FindingLevel]
    FINDING_LEVEL_UNKNOWN: _ClassVar[FindingLevel]
    FINDING_LEVEL_NOTE: _ClassVar[FindingLevel]

class ArtifactState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTIFACT_STATE_UNSPECIFIED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_COMPLETE: _ClassVar[ArtifactState]
    ARTIFACT_STATE_CHANGED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_PARTIAL: _ClassVar[ArtifactState]
    ARTIFACT_STATE_EXTERNAL: _ClassVar[ArtifactState]
    ARTIFACT_STATE_FOREIGN: _ClassVar[ArtifactState]
    ARTIFACT_STATE_UNKNOWN: _ClassVar[ArtifactState]

class FitVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIT_VERDICT_UNSPECIFIED: _ClassVar[FitVerdict]
    FIT_VERDICT_FITS: _ClassVar[FitVerdict]
    FIT_VERDICT_UNSURE: _ClassVar[FitVerdict]
    FIT_VERDICT_PARTLY: _ClassVar[FitVerdict]
    FIT_VERDICT_ON_CPU: _ClassVar[FitVerdict]
    FIT_VERDICT_DOES_NOT_FIT: _ClassVar[FitVerdict]
    FIT_VERDICT_NOT_SERVED: _ClassVar[FitVerdict]
PHASE_UNSPECIFIED: Phase
PHASE_PENDING: Phase
PHASE_PLANNING: Phase
PHASE_FETCHING: Phase
PHASE_STARTING: Phase
PHASE_LOADING: Phase
PHASE_READY: Phase
PHASE_UNREADY: Phase
PHASE_DRAINING: Phase
PHASE_STOPPING: Phase
PHASE_STUCK: Phase
PHASE_BACKOFF: Phase
PHASE_FAILED: Phase
PHASE_STOPPED: Phase
PHASE_DELETED: Phase
DESIRED_UNSPECIFIED: Desired
DESIRED_RUN: Desired
DESIRED_STOP: Desired
DESIRED_DELETE: Desired
SEVERITY_UNSPECIFIED: Severity
SEVERITY_INFO: Severity
SEVERITY_WARNING: Severity
SEVERITY_ERROR: Severity
TERNARY_UNSPECIFIED: Ternary
TERNARY_TRUE: Ternary
TERNARY_FALSE: Ternary
DEVICE_CONDITION_UNSPECIFIED: DeviceCondition
DEVICE_CONDITION_HEALTHY: DeviceCondition
DEVICE_CONDITION_DEGRADED: DeviceCondition
DEVICE_CONDITION_QUARANTINED: DeviceCondition
DEVICE_CONDITION_LOST: DeviceCondition
DEVICE_CONDITION_UNKNOWN: DeviceCondition
FINDING_LEVEL_UNSPECIFIED: FindingLevel
FINDING_LEVEL_OK: FindingLevel
FINDING_LEVEL_WARNING: FindingLevel
FINDING_LEVEL_ERROR: FindingLevel
FINDING_LEVEL_UNKNOWN: FindingLevel
FINDING_LEVEL_NOTE: FindingLevel
ARTIFACT_STATE_UNSPECIFIED: ArtifactState
ARTIFACT_STATE_COMPLETE: ArtifactState
ARTIFACT_STATE_CHANGED: ArtifactState
ARTIFACT_STATE_PARTIAL: ArtifactState
ARTIFACT_STATE_EXTERNAL: ArtifactState
ARTIFACT_STATE_FOREIGN: ArtifactState
ARTIFACT_STATE_UNKNOWN: ArtifactState
FIT_VERDICT_UNSPECIFIED: FitVerdict
FIT_VERDICT_FITS: FitVerdict
FIT_VERDICT_UNSURE: FitVerdict
FIT_VERDICT_PARTLY: FitVerdict
FIT_VERDICT_ON_CPU: FitVerdict
FIT_VERDICT_DOES_NOT_FIT: FitVerdict
FIT_VERDICT_NOT_SERVED: FitVerdict

class Condition(_message.Message):
    __slots__ = ("type", "status", "reason", "message", "since")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    type: str
    status: Ternary
    reason: str
    message: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, type: _Optional[str] = ..., status: _Optional[_Union[Ternary, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "host", "uid", "version", "start_time", "scope", "inventory", "policy", "conditions", "memory_total_bytes", "memory_available_bytes", "memory_reserved_bytes", "deployment_count", "ready_count", "devices")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    READY_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    host: str
    uid: str
    version: str
    start_time: _timestamp_pb2.Timestamp
    scope: str
    inventory: _struct_pb2.Struct
    policy: _struct_pb2.Struct
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    memory_total_bytes: int
    memory_available_bytes: int
    memory_reserved_bytes: int
    deployment_count: int
    ready_count: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, name: _Optional[str] = ..., host: _Optional[str] = ..., uid: _Optional[str] = ..., version: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., scope: _Optional[str] = ..., inventory: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., policy: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., memory_reserved_bytes: _Optional[int] = ..., deployment_count: _Optional[int] = ..., ready_count: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class DeviceProcess(_message.Message):
    __slots__ = ("pid", "memory_bytes", "user", "command", "instance")
    PID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    pid: int
    memory_bytes: int
    user: str
    command: str
    instance: str
    def __init__(self, pid: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., user: _Optional[str] = ..., command: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class DeviceHold(_message.Message):
    __slots__ = ("deployment", "instance", "bytes", "ended", "hold_time", "message")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    HOLD_TIME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    instance: str
    bytes: int
    ended: bool
    hold_time: _timestamp_pb2.Timestamp
    message: str
    def __init__(self, deployment: _Optional[str] = ..., instance: _Optional[str] = ..., bytes: _Optional[int] = ..., ended: _Optional[bool] = ..., hold_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "index", "vendor", "display_name", "condition", "reason", "message", "condition_time", "memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes", "sample_time", "utilization_percent", "temperature_celsius", "power_watts", "power_limit_watts", "clock_mhz", "throttling", "processes", "processes_known", "holds", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_TIME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TIME_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    POWER_LIMIT_WATTS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MHZ_FIELD_NUMBER: _ClassVar[int]
    THROTTLING_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_KNOWN_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    index: int
    vendor: str
    display_name: str
    condition: DeviceCondition
    reason: str
    message: str
    condition_time: _timestamp_pb2.Timestamp
    memory_total_bytes: int
    memory_used_bytes: int
    memory_reserved_bytes: int
    sample_time: _timestamp_pb2.Timestamp
    utilization_percent: float
    temperature_celsius: float
    power_watts: float
    power_limit_watts: float
    clock_mhz: int
    throttling: _containers.RepeatedScalarFieldContainer[str]
    processes: _containers.RepeatedCompositeFieldContainer[DeviceProcess]
    processes_known: bool
    holds: _containers.RepeatedCompositeFieldContainer[DeviceHold]
    detail: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., index: _Optional[int] = ..., vendor: _Optional[str] = ..., display_name: _Optional[str] = ..., condition: _Optional[_Union[DeviceCondition, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., condition_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., memory_reserved_bytes: _Optional[int] = ..., sample_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., utilization_percent: _Optional[float] = ..., temperature_celsius: _Optional[float] = ..., power_watts: _Optional[float] = ..., power_limit_watts: _Optional[float] = ..., clock_mhz: _Optional[int] = ..., throttling: _Optional[_Iterable[str]] = ..., processes: _Optional[_Iterable[_Union[DeviceProcess, _Mapping]]] = ..., processes_known: _Optional[bool] = ..., holds: _Optional[_Iterable[_Union[DeviceHold, _Mapping]]] = ..., detail: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class DeviceUse(_message.Message):
    __slots__ = ("device", "planned", "budget_bytes", "used_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    planned: bool
    budget_bytes: int
    used_bytes: int
    def __init__(self, device: _Optional[str] = ..., planned: _Optional[bool] = ..., budget_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("check", "level", "message", "remedy")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    check: str
    level: FindingLevel
    message: str
    remedy: str
    def __init__(self, check: _Optional[str] = ..., level: _Optional[_Union[FindingLevel, str]] = ..., message: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class Diagnosis(_message.Message):
    __slots__ = ("code", "message", "evidence", "hint", "fatal")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    FATAL_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    evidence: str
    hint: str
    fatal: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., evidence: _Optional[str] = ..., hint: _Optional[str] = ..., fatal: _Optional[bool] = ...) -> None: ...

class ExitStatus(_message.Message):
    __slots__ = ("code", "signal", "oom_killed", "time")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLED_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    code: int
    signal: int
    oom_killed: bool
    time: _timestamp_pb2.Timestamp
    def __init__(self, code: _Optional[int] = ..., signal: _Optional[int] = ..., oom_killed: _Optional[bool] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ProbeVerdict(_message.Message):
    __slots__ = ("kind", "verdict", "time", "detail", "failures")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    verdict: str
    time: _timestamp_pb2.Timestamp
    detail: str
    failures: int
    def __init__(self, kind: _Optional[str] = ..., verdict: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., detail: _Optional[str] = ..., failures: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "done_bytes", "total_bytes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    step: str
    done_bytes: int
    total_bytes: int
    def __init__(self, step: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Granted(_message.Message):
    __slots__ = ("max_model_len", "max_num_seqs", "model", "kv_tokens")
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_model_len: int
    max_num_seqs: int
    model: str
    kv_tokens: int
    def __init__(self, max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., model: _Optional[str] = ..., kv_tokens: _Optional[int] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("name", "deployment", "generation", "attempt", "runtime", "live", "pid", "port", "create_time", "start_time", "ready_time", "end_time", "exit", "diagnosis", "probes", "log_path", "memory_bytes", "enforcement", "device_uses", "container", "image", "image_digest", "metrics", "metrics_time")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    READY_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSIS_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    LOG_PATH_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_USES_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    METRICS_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    deployment: str
    generation: int
    attempt: int
    runtime: str
    live: bool
    pid: int
    port: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    ready_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    exit: ExitStatus
    diagnosis: Diagnosis
    probes: _containers.RepeatedCompositeFieldContainer[ProbeVerdict]
    log_path: str
    memory_bytes: int
    enforcement: _containers.RepeatedScalarFieldContainer[str]
    device_uses: _containers.RepeatedCompositeFieldContainer[DeviceUse]
    container: str
    image: str
    image_digest: str
    metrics: _containers.ScalarMap[str, float]
    metrics_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., deployment: _Optional[str] = ..., generation: _Optional[int] = ..., attempt: _Optional[int] = ..., runtime: _Optional[str] = ..., live: _Optional[bool] = ..., pid: _Optional[int] = ..., port: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ready_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., exit: _Optional[_Union[ExitStatus, _Mapping]] = ..., diagnosis: _Optional[_Union[Diagnosis, _Mapping]] = ..., probes: _Optional[_Iterable[_Union[ProbeVerdict, _Mapping]]] = ..., log_path: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., enforcement: _Optional[_Iterable[str]] = ..., device_uses: _Optional[_Iterable[_Union[DeviceUse, _Mapping]]] = ..., container: _Optional[str] = ..., image: _Optional[str] = ..., image_digest: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., metrics_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("name", "uid", "generation", "observed_generation", "etag", "desired", "phase", "reason", "message", "phase_time", "create_time", "update_time", "spec", "plan", "endpoint", "restarts", "next_attempt_time", "progress", "granted", "diagnosis", "instance", "previous", "conditions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PHASE_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_ATTEMPT_TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSIS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    generation: int
    observed_generation: int
    etag: str
    desired: Desired
    phase: Phase
    reason: str
    message: str
    phase_time: _timestamp_pb2.Timestamp
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    spec: _struct_pb2.Struct
    plan: _struct_pb2.Struct
    endpoint: str
    restarts: int
    next_attempt_time: _timestamp_pb2.Timestamp
    progress: Progress
    granted: Granted
    diagnosis: Diagnosis
    instance: Instance
    previous: Instance
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., generation: _Optional[int] = ..., observed_generation: _Optional[int] = ..., etag: _Optional[str] = ..., desired: _Optional[_Union[Desired, str]] = ..., phase: _Optional[_Union[Phase, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., phase_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., spec: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., plan: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., endpoint: _Optional[str] = ..., restarts: _Optional[int] = ..., next_attempt_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., granted: _Optional[_Union[Granted, _Mapping]] = ..., diagnosis: _Optional[_Union[Diagnosis, _Mapping]] = ..., instance: _Optional[_Union[Instance, _Mapping]] = ..., previous: _Optional[_Union[Instance, _Mapping]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("name", "seq", "time", "severity", "reason", "message", "deployment", "instance")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    seq: int
    time: _timestamp_pb2.Timestamp
    severity: Severity
    reason: str
    message: str
    deployment: str
    instance: str
    def __init__(self, name: _Optional[str] = ..., seq: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., severity: _Optional[_Union[Severity, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., deployment: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "source", "path", "format", "quantization", "size_bytes", "digest", "used_by", "architecture", "state", "revision", "variant", "file_count", "disk_bytes", "free_bytes", "pinned", "desired_by", "use_time", "verify_time", "kept_for")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    USED_BY_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    DESIRED_BY_FIELD_NUMBER: _ClassVar[int]
    USE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERIFY_TIME_FIELD_NUMBER: _ClassVar[int]
    KEPT_FOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    path: str
    format: str
    quantization: str
    size_bytes: int
    digest: str
    used_by: _containers.RepeatedScalarFieldContainer[str]
    architecture: str
    state: ArtifactState
    revision: str
    variant: str
    file_count: int
    disk_bytes: int
    free_bytes: int
    pinned: bool
    desired_by: _containers.RepeatedScalarFieldContainer[str]
    use_time: _timestamp_pb2.Timestamp
    verify_time: _timestamp_pb2.Timestamp
    kept_for: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., path: _Optional[str] = ..., format: _Optional[str] = ..., quantization: _Optional[str] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[str] = ..., used_by: _Optional[_Iterable[str]] = ..., architecture: _Optional[str] = ..., state: _Optional[_Union[ArtifactState, str]] = ..., revision: _Optional[str] = ..., variant: _Optional[str] = ..., file_count: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., pinned: _Optional[bool] = ..., desired_by: _Optional[_Iterable[str]] = ..., use_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., verify_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kept_for: _Optional[str] = ...) -> None: ...

class CacheDisk(_message.Message):
    __slots__ = ("path", "total_bytes", "free_bytes", "high", "low")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    path: str
    total_bytes: int
    free_bytes: int
    high: float
    low: float
    def __init__(self, path: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., high: _Optional[float] = ..., low: _Optional[float] = ...) -> None: ...

class ModelVariant(_message.Message):
    __slots__ = ("reference", "format", "quantization", "trust")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    reference: str
    format: str
    quantization: str
    trust: str
    def __init__(self, reference: _Optional[str] = ..., format: _Optional[str] = ..., quantization: _Optional[str] = ..., trust: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "aliases", "family", "licence", "gated", "task", "context_tokens", "parameter_count", "variants")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    GATED_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    family: str
    licence: str
    gated: Ternary
    task: str
    context_tokens: int
    parameter_count: int
    variants: _containers.RepeatedCompositeFieldContainer[ModelVariant]
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., family: _Optional[str] = ..., licence: _Optional[str] = ..., gated: _Optional[_Union[Ternary, str]] = ..., task: _Optional[str] = ..., context_tokens: _Optional[int] = ..., parameter_count: _Optional[int] = ..., variants: _Optional[_Iterable[_Union[ModelVariant, _Mapping]]] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("candidate", "code", "message")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    code: str
    message: str
    def __init__(self, candidate: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class MemoryPool(_message.Message):
    __slots__ = ("id", "display_name", "total_bytes", "others_bytes", "reserve_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OTHERS_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    display_name: str
    total_bytes: int
    others_bytes: int
    reserve_bytes: int
    def __init__(self, id: _Optional[str] = ..., display_name: _Optional[str] = ..., total_bytes: _Optional[int] = ..., others_bytes: _Optional[int] = ..., reserve_bytes: _Optional[int] = ...) -> None: ...

class MeasuredTerm(_message.Message):
    __slots__ = ("pool", "term", "measured_bytes", "formula_bytes", "source")
    POOL_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MEASURED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMULA_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    pool: str
    term: str
    measured_bytes: int
    formula_bytes: int
    source: str
    def __init__(self, pool: _Optional[str] = ..., term: _Optional[str] = ..., measured_bytes: _Optional[int] = ..., formula_bytes: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("name", "node", "host", "imported", "measure_time", "model", "digest", "file_bytes", "architecture", "quantization", "engine", "engine_version", "task", "accelerator", "device_models", "layers", "kv_cache_dtype", "max_num_seqs", "max_model_len", "max_num_batched_tokens", "extra_args", "terms", "ranks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    MEASURE_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MODELS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_ARGS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    node: str
    host: str
    imported: bool
    measure_time: _timestamp_pb2.Timestamp
    model: str
    digest: str
    file_bytes: int
    architecture: str
    quantization: str
    engine: str
    engine_version: str
    task: str
    accelerator: str
    device_models: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[int]
    kv_cache_dtype: str
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    extra_args: _containers.RepeatedScalarFieldContainer[str]
    terms: _containers.RepeatedCompositeFieldContainer[MeasuredTerm]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., node: _Optional[str] = ..., host: _Optional[str] = ..., imported: _Optional[bool] = ..., measure_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., digest: _Optional[str] = ..., file_bytes: _Optional[int] = ..., architecture: _Optional[str] = ..., quantization: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., task: _Optional[str] = ..., accelerator: _Optional[str] = ..., device_models: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[int]] = ..., kv_cache_dtype: _Optional[str] = ..., max_num_seqs: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., extra_args: _Optional[_Iterable[str]] = ..., terms: _Optional[_Iterable[_Union[MeasuredTerm, _Mapping]]] = ..., ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("revision", "node", "deployments")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    node: Node
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    def __init__(self, revision: _Optional[int] = ..., node: _Optional[_Union[Node, _Mapping]] = ..., deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunDoctorRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunDoctorResponse(_message.Message):
    __slots__ = ("findings",)
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class SimulateNodeRequest(_message.Message):
    __slots__ = ("hardware",)
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    hardware: _struct_pb2.Struct
    def __init__(self, hardware: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices", "next_page_token")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    next_page_token: str
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetDeviceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class QuarantineDeviceRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseDeviceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetConfigResponse(_message.Message):
    __slots__ = ("config", "origins")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    config: _struct_pb2.Struct
    origins: _containers.RepeatedCompositeFieldContainer[ConfigOrigin]
    def __init__(self, config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., origins: _Optional[_Iterable[_Union[ConfigOrigin, _Mapping]]] = ...) -> None: ...

class ConfigOrigin(_message.Message):
    __slots__ = ("field", "value", "origin")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    field: str
    value: str
    origin: str
    def __init__(self, field: _Optional[str] = ..., value: _Optional[str] = ..., origin: _Optional[str] = ...) -> None: ...

class ApplyDeploymentRequest(_message.Message):
    __slots__ = ("spec", "etag", "request_id", "validate_only")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    spec: _struct_pb2.Struct
    etag: str
    request_id: str
    validate_only: bool
    def __init__(self, spec: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class ApplyDeploymentResponse(_message.Message):
    __slots__ = ("outcome", "deployment")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[ApplyDeploymentResponse.Outcome]
        OUTCOME_CREATED: _ClassVar[ApplyDeploymentResponse.Outcome]
        OUTCOME_REPLACED: _ClassVar[ApplyDeploymentResponse.Outcome]
        OUTCOME_UNCHANGED: _ClassVar[ApplyDeploymentResponse.Outcome]
    OUTCOME_UNSPECIFIED: ApplyDeploymentResponse.Outcome
    OUTCOME_CREATED: ApplyDeploymentResponse.Outcome
    OUTCOME_REPLACED: ApplyDeploymentResponse.Outcome
    OUTCOME_UNCHANGED: ApplyDeploymentResponse.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    outcome: ApplyDeploymentResponse.Outcome
    deployment: Deployment
    def __init__(self, outcome: _Optional[_Union[ApplyDeploymentResponse.Outcome, str]] = ..., deployment: _Optional[_Union[Deployment, _Mapping]] = ...) -> None: ...

class GetDeploymentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListDeploymentsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeploymentsResponse(_message.Message):
    __slots__ = ("deployments", "next_page_token")
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    next_page_token: str
    def __init__(self, deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteDeploymentRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id", "allow_missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    allow_missing: bool
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ..., allow_missing: _Optional[bool] = ...) -> None: ...

class PlanDeploymentRequest(_message.Message):
    __slots__ = ("spec", "hardware")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    spec: _struct_pb2.Struct
    hardware: _struct_pb2.Struct
    def __init__(self, spec: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., hardware: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class PlanDeploymentResponse(_message.Message):
    __slots__ = ("plan", "refusal", "argv", "verdict", "missing_bytes", "rejected", "remedies", "notes", "pools", "environment", "secrets")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    REMEDIES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    plan: _struct_pb2.Struct
    refusal: Diagnosis
    argv: _containers.RepeatedScalarFieldContainer[str]
    verdict: FitVerdict
    missing_bytes: int
    rejected: _containers.RepeatedCompositeFieldContainer[Rejection]
    remedies: _containers.RepeatedScalarFieldContainer[str]
    notes: _containers.RepeatedScalarFieldContainer[str]
    pools: _containers.RepeatedCompositeFieldContainer[MemoryPool]
    environment: _containers.ScalarMap[str, str]
    secrets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plan: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., refusal: _Optional[_Union[Diagnosis, _Mapping]] = ..., argv: _Optional[_Iterable[str]] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., missing_bytes: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ..., remedies: _Optional[_Iterable[str]] = ..., notes: _Optional[_Iterable[str]] = ..., pools: _Optional[_Iterable[_Union[MemoryPool, _Mapping]]] = ..., environment: _Optional[_Mapping[str, str]] = ..., secrets: _Optional[_Iterable[str]] = ...) -> None: ...

class RestartDeploymentRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class StopDeploymentRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class StartDeploymentRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("deployment", "resume_token", "events_only")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EVENTS_ONLY_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    resume_token: str
    events_only: bool
    def __init__(self, deployment: _Optional[str] = ..., resume_token: _Optional[str] = ..., events_only: _Optional[bool] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("deployment", "event", "synced", "node", "resume_token")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    event: Event
    synced: Synced
    node: Node
    resume_token: str
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., synced: _Optional[_Union[Synced, _Mapping]] = ..., node: _Optional[_Union[Node, _Mapping]] = ..., resume_token: _Optional[str] = ...) -> None: ...

class Synced(_message.Message):
    __slots__ = ("events_lost",)
    EVENTS_LOST_FIELD_NUMBER: _ClassVar[int]
    events_lost: bool
    def __init__(self, events_lost: _Optional[bool] = ...) -> None: ...

class ListInstancesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListInstancesResponse(_message.Message):
    __slots__ = ("instances", "next_page_token")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    next_page_token: str
    def __init__(self, instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetInstanceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("deployment", "instance", "previous", "tail_lines", "follow")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    instance: str
    previous: bool
    tail_lines: int
    follow: bool
    def __init__(self, deployment: _Optional[str] = ..., instance: _Optional[str] = ..., previous: _Optional[bool] = ..., tail_lines: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("data", "instance")
    DATA_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    instance: str
    def __init__(self, data: _Optional[bytes] = ..., instance: _Optional[str] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("deployment", "page_size", "page_token")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    page_size: int
    page_token: str
    def __init__(self, deployment: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListArtifactsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListArtifactsResponse(_message.Message):
    __slots__ = ("artifacts", "next_page_token", "disk")
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    next_page_token: str
    disk: CacheDisk
    def __init__(self, artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., disk: _Optional[_Union[CacheDisk, _Mapping]] = ...) -> None: ...

class PullArtifactRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class PullArtifactResponse(_message.Message):
    __slots__ = ("reference", "progress", "artifact")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    reference: str
    progress: Progress
    artifact: Artifact
    def __init__(self, reference: _Optional[str] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., artifact: _Optional[_Union[Artifact, _Mapping]] = ...) -> None: ...

class PinArtifactRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnpinArtifactRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteArtifactRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteArtifactResponse(_message.Message):
    __slots__ = ("name", "source", "freed_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    freed_bytes: int
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., freed_bytes: _Optional[int] = ...) -> None: ...

class CollectArtifactsRequest(_message.Message):
    __slots__ = ("dry_run", "all")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    all: bool
    def __init__(self, dry_run: _Optional[bool] = ..., all: _Optional[bool] = ...) -> None: ...

class CollectedArtifact(_message.Message):
    __slots__ = ("artifact", "freed_bytes", "reason")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    freed_bytes: int
    reason: str
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ..., freed_bytes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class CollectArtifactsResponse(_message.Message):
    __slots__ = ("removed", "freed_bytes", "disk", "message")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[CollectedArtifact]
    freed_bytes: int
    disk: CacheDisk
    message: str
    def __init__(self, removed: _Optional[_Iterable[_Union[CollectedArtifact, _Mapping]]] = ..., freed_bytes: _Optional[int] = ..., disk: _Optional[_Union[CacheDisk, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ResolveModelRequest(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ResolveModelResponse(_message.Message):
    __slots__ = ("model", "reference")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    model: Model
    reference: str
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., reference: _Optional[str] = ...) -> None: ...

class FitCatalogRequest(_message.Message):
    __slots__ = ("template", "hardware")
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    template: _struct_pb2.Struct
    hardware: _struct_pb2.Struct
    def __init__(self, template: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., hardware: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class FitCatalogResponse(_message.Message):
    __slots__ = ("model", "number", "count", "verdict", "reference", "format", "quantization", "size_bytes", "engine", "devices", "max_model_len", "max_num_seqs", "cache_tokens", "requests", "host_bytes", "device_bytes", "refusal", "missing_bytes", "notes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    CACHE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    model: Model
    number: int
    count: int
    verdict: FitVerdict
    reference: str
    format: str
    quantization: str
    size_bytes: int
    engine: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    max_model_len: int
    max_num_seqs: int
    cache_tokens: int
    requests: float
    host_bytes: int
    device_bytes: int
    refusal: Diagnosis
    missing_bytes: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., number: _Optional[int] = ..., count: _Optional[int] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., reference: _Optional[str] = ..., format: _Optional[str] = ..., quantization: _Optional[str] = ..., size_bytes: _Optional[int] = ..., engine: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ..., max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., cache_tokens: _Optional[int] = ..., requests: _Optional[float] = ..., host_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ..., refusal: _Optional[_Union[Diagnosis, _Mapping]] = ..., missing_bytes: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class ListMeasurementsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMeasurementsResponse(_message.Message):
    __slots__ = ("measurements", "next_page_token")
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    next_page_token: str
    def __init__(self, measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ImportMeasurementsRequest(_message.Message):
    __slots__ = ("ledger",)
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    ledger: _struct_pb2.Struct
    def __init__(self, ledger: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ImportMeasurementsResponse(_message.Message):
    __slots__ = ("added_count", "known_count", "dropped_count")
    ADDED_COUNT_FIELD_NUMBER: _ClassVar[int]
    KNOWN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    added_count: int
    known_count: int
    dropped_count: int
    def __init__(self, added_count: _Optional[int] = ..., known_count: _Optional[int] = ..., dropped_count: _Optional[int] = ...) -> None: ...
