"""The errors that callers see, as one small tree.

    AgentError
      InvalidArgument      the request breaks a rule; carries field violations
      NotFound             the named thing does not exist
      Conflict             etag or request id does not match; read again and retry
      FailedPrecondition   right request, wrong state of the node (does not fit, policy, stopping)
      ReadOnly             a change was asked of the read-only socket
      Unavailable          a part outside us does not answer; trying again is useful
      StoreError           the state could not be made durable; nothing was changed

Each class has one stable `code`; `agent.api.errors` maps codes to gRPC statuses and `agent.ctl.exits` to
exit codes. What an *engine* does wrong is not an error but a `Diagnosis` (agent.status).
"""

from __future__ import annotations

from typing import ClassVar

from agent.frozen import frozen


@frozen
class FieldViolation:
    """One broken rule: `field` is a dotted path (`limits.max_model_len`), `rule` a sentence that says what is valid."""

    field: str
    rule: str


class AgentError(Exception):
    """Base of all errors that reach a caller; `hint` says what to do next."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, violations: tuple[FieldViolation, ...] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.violations = violations
        self.hint = hint


class InvalidArgument(AgentError):
    """The request breaks a rule, whatever the state of the node."""

    code = "invalid_argument"


class NotFound(AgentError):
    """The named resource does not exist."""

    code = "not_found"


class Conflict(AgentError):
    """The resource changed since the caller read it, or the request id was used for something else."""

    code = "conflict"


class FailedPrecondition(AgentError):
    """The request is well formed, but the node cannot do it as it stands."""

    code = "failed_precondition"


class ReadOnly(AgentError):
    """A change was asked for on the socket that only reads."""

    code = "read_only"


class Unavailable(AgentError):
    """Something outside the agent did not answer in time."""

    code = "unavailable"
    retryable = True


class StoreError(AgentError):
    """The state directory refused a write (full, read-only, broken); the change was not made."""

    code = "store"
    retryable = True
