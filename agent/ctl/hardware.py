"""`--hardware`: a machine that one does not have, as the API takes it."""

from __future__ import annotations

from typing import Any

from agent.ctl.specs import read
from agent.errors import InvalidArgument


def described(text: str) -> dict[str, Any]:
    """A description out of a YAML file (a path, or - for standard input), or the short form as it is.

    What a description must say is the daemon's to check. Raises `NotFound` and `InvalidArgument` for the file.
    """
    if text != "-" and "/" not in text and not text.endswith((".yaml", ".yml", ".json")):
        return {"short": text}
    from agent.documents import load_documents  # noqa: PLC0415  (YAML: only files pay for it)

    source = "standard input" if text == "-" else text
    documents = load_documents(read(text), source)
    if len(documents) != 1:
        raise InvalidArgument(f"{source}: has {len(documents)} descriptions of hardware; must have one")
    return documents[0]
