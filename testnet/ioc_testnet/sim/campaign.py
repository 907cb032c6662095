"""What `ioc-testnet sim experiments` does: run them, write a JSON and a plot for each, and a page about all."""

import json
from pathlib import Path
from typing import Any

from ioc_node.cli.common import plain, print_json, stdout
from ioc_node.errors import NodeError, UsageError
from ioc_testnet.sim.command import collected_rarely, progress_on_stderr
from ioc_testnet.sim.experiments import EXPERIMENTS
from ioc_testnet.sim.latency import read_latency


def run_sim_experiments(names: tuple[str, ...], out: Path, latency: str | None, *, as_json: bool) -> int:
    """Run the named ones, or all; exit code 1 if a threshold is missed. The page is made anew from all JSON files."""
    try:
        from ioc_testnet.sim.page import write_page
    except ImportError:
        raise UsageError("experiments draw with matplotlib: install ioc-node[demo]") from None

    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no experiment; there are {', '.join(EXPERIMENTS)}")
    if latency is not None:
        read_latency(latency)
    results: dict[str, Any] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in names or tuple(EXPERIMENTS):
            with collected_rarely():
                results[name] = EXPERIMENTS[name](latency, progress_on_stderr(f"{name}: "))
            (out / f"{name}.json").write_text(json.dumps(results[name], indent=1) + "\n", encoding="utf-8")
        write_page(out)
    except OSError as error:
        raise NodeError(f"{error.filename or out}: {error.strerror or error}") from None
    thresholds = [(name, each) for name, result in results.items() for each in result["thresholds"]]
    if as_json:
        print_json({"out": str(out), "thresholds": {name: results[name]["thresholds"] for name in results}})
    else:
        for name, each in thresholds:
            held = "held" if each["held"] else "MISSED"
            stdout().print(
                plain(f"{held:6}  {name}: {each['what']}: {each['value']} (at least {each['least']})")
            )
    return 0 if all(each["held"] for _, each in thresholds) else 1
