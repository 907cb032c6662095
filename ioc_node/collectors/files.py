"""Text of a file that others write: a plain file, of bounded length. A pipe or a device would never end."""

import os
import stat
from pathlib import Path


class BadFile(Exception):
    """It cannot be used, and why. Never leaves this room."""


def read_text(path: Path, bytes_max: int) -> str:
    """All of a file in UTF-8, without a byte order mark. Raises `BadFile`."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )  # else a pipe waits for its writer
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadFile("not a plain file")
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise BadFile(error.strerror or str(error)) from None
    if len(data) > bytes_max:
        raise BadFile(f"longer than {bytes_max} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"not UTF-8 at byte {error.start}") from None
