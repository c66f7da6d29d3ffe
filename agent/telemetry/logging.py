"""Structured logs on stderr: JSON for machines and journals, aligned text for a terminal."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

import structlog

#: What journald reads from the start of a line (sd-daemon(3)), so that `journalctl -p warning` finds it.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(level: str, format: Literal["auto", "json", "console"]) -> None:
    """Set up structlog once, at start. `auto`: text on a terminal, JSON elsewhere."""
    text = format == "console" or (format == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if text else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not text:
        processors.append(structlog.processors.dict_tracebacks)
    if _to_journal():
        render = renderer
        renderer = lambda logger, name, event: f"<{_PRIORITIES[event['level']]}>{render(logger, name, event)!s}"  # noqa: E731
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _to_journal() -> bool:
    """Whether stderr is the stream that systemd opened for us; the variable alone may be inherited."""
    stream = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
