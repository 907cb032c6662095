"""What `ioc-testnet impair` does: a bad line, until Ctrl-C, and what became of the datagrams."""

import ipaddress
from dataclasses import asdict
from typing import Any

import trio
from rich.console import Console

from ioc_node.cli.common import print_json, stdout, table
from ioc_node.errors import UsageError
from ioc_testnet.impair import Address, Impaired, Impairment, open_impaired
from ioc_testnet.interrupts import run_in_order


def run_impair(target: str, listen: str, impairment: Impairment, *, as_json: bool) -> int:
    """Carry datagrams between `listen` and `target` until interrupted."""
    there = parse_address(target)
    host, port = parse_address(listen)
    console = Console(stderr=True, highlight=False) if as_json else stdout()

    async def program() -> None:
        async with open_impaired(there, impairment, host=host, port=port) as line:
            console.print(f"UDP {host}:{line.port} leads to {target}; Ctrl-C ends it", soft_wrap=True)
            try:
                await trio.sleep_forever()
            finally:
                if as_json:
                    print_json(facts(line))
                else:
                    _render(console, line)

    return run_in_order(program)


def parse_address(text: str) -> Address:
    """`HOST:PORT`, a numeric host, IPv6 in brackets; raises `UsageError`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
        if not 0 <= number <= 65_535:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"an address is HOST:PORT with a numeric host and a port up to 65535, not {text!r}"
        ) from None
    return host, number


def facts(line: Impaired) -> dict[str, Any]:
    """The counters of both directions."""
    return {"up": asdict(line.up.counters), "down": asdict(line.down.counters)}


def _render(console: Console, line: Impaired) -> None:
    rows = facts(line)
    view = table("direction", *rows["up"])
    for name, counters in rows.items():
        view.add_row(name, *map(str, counters.values()))
    console.print(view)
