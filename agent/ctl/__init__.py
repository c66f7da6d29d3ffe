"""agentctl: the command line of a node. Knows the API's client and the configuration, never the daemon."""

import gc

from agent.lazy import defer

# What the start makes is kept: to look for garbage in it, over and over, would cost a twentieth of the start.
gc.set_threshold(50_000)
# Most of the time until a command begins went to what these libraries import and we do not use: gRPC's half for
# asyncio, and protobuf's messages in Python, which its C replaces.
defer("asyncio", "grpc.aio", "grpc_status._async", "google.protobuf.internal.python_message")
