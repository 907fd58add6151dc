"""What can go wrong for a user, one class per exit code. The message is the one line that is shown."""


class UserError(ValueError):
    """A bad config, argument or input: what was given, what is needed, what to do."""

    exit_code = 2


class DivergedError(ArithmeticError):
    """The loss or the gradient norm stopped being a finite number; the update was not made."""

    exit_code = 3


class DamagedError(OSError):
    """A checkpoint or token file that is not what was written: its digest, size or shape is off."""

    exit_code = 4


class InUseError(OSError):
    """Another process is training in this run folder."""

    exit_code = 5


class LostRankError(ConnectionError):
    """Another process of the same training has ended, hangs, or cannot be reached."""

    exit_code = 1


class Stopped(Exception):
    """A signal asked training to stop, and everything was saved."""

    exit_code = 75
