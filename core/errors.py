"""The two kinds of errors for users. The command line prints either as one sentence."""


class Mistake(ValueError):
    """An error that the user can correct. The message says what is wrong, what is allowed, what to do. Exit code 2."""


class Failure(RuntimeError):
    """A problem outside of fedrl: a disk, a port, a peer. Exit code 1."""
