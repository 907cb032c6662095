"""How the process that moves bulk data begins: it watches from its first moment on whether its node is there.

It inherits the node's bulk sockets. A node that was killed and is started again at once needs its port, while what it
left may still be importing modules, or wait for a slow disk: `ioc_node.bulk.plane.child` notices too late then. Run as
a file, since `python -m` imports whole packages before the first line of a module.
"""

import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

GOODBYE_SECONDS: Final = 0.5
"""What runs already has so long to take leave of readers and to end by itself."""


def watch(link: int, udps: Sequence[int], running: threading.Event) -> None:
    """Wait until the other end of the socket pair is closed, give the ports back, and end this process."""
    hung_up = select.poll()
    hung_up.register(link, 0)
    hung_up.poll()
    if running.is_set():
        time.sleep(GOODBYE_SECONDS)
    for udp in udps:  # a process is not gone before the disk has answered its threads; its sockets are
        os.close(udp)
    os._exit(0)


def _numbers(option: str) -> list[int]:
    return [int(each.removeprefix(option)) for each in sys.argv if each.startswith(option)]


def main() -> None:
    """Started by `ioc_node.bulk.plane.process`, which says with what; see `child.main`."""
    running = threading.Event()
    threading.Thread(
        target=watch, args=(*_numbers("--link="), _numbers("--udp="), running), daemon=True
    ).start()
    from ioc_node.bulk.plane import child  # here, since this takes long

    running.set()
    child.main()


if __name__ == "__main__":
    main()
