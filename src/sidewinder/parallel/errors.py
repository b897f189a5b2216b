"""What can go wrong with a group of ranks."""


class RankError(RuntimeError):
    """A rank raised an exception; the message holds its traceback."""


class RankFailure(RuntimeError):
    """A rank died, fell silent or came too late; the group is over."""
