"""What is to be said of an exception that reached a place where it ends: at a link, in a story, in a block."""

import traceback


def sole(error: BaseException) -> BaseException:
    """The one exception that nurseries have wrapped in groups; the group itself where there are several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def place_of(error: BaseException) -> str:
    """File and line where an exception was raised: enough for a log line, and no traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
