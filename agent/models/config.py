"""Checked access to the JSON that describes a model: every value's type and range, every complaint with its path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent.models.errors import ProfileError, corrupt, unsupported
from agent.models.reader import Reader

#: Bytes of the largest JSON file that is read: an index of 100,000 tensors has 10 MB.
MAX_JSON = 32 * 1024**2
#: Upper bounds, far beyond any model: they keep a damaged file from costing time, and name the field.
MOST = {
    "layers": 2_048,
    "width": 1 << 20,  # hidden and inner sizes
    "heads": 1 << 14,
    "experts": 1 << 16,
    "vocabulary": 1 << 24,
    "tokens": 1 << 40,
}
#: Entries of a list: names of modules that are not quantized may be tens of thousands.
_MOST_ENTRIES = 1 << 18


def load_json(reader: Reader, name: str) -> dict[str, Any]:
    """The object in a file. Raises `ProfileError`."""
    if (size := reader.size()) > MAX_JSON:
        raise corrupt(f"{name} has {size} bytes; a real one has less than {MAX_JSON}")
    try:
        data = json.loads(reader.read(0, size))
    except (ValueError, RecursionError) as error:
        raise corrupt(f"{name} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise corrupt(f"{name} must be an object, not {type(data).__name__}")
    return data


class Config:
    """One object of a configuration; `path` names it in errors."""

    def __init__(self, data: Mapping[str, Any], path: str) -> None:
        self.data, self.path = data, path
        # What was checked once is not checked again for each layer.
        self._sections: dict[str, Config] = {}
        self._lists: dict[tuple[str, int | None, str], list[Any]] = {}

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def automatic(self, key: str) -> bool:
        """Whether a size is left to the architecture."""
        return self.data.get(key) is None or self.data[key] == "auto"

    def section(self, key: str) -> Config:
        """The object below `key`; an empty one where there is none."""
        if key not in self._sections:
            value = self.data.get(key)
            if value is None:
                value = {}
            if not isinstance(value, Mapping):
                raise self.wrong(key, "must be an object")
            path = f"{self.path}: {key}" if ":" not in self.path else f"{self.path}.{key}"
            self._sections[key] = Config(value, path)
        return self._sections[key]

    def whole(
        self, *keys: str, default: int | None = None, least: int = 1, most: str | int = "width", what: str = ""
    ) -> int:
        """The whole number under the first of `keys` that is there."""
        limit = MOST[most] if isinstance(most, str) else most
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
                raise self.wrong(key, "must be a whole number")
            if not least <= value <= limit:
                raise self.wrong(key, f"must be {least} to {limit}")
            return int(value)
        if default is None:
            raise corrupt(f"{self.path}: {what or ' or '.join(keys)} is missing; it must be a whole number")
        return default

    def real(self, key: str, default: float = 0.0) -> float:
        value = self.data.get(key, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self.wrong(key, "must be a number")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def text(self, *keys: str, default: str = "") -> str:
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if not isinstance(value, str) or len(value) > 4096:
                raise self.wrong(key, "must be a string of at most 4096 characters")
            return value
        return default

    def texts(self, key: str) -> list[str]:
        """A list of strings; empty where there is none."""
        found = self._lists.get((key, None, ""))
        if found is None:
            found = self._list(key, "must be a list of strings")
            if not all(isinstance(item, str) for item in found):
                raise self.wrong(key, "must be a list of strings")
            self._lists[key, None, ""] = found
        return found

    def wholes(self, key: str, *, least: int = 0, most: str = "width") -> list[int]:
        """A list of whole numbers; empty where there is none."""
        found = self._lists.get((key, least, most))
        if found is None:
            values = self._list(key, "must be a list of whole numbers")
            found = [Config({key: item}, self.path).whole(key, least=least, most=most) for item in values]
            self._lists[key, least, most] = found
        return found

    def _list(self, key: str, rule: str) -> list[Any]:
        value = self.data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, rule)
        if len(value) > _MOST_ENTRIES:
            raise self.wrong(key, f"must have at most {_MOST_ENTRIES} entries, not {len(value)}")
        return value

    def per_layer(self, key: str, layers: int) -> list[str]:
        """A list of one string a layer; empty where there is none."""
        values = self.texts(key)
        if values and len(values) < layers:
            raise self.wrong(key, f"must name a kind for each of {layers} layers, not {len(values)}")
        return values[:layers]

    def wrong(self, key: str, rule: str) -> ProfileError:
        """The error for a value that breaks a rule."""
        value = self.data.get(key)
        found = json.dumps(value[:20] if isinstance(value, list | str) else value, default=str)
        return corrupt(f"{self.path}: {key} {rule} (found {found[:60]})")

    def odd(self, message: str) -> ProfileError:
        """The error for values that contradict each other."""
        return corrupt(f"{self.path}: {message}")

    def unknown(self, message: str) -> ProfileError:
        """The error for what is well formed but not known here."""
        return unsupported(f"{self.path}: {message}")
