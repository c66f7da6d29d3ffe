"""Which devices run a quantization with an engine, and what the engine runs on them instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.engines.base import Engine, Support
from agent.hardware.inventory import Device
from agent.planning.devices import Offers, label
from agent.planning.plan import Rejected
from agent.planning.ranking import capability


def runs(support: Support, device: Device, accelerator: str) -> bool:
    """A capability or architecture that is not known is taken to do."""
    if accelerator not in support.accelerators:
        return False
    if accelerator == "rocm":
        return not (support.targets and device.architecture) or device.architecture.startswith(support.targets)
    able = capability(device)
    return able == (0, 0) or support.least <= able < support.below


def runnable(found: Offers, support: Support | None, quantization: str, engine: str) -> Offers:
    """Without the devices that do not run the quantization."""
    if support is None:
        return found
    usable, rejected = [], [*found.rejected]
    for offer in found.usable:
        if runs(support, offer.device, offer.accelerator):
            usable.append(offer)
            continue
        sentence = f"{engine} does not run {quantization} weights on {label(offer.device)}"
        if offer.accelerator not in support.accelerators:
            sentence += f" by {offer.accelerator}, only by {', '.join(sorted(support.accelerators))}"
        elif offer.accelerator == "rocm":
            sentence += f", of architecture {offer.device.architecture}; it does on {', '.join(support.targets)}"
        else:
            sentence += f", of compute capability {offer.device.compute_capability}; it does {_range(support)}"
        rejected.append(Rejected(offer.device.id, "quantization", sentence))
    return Offers(tuple(usable), tuple(rejected), found.links)


def instead(found: Offers, engine: Engine) -> str:
    """What of other quantizations the engine runs on the devices that the build is for, as a hint; "": nothing."""
    names = sorted(_others([(offer.device, offer.accelerator) for offer in found.usable], engine))
    if not names:
        return ""
    kinds = dict.fromkeys(label(offer.device) for offer in found.usable)
    return f"on {', '.join(kinds)} {engine.name} runs {', '.join(names)}: name such a variant of the model"


def _others(devices: Sequence[tuple[Device, str]], engine: Engine) -> Iterator[str]:
    for name, support in (engine.capabilities.quantizations or {}).items():
        if any(runs(support, *each) for each in devices):
            yield name


def _range(support: Support) -> str:
    """Of compute capabilities."""
    least, below = (".".join(map(str, each)) for each in (support.least, support.below))
    endless = support.below == Support(support.accelerators).below
    return f"from {least} on" if endless else f"from {least} to below {below}"
