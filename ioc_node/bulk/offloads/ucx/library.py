"""The part of UCX's C API (`ucp.h`, stable since UCX 1.10) that this offload uses, bound with ctypes.

Structures carry a mask of valid fields, which is how the library stays compatible. `find_library` looks for the
system's UCX first: the one of the distribution or of the fabric's vendor knows RDMA devices, the wheel
`libucx-cu12` of the extra `ioc-node[ucx]` is built for TCP and shared memory. No CUDA library is needed.
"""

import ctypes
import ctypes.util
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Final

API_MAJOR: Final = 1
API_MINOR: Final = 10
"""What is asked for, and what any later 1.x library gives."""

FEATURE_WAKEUP: Final = 1 << 4
FEATURE_AM: Final = 1 << 6
ERROR_HANDLING_NONE: Final = 0
ERROR_HANDLING_PEER: Final = 1
EP_FLAG_CLIENT_SERVER: Final = 1
EP_CLOSE_FORCE: Final = 1
AM_SEND_EAGER: Final = 1 << 1
AM_SEND_RNDV: Final = 1 << 2
AM_SEND_COPY_HEADER: Final = 1 << 3
AM_RECV_REPLY_EP: Final = 1 << 0
AM_RECV_RNDV: Final = 1 << 17
OP_FLAGS: Final = 1 << 4
OP_MEMH: Final = 1 << 8
OK: Final = 0
INPROGRESS: Final = 1
THREADS_SERIALIZED: Final = 1
ERR_BUSY: Final = -15
ERR_RESET: Final = -25
ERR_LAST: Final = -100

_GLOBAL_SETTINGS: Final = {
    # Read once, when the library is loaded: no signal handlers, no thread that serves a file system, and no patching
    # of mmap and free in this process (buffers are registered explicitly, so nothing has to be watched).
    "UCX_HANDLE_ERRORS": "none",
    "UCX_ERROR_SIGNALS": "",
    "UCX_VFS_ENABLE": "n",
    "UCX_MEM_EVENTS": "n",
    "UCX_MEM_MMAP_HOOK_MODE": "none",
    "UCX_MEM_CUDA_HOOK_MODE": "none",
    "UCX_MEM_MALLOC_HOOKS": "n",
    "UCX_LOG_LEVEL": "fatal",
    "UCX_WARN_UNUSED_ENV_VARS": "n",
}

c_status = ctypes.c_int8
"""`ucs_status_t` is a packed enumeration: one byte."""

AmCallback = CFUNCTYPE(c_status, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p)
ConnectionCallback = CFUNCTYPE(None, c_void_p, c_void_p)
ErrorCallback = CFUNCTYPE(None, c_void_p, c_void_p, c_status)


class ContextParams(Structure):
    """`ucp_params_t`."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("features", c_uint64),
        ("request_size", c_size_t),
        ("request_init", c_void_p),
        ("request_cleanup", c_void_p),
        ("tag_sender_mask", c_uint64),
        ("mt_workers_shared", c_int),
        ("estimated_num_eps", c_size_t),
        ("estimated_num_ppn", c_size_t),
        ("name", c_char_p),
        ("node_local_id", c_size_t),
    )


class WorkerParams(Structure):
    """`ucp_worker_params_t`; the CPU mask has 1024 bits."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("thread_mode", c_int),
        ("cpu_mask", c_uint64 * 16),
        ("events", c_uint),
        ("user_data", c_void_p),
        ("event_fd", c_int),
        ("flags", c_uint64),
        ("name", c_char_p),
        ("am_alignment", c_size_t),
        ("client_id", c_uint64),
    )


class SocketAddress(Structure):
    """`ucs_sock_addr_t`."""

    _fields_ = (("address", c_void_p), ("length", c_uint32))


class Handler(Structure):
    """Any of UCP's pairs of a callback and its argument."""

    _fields_ = (("callback", c_void_p), ("argument", c_void_p))


class ListenerParams(Structure):
    """`ucp_listener_params_t`."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("address", SocketAddress),
        ("accept_handler", Handler),
        ("connection_handler", Handler),
    )


class ListenerAttributes(Structure):
    """`ucp_listener_attr_t`, with its `sockaddr_storage`."""

    _fields_ = (("field_mask", c_uint64), ("address", c_uint64 * 16))


class RequestAttributes(Structure):
    """`ucp_conn_request_attr_t`."""

    _fields_ = (("field_mask", c_uint64), ("address", c_uint64 * 16), ("client_id", c_uint64))


class EndpointParams(Structure):
    """`ucp_ep_params_t`."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("worker_address", c_void_p),
        ("error_mode", c_int),
        ("error_handler", Handler),
        ("user_data", c_void_p),
        ("flags", c_uint),
        ("address", SocketAddress),
        ("connection_request", c_void_p),
        ("name", c_char_p),
        ("local_address", SocketAddress),
    )


class AmHandlerParams(Structure):
    """`ucp_am_handler_param_t`."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("id", c_uint),
        ("flags", c_uint32),
        ("callback", c_void_p),
        ("argument", c_void_p),
    )


class AmReceived(Structure):
    """`ucp_am_recv_param_t`."""

    _fields_ = (("attributes", c_uint64), ("reply_endpoint", c_void_p))


class MemoryParams(Structure):
    """`ucp_mem_map_params_t`."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("address", c_void_p),
        ("length", c_size_t),
        ("flags", c_uint),
        ("protection", c_uint),
        ("memory_type", c_int),
        ("exported", c_void_p),
    )


class RequestParams(Structure):
    """`ucp_request_param_t`."""

    _fields_ = (
        ("mask", c_uint32),
        ("flags", c_uint32),
        ("request", c_void_p),
        ("callback", c_void_p),
        ("datatype", c_uint64),
        ("user_data", c_void_p),
        ("reply_buffer", c_void_p),
        ("memory_type", c_int),
        ("received", c_void_p),
        ("memory", c_void_p),
        ("remote_datatype", c_uint64),
        ("remote", c_void_p),
        ("remote_count", c_size_t),
    )


class TransportEntry(Structure):
    """`ucp_transport_entry_t`."""

    _fields_ = (("transport", c_char_p), ("device", c_char_p))


class Transports(Structure):
    """`ucp_transports_t`."""

    _fields_ = (("entries", POINTER(TransportEntry)), ("count", c_uint), ("entry_size", c_size_t))


class EndpointAttributes(Structure):
    """`ucp_ep_attr_t`."""

    _fields_ = (
        ("field_mask", c_uint64),
        ("name", ctypes.c_char * 32),
        ("local", c_uint64 * 16),
        ("remote", c_uint64 * 16),
        ("transports", Transports),
        ("user_data", c_void_p),
    )


_out = POINTER(c_void_p)
_SIGNATURES: Final = {
    "ucs_status_string": (c_char_p, (c_status,)),
    "ucp_get_version_string": (c_char_p, ()),
    "ucp_config_read": (c_status, (c_char_p, c_char_p, _out)),
    "ucp_config_modify": (c_status, (c_void_p, c_char_p, c_char_p)),
    "ucp_config_release": (None, (c_void_p,)),
    "ucp_init_version": (c_status, (c_uint, c_uint, POINTER(ContextParams), c_void_p, _out)),
    "ucp_cleanup": (None, (c_void_p,)),
    "ucp_worker_create": (c_status, (c_void_p, POINTER(WorkerParams), _out)),
    "ucp_worker_destroy": (None, (c_void_p,)),
    "ucp_worker_progress": (c_uint, (c_void_p,)),
    "ucp_worker_arm": (c_status, (c_void_p,)),
    "ucp_worker_get_efd": (c_status, (c_void_p, POINTER(c_int))),
    "ucp_worker_set_am_recv_handler": (c_status, (c_void_p, POINTER(AmHandlerParams))),
    "ucp_listener_create": (c_status, (c_void_p, POINTER(ListenerParams), _out)),
    "ucp_listener_destroy": (None, (c_void_p,)),
    "ucp_listener_query": (c_status, (c_void_p, POINTER(ListenerAttributes))),
    "ucp_listener_reject": (c_status, (c_void_p, c_void_p)),
    "ucp_conn_request_query": (c_status, (c_void_p, POINTER(RequestAttributes))),
    "ucp_ep_create": (c_status, (c_void_p, POINTER(EndpointParams), _out)),
    "ucp_ep_close_nbx": (c_void_p, (c_void_p, POINTER(RequestParams))),
    "ucp_ep_query": (c_status, (c_void_p, POINTER(EndpointAttributes))),
    "ucp_am_send_nbx": (
        c_void_p,
        (c_void_p, c_uint, c_void_p, c_size_t, c_void_p, c_size_t, POINTER(RequestParams)),
    ),
    "ucp_am_recv_data_nbx": (c_void_p, (c_void_p, c_void_p, c_void_p, c_size_t, POINTER(RequestParams))),
    "ucp_request_check_status": (c_status, (c_void_p,)),
    "ucp_request_free": (None, (c_void_p,)),
    "ucp_mem_map": (c_status, (c_void_p, POINTER(MemoryParams), _out)),
    "ucp_mem_unmap": (c_status, (c_void_p, c_void_p)),
}


def find_library(path: str = "") -> str | None:
    """The UCX to load: `path` where the operator names one, else the system's, else the wheel's; None without any."""
    if path:
        return path
    return ctypes.util.find_library("ucp") or _wheel_library()


def _wheel_library() -> str | None:
    spec = importlib.util.find_spec("libucx")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = Path(folder) / "lib" / "libucp.so.0"
        if found.exists():
            return str(found)
    return None


def load_library(path: str) -> ctypes.CDLL:
    """The library with its functions declared. Raises `OSError` where it cannot be loaded or is too old."""
    with global_settings():
        library = ctypes.CDLL(path)
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except AttributeError as error:
        raise OSError(f"{path} is too old: {error}") from None
    return library


@contextmanager
def global_settings() -> Iterator[None]:
    """UCX reads these from the environment alone; what an operator has set there stays."""
    before = {name: os.environ.get(name) for name in _GLOBAL_SETTINGS}
    os.environ.update({name: value for name, value in _GLOBAL_SETTINGS.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def pointer_to(callback: object) -> ctypes.c_void_p:
    """A callback as C sees it; whoever passes it on keeps the callback alive."""
    return ctypes.cast(callback, ctypes.c_void_p)  # type: ignore[arg-type]
