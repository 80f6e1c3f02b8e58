"""The two ways a run can end badly. The command line prints either as one sentence."""


class Mistake(ValueError):
    """Something the user can mend: says what was wrong, what is allowed, what to do. Exit code 2."""


class Failure(RuntimeError):
    """Something that went wrong outside: a disk, a port, a peer. Exit code 1."""
