"""The durable state of the node: SQLite in the state directory, one writer thread, salvage of what is damaged."""
