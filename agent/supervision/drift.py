"""Budgets at run time: whether an instance uses the devices that its plan gave it, as its plan said. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.frozen import frozen
from agent.planning.plan import GIB, Plan
from agent.status import DeviceUse

#: A finding counts once it was made this many times in a row: a sample may fall between two of an engine's steps.
TURNS = 2


@frozen
class Judgement:
    """One condition of a deployment: `status` true is good, None is not known. `kind` is its name in the policy; "":
    nothing but telling is done about it.
    """

    type: str
    kind: str
    status: bool | None
    reason: str
    message: str


def uses(plan: Plan, used: Mapping[str, int | None]) -> tuple[DeviceUse, ...]:
    """The planned devices, then those on which the instance was seen besides; `used` is by device, in bytes."""
    budgets = {budget.pool: budget.bytes for budget in plan.budgets}
    ids = (*plan.devices, *sorted(used.keys() - set(plan.devices)))
    return tuple(DeviceUse(id, id in plan.devices, budgets.get(id, 0), used.get(id)) for id in ids)


def judge(seen: tuple[DeviceUse, ...]) -> tuple[Judgement, ...]:
    """Of an instance that is ready. None for one that is planned on no device and seen on none."""
    if not seen:
        return ()
    return (_within_budget(seen), _on_planned(seen))


def untouched(remarks: Sequence[str]) -> Judgement:
    """Of a container: what somebody else did to it."""
    if remarks:
        return Judgement("ContainerUntouched", "", False, "ContainerChanged", "; ".join(remarks))
    return Judgement("ContainerUntouched", "", True, "ContainerAsMade", "the container is as the agent made it")


def _within_budget(seen: tuple[DeviceUse, ...]) -> Judgement:
    planned = [use for use in seen if use.planned]
    over = [use for use in planned if use.used_bytes is not None and use.used_bytes > use.budget_bytes]

    def told(status: bool | None, reason: str, message: str) -> Judgement:
        return Judgement("WithinDeviceBudget", "over_budget", status, reason, message)

    if over:
        excess = "; ".join(f"{_gib(use.used_bytes)} of {use.device}, planned {_gib(use.budget_bytes)}" for use in over)
        return told(False, "OverDeviceBudget", f"uses {excess}")
    if any(use.used_bytes is None for use in planned):
        return told(None, "DeviceMemoryNotTold", "the driver does not tell the memory of its processes")
    return told(True, "WithinDeviceBudget", "uses no more device memory than planned")


def _on_planned(seen: tuple[DeviceUse, ...]) -> Judgement:
    strange = [use.device for use in seen if not use.planned]
    planned = [use for use in seen if use.planned]

    def told(kind: str, status: bool | None, reason: str, message: str) -> Judgement:
        return Judgement("OnPlannedDevices", kind, status, reason, message)

    if strange:
        where = ", ".join(use.device for use in planned) or "the CPU"
        return told("wrong_device", False, "WrongDevice", f"runs on {', '.join(strange)}, planned on {where}")
    if planned and all(use.used_bytes == 0 for use in planned):
        names = ", ".join(use.device for use in planned)
        return told("not_on_device", False, "NotOnDevice", f"holds no memory of {names}: it fell back to the CPU")
    if any(use.used_bytes is None for use in planned):
        return told("", None, "DeviceMemoryNotTold", "the driver does not tell the memory of its processes")
    return told("", True, "OnPlannedDevices", "runs where it was planned")


def _gib(size: int | None) -> str:
    return f"{(size or 0) / GIB:.1f} GiB"
