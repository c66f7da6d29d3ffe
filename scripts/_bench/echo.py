"""`python -m scripts._bench.echo SOCKET`: the least that a grpc.aio server can do, which is answer nothing."""

from __future__ import annotations

import asyncio
import sys

import grpc

SERVICE, METHOD = "bench.Echo", "Echo"


async def main(path: str) -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handlers = {METHOD: grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
