"""A child that answers probes as llama.cpp does, and computes nothing: its own end takes the kernel one millisecond.

A real engine's takes four, which is the same for every supervisor and hides what they differ in.
"""

import json
import socket
import sys

ANSWERS = {"/slots": [{"n_ctx": 256}], "/v1/models": {"data": []}}


def main() -> None:
    if "--version" in sys.argv:
        print("version: 1 (small)")
        return
    port = int(sys.argv[sys.argv.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                path = connection.recv(65536).split(b" ")[1].decode()
                body = json.dumps(ANSWERS.get(path, {})).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)


if __name__ == "__main__":
    main()
