"""What scripts/bench runs: each part is a module with `measure(place, quick) -> list[Figure]`."""
