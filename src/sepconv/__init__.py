"""sepconv: train and compare small convolutional networks, dense and depthwise separable, fairly.

Importing this package is cheap on purpose: torch and Lightning load with the modules that need them.
"""

__version__ = "0.1.0"


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, and what would be right."""


class Stopped(KeyboardInterrupt):
    """The user stopped the work by a signal.

    Args:
        message: one line: what is kept, and how to go on.
        status: the exit status, 128 and the signal's number: 130 (SIGINT, Ctrl-C) or 143 (SIGTERM).
    """

    def __init__(self, message: str = "", status: int = 130) -> None:
        super().__init__(message)
        self.status = status
