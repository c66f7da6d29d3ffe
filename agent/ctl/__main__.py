"""`python -m agent.ctl`: agentctl where no entry point is installed."""

from __future__ import annotations

from agent.ctl.main import main

if __name__ == "__main__":
    main()
