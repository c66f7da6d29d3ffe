"""How instances are executed: one file a runtime."""
