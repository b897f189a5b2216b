"""What can go wrong with a group of ranks."""


class RankError(RuntimeError):
    """A rank raised an exception; the message holds its traceback."""


class RankFailure(RuntimeError):
    """A rank died, fell silent or came too late; the group is over."""


class NotFinite(RuntimeError):
    """The model's logits hold NaN or infinity: nothing can be drawn from them."""


def in_one_line(error: BaseException) -> str:
    """Class and message; of a `RankError` without the traceback in its middle."""
    lines = str(error).strip().splitlines()
    if isinstance(error, RankError) and len(lines) > 1:
        return f"{lines[0]} {lines[-1]}"
    return f"{type(error).__name__}: {error}"
