"""Exceptions of slrfast. Wrong arguments raise the built-in ValueError and TypeError; these name the rest."""


def one_line(text: str) -> str:
    """The text with everything escaped that a terminal or a file cannot show: line ends, control codes, broken UTF-8.

    >>> one_line("bad\\nname")
    'bad\\\\nname'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class SlrfastError(Exception):
    """Base class of every exception that slrfast defines."""


class BackendUnavailable(SlrfastError, RuntimeError):
    """A backend was forced that cannot run here; the message says why."""


class PoseFileError(SlrfastError, ValueError):
    """A pose file cannot be used; the message is ``<path>: <what is wrong, with the frame or key>``."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(one_line(f"{path}: {reason}"))
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


class DatasetError(SlrfastError, ValueError):
    """A dataset as a whole cannot be used, for example because none of its files can be read."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class CheckpointError(SlrfastError, ValueError):
    """A checkpoint cannot be written or read; an existing one is left whole."""
