"""The second half of scripts/bench: runs the parts one after the other, then prints the table or JSON."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil

from scripts._bench import adoption, containers, crash, devices, fetch, idle, place, plans, pulls, rpc, serve, startup
from scripts._bench.figures import Figure, table

PARTS: Mapping[str, Callable[..., list[Figure]]] = {
    module.PART: module.measure
    for module in (crash, idle, rpc, startup, adoption, devices, plans, fetch, pulls, serve, containers)
}


def main() -> int:
    arguments = _parser().parse_args()
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)
    report = {"date": dt.datetime.now(dt.UTC).date().isoformat(), "quick": arguments.quick, **_machine()}
    figures: list[Figure] = []
    with place.opened() as here:
        for name in arguments.only:
            sys.stderr.write(f"bench: {name} ...\n")
            try:
                figures += PARTS[name](here, quick=arguments.quick)
            finally:
                here.end()
    if arguments.json:
        print(json.dumps({**report, "figures": [figure.data() for figure in figures]}, indent=2))
    else:
        print("; ".join(f"{name} {value}" for name, value in report.items()))
        print(table(figures))
    return 0


def _machine() -> dict[str, Any]:
    """Its class, not its name."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "unknown")
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return wanted


def _parser() -> argparse.ArgumentParser:
    """Its options are explained in scripts/bench."""
    parser = argparse.ArgumentParser(prog="scripts/bench", usage="scripts/bench --help", add_help=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=_parts, default=list(PARTS))
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; everything that was started is ended\n")
        sys.exit(130)
