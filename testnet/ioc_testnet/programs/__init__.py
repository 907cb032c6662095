"""WebAssembly programs of the examples, built from `examples/` by `examples/build.sh`."""

from pathlib import Path


def program_path(name: str) -> Path:
    """The file of `hillshade`, `mosaic`, `hello`, `noop` or `sleeper`."""
    return Path(__file__).with_name(f"{name}.wasm")
