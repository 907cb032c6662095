"""WebAssembly engines, each lent to one run at a time, and the cache of compiled programs in front of them.

Why several engines: wasmtime stops code by advancing the *epoch* of an engine, which stops every run in it.
With one engine per running program, stopping one leaves the others alone, no clock has to tick, and only
wasmtime's public interface is used. Compiling happens once per program; the machine code is then loaded
into each engine.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from wasmtime import (
    Caller,
    Config,
    Engine,
    FuncType,
    InstancePre,
    Linker,
    Memory,
    Module,
    ValType,
    WasmtimeError,
)

from ioc_node.executors.executor import BadProgram

PROGRAM_BYTES_MAX: Final = 64 << 20
IMAGES_MAX: Final = 64
IMAGE_BYTES_MAX: Final = 256 << 20
"""Compiled programs kept, all together."""
LOADED_MAX: Final = 8
"""Programs that one idle engine keeps ready to be started."""
SLOTS_IDLE_MAX: Final = 8

_SUBSCRIPTION_BYTES: Final = 48
_EVENT_BYTES: Final = 32
_SUBSCRIPTIONS_MAX: Final = 1024
_ERRNO_FAULT: Final = 21
_ERRNO_INTERRUPTED: Final = 27
_ERRNO_INVALID: Final = 28
_CLOCK_ABSOLUTE: Final = 1


class Image:
    """A compiled program: machine code for engines of one kind, named by the hash of its source and the
    kind."""

    __slots__ = ("code", "name")

    def __init__(self, name: bytes, code: bytes) -> None:
        self.name = name
        self.code = code


class Slot:
    """An engine with WASI linked in. `stop` may be called from any thread."""

    def __init__(self, *, metered: bool) -> None:
        self.metered = metered
        self.engine = Engine(_configure(metered=metered))
        self.stopped = threading.Event()
        self.interrupted = False
        """Whether the present run was woken from a sleep by `stop`."""
        self._loaded: OrderedDict[bytes, InstancePre] = OrderedDict()
        self._linker = Linker(self.engine)
        self._linker.define_wasi()
        # WASI's own poll_oneoff sleeps where no epoch reaches it; ours wakes up when the run is stopped.
        self._linker.allow_shadowing = True
        signature = FuncType([ValType.i32()] * 4, [ValType.i32()])
        self._linker.define_func(
            "wasi_snapshot_preview1", "poll_oneoff", signature, self._poll, access_caller=True
        )

    def load(self, image: Image) -> InstancePre:
        """The program, ready to be instantiated. Raises `BadProgram` where it wants more than WASI offers."""
        if (found := self._loaded.get(image.name)) is not None:
            self._loaded.move_to_end(image.name)
            return found
        try:
            ready = self._linker.instantiate_pre(Module.deserialize(self.engine, image.code))
        except WasmtimeError as error:
            raise BadProgram(f"the program cannot be linked: {one_line(error)}") from None
        self._loaded[image.name] = ready
        if len(self._loaded) > LOADED_MAX:
            self._loaded.popitem(last=False)
        return ready

    def stop(self) -> None:
        """End the run in this engine at its next loop or call, also where it sleeps."""
        self.stopped.set()
        self.engine.increment_epoch()

    def _poll(self, caller: Caller, subscriptions: int, events: int, count: int, written: int) -> int:
        """WASI preview 1 `poll_oneoff`: clocks are waited for, everything else is ready at once."""
        memory = caller.get("memory")
        if not isinstance(memory, Memory):
            return _ERRNO_FAULT
        if not 0 < count <= _SUBSCRIPTIONS_MAX:
            return _ERRNO_INVALID
        subscriptions, events, written = (value & 0xFFFFFFFF for value in (subscriptions, events, written))
        size = memory.data_len(caller)
        if (
            max(subscriptions + count * _SUBSCRIPTION_BYTES, events + count * _EVENT_BYTES, written + 4)
            > size
        ):
            return _ERRNO_FAULT
        raw = bytes(memory.read(caller, subscriptions, subscriptions + count * _SUBSCRIPTION_BYTES))
        wait_ns, ready = _plan_poll(raw, count)
        if wait_ns > 0 and self._sleep(wait_ns):
            self.interrupted = True
            return _ERRNO_INTERRUPTED
        memory.write(caller, ready, events)
        memory.write(caller, (len(ready) // _EVENT_BYTES).to_bytes(4, "little"), written)
        return 0

    def _sleep(self, wait_ns: int) -> bool:
        """True when the run was stopped before the time was over."""
        return self.stopped.wait(min(wait_ns / 1e9, threading.TIMEOUT_MAX))


def _plan_poll(raw: bytes, count: int) -> tuple[int, bytes]:
    """How long to wait, and the events to answer with: the descriptors if any, else the clocks that ring
    first."""
    clocks: list[tuple[int, bytes]] = []
    descriptors: list[bytes] = []
    for index in range(count):
        item = raw[index * _SUBSCRIPTION_BYTES : (index + 1) * _SUBSCRIPTION_BYTES]
        event = item[:8] + bytes(2) + item[8:9] + bytes(21)
        if item[8] == 0:
            clocks.append((_clock_wait_ns(item), event))
        else:
            descriptors.append(event)
    if descriptors:
        return 0, b"".join(descriptors)
    first = min(wait for wait, _ in clocks)
    return first, b"".join(event for wait, event in clocks if wait <= first)


def _clock_wait_ns(item: bytes) -> int:
    clock = int.from_bytes(item[16:20], "little")
    timeout = int.from_bytes(item[24:32], "little")
    if not int.from_bytes(item[40:42], "little") & _CLOCK_ABSOLUTE:
        return timeout
    # WASI's monotonic clock starts with the run and is not readable from here: a relative guess would be
    # wrong.
    return max(0, timeout - time.time_ns()) if clock == 0 else 1_000_000


class Engines:
    """All engines and compiled programs of one executor. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[bool, list[Slot]] = {False: [], True: []}
        self._images: OrderedDict[bytes, Image] = OrderedDict()
        self._image_bytes = 0

    def take(self, *, metered: bool) -> Slot:
        """An engine of one's own until `give_back`."""
        with self._lock:
            slot = self._idle[metered].pop() if self._idle[metered] else None
        if slot is None:
            slot = Slot(metered=metered)
        slot.stopped.clear()
        slot.interrupted = False
        return slot

    def give_back(self, slot: Slot) -> None:
        with self._lock:
            if len(self._idle[slot.metered]) < SLOTS_IDLE_MAX:
                self._idle[slot.metered].append(slot)

    def compile(self, program: Path, metered: bool) -> Image:
        """The compiled program, from the cache where the same bytes were compiled before. Raises
        `BadProgram`."""
        source = _read_program(program)
        name = hashlib.sha256(source).digest() + bytes([metered])
        with self._lock:
            if (found := self._images.get(name)) is not None:
                self._images.move_to_end(name)
                return found
        slot = self.take(metered=metered)
        try:
            code = bytes(Module(slot.engine, source).serialize())
        except WasmtimeError as error:
            raise BadProgram(f"{program.name} is not a WebAssembly program: {one_line(error)}") from None
        finally:
            self.give_back(slot)
        image = Image(name, code)
        self._remember(image)
        return image

    def _remember(self, image: Image) -> None:
        with self._lock:
            if image.name in self._images:
                return
            self._images[image.name] = image
            self._image_bytes += len(image.code)
            while len(self._images) > IMAGES_MAX or (
                self._image_bytes > IMAGE_BYTES_MAX and len(self._images) > 1
            ):
                self._image_bytes -= len(self._images.popitem(last=False)[1].code)


def _configure(*, metered: bool) -> Config:
    config = Config()
    config.epoch_interruption = True
    config.consume_fuel = metered
    config.wasm_threads = False  # an atomic wait cannot be interrupted
    config.wasm_memory64 = False
    return config


def _read_program(program: Path) -> bytes:
    try:
        with program.open("rb") as file:
            source = file.read(PROGRAM_BYTES_MAX + 1)
    except OSError as error:
        raise BadProgram(f"program {program.name} cannot be read: {error.strerror}") from None
    if len(source) > PROGRAM_BYTES_MAX:
        raise BadProgram(f"program {program.name} is larger than {PROGRAM_BYTES_MAX >> 20} MiB")
    if (
        source[:4] != b"\0asm"
    ):  # wasmtime would take text for a program, and we promise only the binary format
        raise BadProgram(
            f"{program.name} is not a WebAssembly program: it does not begin with its magic number"
        )
    return source


def one_line(error: Any, *, chars_max: int = 300) -> str:
    """The text of a wasmtime error in one line, without its backtrace."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line
        for line in lines
        if line and not line.startswith(("wasm backtrace", "note:")) and "!<" not in line
    ]
    return " ".join(kept)[:chars_max]
