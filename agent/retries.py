"""Asking a server again: what may pass by itself, and when the next try is due. For processes that ask strangers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TypeVar

_T = TypeVar("_T")

#: Answers after which the same request may succeed.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class Again(Exception):
    """Another try may help, after `wait` seconds where the other side named them."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def patiently(ask: Callable[[], _T], pauses: Sequence[float], until: float) -> _T:
    """One try more than there are pauses (seconds), each as long as the other side asks for at least. Raises the last
    `Again`, also where the next try would come after `until` (monotonic)."""
    for pause in pauses:
        try:
            return ask()
        except Again as error:
            wait = max(error.wait, pause)
            if time.monotonic() + wait > until:
                raise
        time.sleep(wait)
    return ask()


def told_wait(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait, as a number of them or a date; 0 where it does not. Names are lower case."""
    text = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
