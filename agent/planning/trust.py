"""Whether a model's own Python files may run: only where the node's policy names the model."""

from __future__ import annotations

from agent.references import HubReference
from agent.settings import Policy

#: The engines' flag for it. Some write it with underscores, and some take `=true`.
FLAG = "--trust-remote-code"


def is_flag(argument: str) -> bool:
    return argument.partition("=")[0].replace("_", "-") == FLAG


def allowed(reference: str, policy: Policy) -> bool:
    return any(_covers(named, reference) for named in policy.trust_remote_code)


def denied(reference: str) -> str:
    return f"{FLAG} runs Python code out of {reference}, which the node's policy.trust_remote_code does not name"


def _covers(named: str, reference: str) -> bool:
    """An entry without revision means all of them, and one without variant all variants in the repository."""
    parts = [HubReference.parse(each.removeprefix("hf:")) for each in (named, reference) if each.startswith("hf:")]
    if len(parts) < 2 or parts[0] is None or parts[1] is None:
        return named == reference
    leave, asked = parts[0], parts[1]
    same = leave.repo.lower() == asked.repo.lower()
    return same and leave.revision in {"", asked.revision} and leave.variant in {"", asked.variant}
