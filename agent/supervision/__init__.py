"""Supervision: one actor per deployment around a pure decision, and the node around the actors."""
