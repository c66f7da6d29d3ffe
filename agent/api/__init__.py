"""The control API of one node: gRPC over two Unix sockets, one that may change and one that may only look."""
