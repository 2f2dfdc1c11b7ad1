"""sepconv: train and compare small convolutional networks, dense and depthwise separable, fairly.

Importing this package is cheap on purpose: torch and Lightning load with the modules that need them.
"""

__version__ = "0.1.0"


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, and what would be right."""
