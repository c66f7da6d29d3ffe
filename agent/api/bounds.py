"""Bounds that both ends of the API know."""

from __future__ import annotations

MAX_REQUEST_BYTES = 4 * 1024 * 1024  # the default of gRPC; the largest sensible spec has some KiB
MAX_PAGE_SIZE = 1000  # larger sizes are lowered to it (AIP-158); 1000 deployments are some 10 MiB
