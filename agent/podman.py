"""What podman's compatible API does otherwise than Docker's, by its version: who looks for container engines and who
makes containers must agree on it."""

from __future__ import annotations

import re

#: The first that does not silently pass over device requests (pkg/api/handlers/compat/containers_create.go).
_TAKES_CDI = (5, 4)


def takes_cdi(version: str) -> bool:
    """Whether a podman of this version ("5.8.3-dev") gives CDI devices to the containers that it makes by that API."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= _TAKES_CDI
