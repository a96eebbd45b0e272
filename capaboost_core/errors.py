"""The exceptions that a command shows as one line without a stack trace, and texts for such lines."""

import re
import textwrap

MAX_MESSAGE = 1000  # characters
NO_MEMORY = re.compile(r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)


class UserError(ValueError):
    """A mistake that the user can correct: the message is one line and says what to type instead.

    File names and typed values in it may contain any characters: unprintable ones are escaped, and the middle of a
    long message is cut out.
    """

    def __init__(self, message: str):
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(_without_middle(plain, MAX_MESSAGE))


class Stopped(KeyboardInterrupt):
    """A signal has stopped the run.

    Args:
        number: The number of the signal.
        message: One line, or empty if there is nothing to add.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


class DivergedError(UserError):
    """The loss of a run is no longer finite."""


def shown(value: object, width: int = 200) -> str:
    """The `repr` of a user's value, with its middle cut out if it is long."""
    return _without_middle(repr(value), width)


def reason_of(error: BaseException, width: int = 200) -> str:
    """Another library's error message in one line, with its type if the message alone says little."""
    text = textwrap.shorten(str(error), width, placeholder=" ...")
    bare = not text or isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError))
    return f"{type(error).__name__}: {text}".removesuffix(": ") if bare else text


def is_no_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted: in Python, NumPy, or torch's allocators of CPU and devices."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, OSError)) and NO_MEMORY.search(str(error)) is not None


def no_memory_line(error: BaseException) -> str:
    """The message for exhausted memory, with the settings to lower."""
    return (
        f"out of memory ({reason_of(error)}); set train.gradient_accumulation_steps=2 or more, which changes no "
        "result, or a smaller train.batch_size, model.img_size, data.max_length or model"
    )


def _without_middle(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
