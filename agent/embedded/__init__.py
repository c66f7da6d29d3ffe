"""Engines that come as Python wheels, each behind a launcher that is a program of its own. The daemon imports none."""
