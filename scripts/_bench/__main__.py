"""The second half of scripts/bench: runs the parts one after the other, prints the table or JSON."""

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

from scripts._bench import adoption, crash, idle, place, rpc, startup
from scripts._bench.figures import Figure, table

PARTS: Mapping[str, Callable[..., list[Figure]]] = {
    module.PART: module.measure for module in (crash, idle, rpc, startup, adoption)
}


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    figures: list[Figure] = []
    with place.opened() as here:
        for name in arguments.only:
            sys.stderr.write(f"bench: {name} ...\n")
            figures += PARTS[name](here, quick=arguments.quick)
    report = {"date": dt.datetime.now(dt.UTC).date().isoformat(), "quick": arguments.quick, "machine": machine()}
    if arguments.json:
        print(json.dumps({**report, "figures": [figure.data() for figure in figures]}, indent=2))
    else:
        print(", ".join(f"{key}: {value}" for key, value in {**report, **machine()}.items() if key != "machine"))
        print(table(figures))
    return 0


def machine() -> dict[str, Any]:
    """Its class, not its name."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpus": os.cpu_count(),
        "cpu": model.partition(":")[2].strip() or platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
    }


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return wanted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar="NAME[,NAME]")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; everything that was started is ended")
