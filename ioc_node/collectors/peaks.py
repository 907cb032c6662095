"""Models of accelerators: the name that a demand uses for one, and the rates that its data sheet gives.

`peaks.toml` is the table, with its sources. Who has measured says so in the configuration instead.
"""

import functools
import re
import tomllib
from importlib.resources import files
from typing import Final

import msgspec

from ioc_wire.records import Tflops

_MAKER: Final = frozenset({"nvidia", "tesla", "geforce", "quadro", "gpu", "graphics", "generation", "device"})
_FORM: Final = re.compile(r"sxm[0-9]?|pcie|nvl|fhhl|hbm[0-9]?[a-z]?|[0-9]+gb")


class _Nominal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    source: str
    tflops: Tflops
    words: tuple[str, ...] = ()


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[_Nominal, ...]


def name_words(name: str) -> list[str]:
    """The words of a driver's name, in lower case: `NVIDIA A100-SXM4-40GB` has four."""
    return re.findall(r"[a-z0-9.]+", name.lower())


def model_of(name: str) -> str:
    """As demands name it: `NVIDIA H100 80GB HBM3` is an `h100`, `NVIDIA GeForce RTX 4090` an `rtx-4090`. Maker, form
    and memory are left out: a demand asks for the memory itself. `unknown` where nothing is left.
    """
    kept = [word for word in name_words(name) if word not in _MAKER and not _FORM.fullmatch(word)]
    return "-".join(kept)[:64] or "unknown"


def nominal_tflops(model: str, words: list[str] | None = None) -> Tflops:
    """Nominal peak of one device by precision; empty where the table has none. Without the `words` of its full name
    the variant is not known, and a model whose variants differ claims nothing.
    """
    variants = [each for each in _nominal() if each.model == model.lower()]
    if words is None:
        rates = [each.tflops for each in variants]
        return dict(rates[0]) if rates and all(each == rates[0] for each in rates) else {}
    fitting = [each for each in variants if set(each.words) <= set(words)]
    return dict(max(fitting, key=lambda each: len(each.words)).tflops) if fitting else {}


@functools.cache
def _nominal() -> tuple[_Nominal, ...]:
    text = files("ioc_node.collectors").joinpath("peaks.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), _Table, strict=True).devices
