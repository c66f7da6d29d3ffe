"""scripts/bench memory: the memory model beside what engines really reported at their start."""
