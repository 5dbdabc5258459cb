"""Exceptions of slrfast. Wrong arguments raise the built-in ValueError and TypeError; these name the rest."""


class SlrfastError(Exception):
    """Base class of every exception that slrfast defines."""


class BackendUnavailable(SlrfastError, RuntimeError):
    """A backend was forced that cannot run here; the message says why."""


class PoseFileError(SlrfastError, ValueError):
    """A pose file cannot be used; the message is ``<path>: <what is wrong, with the frame or key>``."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


class DatasetError(SlrfastError, ValueError):
    """A dataset as a whole cannot be used, for example because none of its files can be read."""


class CheckpointError(SlrfastError, ValueError):
    """A checkpoint cannot be written or read; an existing one is left whole."""
