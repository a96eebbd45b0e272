"""The exceptions that a command shows in one line, without a stack trace."""

import textwrap

LONGEST = 1000  # characters of a message


class UserError(ValueError):
    """A mistake that the user can correct: the message is one line and says what to type instead.

    File names and typed values in it may hold any characters: those that are not printable are escaped, and the
    middle of a long message is cut out.
    """

    def __init__(self, message: str):
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(_without_middle(plain, LONGEST))


class Stopped(KeyboardInterrupt):
    """A signal has stopped the run.

    Args:
        number: The signal's.
        message: One line, or empty where nothing is to be said but that it stopped.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


class DivergedError(UserError):
    """The loss of a run is no longer finite."""


def shown(value: object, width: int = 200) -> str:
    """A value that a user gave, as `repr` has it, with its middle cut out if it is long."""
    return _without_middle(repr(value), width)


def reason_of(error: BaseException, width: int = 200) -> str:
    """Another library's error message in one line, with its type where the message alone says little."""
    text = textwrap.shorten(str(error), width, placeholder=" ...")
    bare = not text or isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError))
    return f"{type(error).__name__}: {text}".removesuffix(": ") if bare else text


def _without_middle(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
