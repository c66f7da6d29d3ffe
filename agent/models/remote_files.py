"""Headers of files that lie elsewhere, read as those of local files are, however the place is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from agent.models.reader import Reader

#: Bytes of a file that are asked for first; nearly all safetensors headers are shorter (huggingface_hub, `hf_api.py`).
_BEGINNING = 128 * 1024
#: Files that are asked for at once: a model of 500 files is a thousand requests.
_AT_ONCE = 8


class Remote(Protocol):
    """One file at its place. Used by one thread at a time."""

    @property
    def size(self) -> int | None:
        """None until something was fetched, where only an answer says it."""
        ...

    def fetch(self, offset: int, length: int) -> bytes:
        """So many bytes, or what is there of them."""
        ...


class RemoteFile:
    """A `Reader` over one of them. What was read of its beginning is kept: headers are read in steps."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._beginning = b""

    def size(self) -> int:
        if self._remote.size is None:
            self.read(0, 1)
        assert self._remote.size is not None
        return self._remote.size

    def read(self, offset: int, length: int) -> bytes:
        have = len(self._beginning)
        if offset > have:
            return self._remote.fetch(offset, length)
        if offset + length > have:
            more = max(offset + length - have, 0 if have else _BEGINNING)
            self._beginning += self._remote.fetch(have, more)
        return self._beginning[offset : offset + length]

    def forget(self) -> None:
        self._beginning = b""


class RemoteFiles(Mapping[str, Reader]):
    """A model's files."""

    def __init__(self, files: Mapping[str, Remote]) -> None:
        self._files = {name: RemoteFile(remote) for name, remote in files.items()}

    def __getitem__(self, name: str) -> RemoteFile:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def forget(self, name: str) -> None:
        """Give the memory of what was read back."""
        self._files[name].forget()

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """Read the beginnings of several files at once."""
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            for _ in pool.map(lambda name: self._files[name].read(0, 8), names):
                pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
