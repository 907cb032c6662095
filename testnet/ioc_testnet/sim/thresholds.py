"""What an experiment promises, and whether it held."""

from typing import Any


def threshold(what: str, value: float, least: float) -> dict[str, Any]:
    """One row of an experiment's table of thresholds."""
    return {"what": what, "value": round(value, 6), "least": least, "held": value >= least}
