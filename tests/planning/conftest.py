"""Plans are judged by what they say, not by how long a busy machine takes for them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
