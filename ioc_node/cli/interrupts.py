"""Ctrl-C, SIGTERM and SIGHUP: what comes before or after trio listens must not cut an orderly end short.

trio raises a signal again that arrived while its receiver was closing. With the default disposition that would kill a
process that is ending in order, so the programs that end on signals note them themselves around `trio.run`.
"""

import signal
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def note_signals() -> list[int]:
    """From now on these signals are only added to the list that is returned, unless trio receives them."""
    noted: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda arrived, _frame: noted.append(arrived))
    return noted
