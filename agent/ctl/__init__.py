"""agentctl: the command line of a node. Knows the API's client and the configuration, never the daemon."""

import gc
import os

from agent.lazy import defer

# What the start makes is kept: to look for garbage in it, over and over, would cost a twentieth of the start.
gc.set_threshold(50_000)
# Most of the time until a command begins goes to what libraries import and a command does not use: gRPC's half for
# asyncio, protobuf's messages in Python, which its C replaces, and what the standard library and these two need for
# errors, dates and addresses of the network. Whoever does use one of them gets it.
defer("asyncio", "grpc.aio", "grpc_status._async", "google.protobuf.internal.python_message")
defer(
    "base64",
    "calendar",
    "click.shell_completion",
    "copy",
    "inspect",
    "ipaddress",
    "pkgutil",
    "selectors",
    "socket",
    "textwrap",
    "traceback",
)
# uuid, which click imports for a type of option, asks at once whether this is AIX; `platform` compiles patterns first.
defer("platform", system=lambda: os.uname().sysname)
