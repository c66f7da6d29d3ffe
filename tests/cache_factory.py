"""Plants artifacts in a cache, by the cache's own code: as a pull leaves them, without one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from agent.artifacts import cache
from agent.artifacts.cache import Kept


def keep(root: Path, repo: str, commit: str, variant: str, files: Mapping[str, bytes]) -> Kept:
    """With a variant an engine opens its first file, without one their directory."""
    folder, found = cache.repository(root, repo), []
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        blob, link = folder.blobs / digest, folder.snapshot(commit) / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            blob.write_bytes(content)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(blob, link.parent))
        found.append(cache.identify(blob, name, f"sha256:{digest}"))
    opened = next(iter(files)) if variant else ""
    source = f"hf:{repo}:{variant}" if variant else f"hf:{repo}"
    path, whole = folder.snapshot(commit) / opened, tuple(found)
    kept = Kept(source, repo, commit, variant, path, cache.digest_of(whole), whole)
    cache.write(folder, kept)
    cache.replace(folder.path / "refs" / "main", commit.encode())
    return kept
