"""The Python that a program finds in `sys.executable` when it runs in a fork: it asks `forks.py` for one more fork, and
stands for it until its end, with its streams, signals and exit code. With an interpreter's options it is Python itself.

    python -I -S fork_client.py ADDRESS PYTHON WORDS...
"""

import json
import os
import signal
import socket
import sys


def ask(address, task, streams):
    """Asks for a fork with these streams. Two numbers come back: its own when it starts, its exit code when it ends."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [b"."], streams)
    connection.sendall(json.dumps(task).encode() + b"\n")
    return connection


def number(connection):
    """The next number that comes; nothing is read beyond its line."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece:
            raise EOFError("the process that forks has ended")
        line += piece
    return int(line)


def main(address, python, words):
    """Runs `python WORDS`; the exit code."""
    if not words or (words[0][:1] == "-" and words[0] not in ("-c", "-m")):
        os.execv(python, [python, *words])
    task = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ), "processes": 1}
    connection = ask(address, task, [0, 1, 2])
    pid = number(connection)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda sent, _: os.kill(pid, sent))
    code = number(connection)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
