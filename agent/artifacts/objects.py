"""References of object stores, `//bucket/path`: one GGUF file, or a directory with a model in it."""

from __future__ import annotations

import re

from agent.artifacts.job import Job
from agent.frozen import frozen

_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<total>\d{5})\.gguf")
#: Parts of one file; the largest models have some hundred.
_MOST_PARTS = 4096


@frozen
class Place:
    """What is named. `key` is an object's, or that of a directory without a slash at its end; "" is the bucket."""

    bucket: str
    key: str

    @classmethod
    def of(cls, job: Job) -> Place:
        bucket, _, key = job.repo.partition("/")
        return cls(bucket, key)

    @property
    def directory(self) -> str:
        """What the names of its files are relative to, with a slash at its end; "" for the whole bucket."""
        if self.key.endswith(".gguf"):
            return self.key[: self.key.rfind("/") + 1]
        return f"{self.key}/" if self.key else ""

    def parts(self) -> tuple[str, ...]:
        """The objects of a GGUF file; () for a directory. Nothing is listed for them: who may read a file may not
        always list its directory."""
        if not self.key.endswith(".gguf"):
            return ()
        split = _PART.fullmatch(self.key)
        total = int(split["total"]) if split else 0
        if split is None or not 0 < total <= _MOST_PARTS:
            return (self.key,)
        return tuple(f"{split['stem']}-{number:05}-of-{total:05}.gguf" for number in range(1, total + 1))
