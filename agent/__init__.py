"""The node agent: plans, launches, supervises and reports LLM inference engines on one host."""

__version__ = "0.1.0"
