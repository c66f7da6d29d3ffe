"""Why it does not fit: the numbers of each pool, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.planning.amounts import Free, need
from agent.planning.devices import Offers, Sets, label
from agent.planning.layout import Designer, Layout, largest
from agent.planning.limits import STEP, Choice, with_length
from agent.planning.plan import Limits
from agent.planning.request import PlanRequest
from agent.status import Diagnosis, DiagnosisCode


def too_big(
    request: PlanRequest, choice: Choice, designer: Designer, found: Offers, others: Offers | None, free: Free
) -> Diagnosis:
    """The diagnosis, with the limits that were asked for or would have been taken. `others` is all that there is; None:
    nobody asks what would fit.
    """
    hints = [_hint(request, choice, designer, found)] if others is not None else []
    if request.spec.devices == "auto":
        layouts = [designer.on_cpu(choice.limits)]
        if found.usable:  # what was rejected names the others
            best = max(found.usable, key=lambda offer: offer.free)
            layouts.append(designer.evenly(choice.limits, (best,), designer.layers))
    elif found.usable:
        layouts = [designer.evenly(choice.limits, found.usable, designer.layers)]
        most = designer.engine.capabilities.most_devices
        groups = (group for group in Sets(others or Offers()) if len(group) <= most)
        elsewhere = next((group for group in groups if designer.all_layers(choice.limits, group)), ())
        hints += [f"it fits on {' with '.join(label(offer.device) for offer in elsewhere)}"] if elsewhere else []
    else:
        layouts = [designer.on_cpu(choice.limits)]
    message = "; ".join(line for layout in layouts for line in lines(layout, designer, free))
    return Diagnosis(DiagnosisCode.DOES_NOT_FIT, message, hint="; ".join(hints))


def lines(layout: Layout, designer: Designer, free: Free) -> Iterator[str]:
    """The pools that are too small for this layout; all, where each alone would do."""
    pools = [
        (f"on {label(offer.device)} ", budget, offer.free, str(offer))
        for budget, offer in zip(layout.budgets[1:], layout.offers, strict=True)
    ]
    host = layout.budgets[0]
    if not pools or layout.host_bytes > designer.free:
        pools.append(("", host, designer.free, str(free)))
    short = [pool for pool in pools if pool[1].bytes > pool[2]]
    for where, budget, _, available in short or pools:
        yield f"{where}needs {need(budget)}; {available}"


def _hint(request: PlanRequest, choice: Choice, designer: Designer, found: Offers) -> str:
    limits, task = choice.limits, request.spec.task

    def fits(limits: Limits) -> bool:
        if request.spec.devices in {"auto", "cpu"}:
            return designer.only_cpu(limits) is not None
        layouts = (designer.all_layers(limits, found.usable), designer.most_layers(limits, found.usable))
        return any(layout is not None for layout in layouts)

    shortest = min(STEP, limits.max_model_len)
    length = largest(lambda n: fits(with_length(limits, n, task)), shortest, limits.max_model_len, STEP)
    seqs = largest(lambda n: fits(replace(limits, max_num_seqs=n)), 1, limits.max_num_seqs)
    options = []
    if length is not None:
        options.append(f"max_model_len {length}")
    if seqs is not None:
        options.append(f"max_num_seqs {seqs}")
    if options:
        return f"what would fit: {' or '.join(options)}"
    if fits(replace(with_length(limits, shortest, task), max_num_seqs=1)):
        return "what would fit: fewer sequences and a shorter context together"
    within = "" if request.spec.limits.memory_bytes is None else " within limits.memory_bytes"
    return f"no limits make it fit{within}: use a smaller model or quantization, or free memory"
