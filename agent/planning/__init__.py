"""Pure planning: inventory, profile, catalog and policy in, plan out."""
