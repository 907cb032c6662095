"""Free ports for nodes: TCP and UDP `port`, UDP `port + 1` and `port + 2`, below the range that outgoing connections
are given."""

import contextlib
import random
import socket
from typing import Final

from ioc_node.errors import PortInUse

FIRST: Final = 11_000
LAST: Final = 31_998
"""Linux gives outgoing connections 32768 and above (net.ipv4.ip_local_port_range)."""
TRIES_MAX: Final = 2_000


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` ports, each free together with the two above it. All are held until the last is found.

    Raises `PortInUse`.
    """
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(TRIES_MAX):
            if len(chosen) == count:
                return chosen
            port = random.randrange(FIRST, LAST, 4)  # noqa: S311 - no secret
            with contextlib.ExitStack() as trial:
                try:
                    for number, kind in (
                        (port, socket.SOCK_STREAM),
                        (port, socket.SOCK_DGRAM),
                        (port + 1, socket.SOCK_DGRAM),
                        (port + 1, socket.SOCK_STREAM),
                        (port + 2, socket.SOCK_DGRAM),
                    ):
                        probe = trial.enter_context(socket.socket(socket.AF_INET, kind))
                        probe.bind((host, number))
                except OSError:
                    continue
                held.push(trial.pop_all())
                chosen.append(port)
    raise PortInUse(f"no {count} free groups of ports between {FIRST} and {LAST} on {host}")
