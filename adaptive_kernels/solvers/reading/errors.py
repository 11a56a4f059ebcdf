"""Why steps cannot be read off, or are no table."""


class ProbeError(ValueError):
    """step() cannot be run on vectors of our choosing; the message says why."""


class StepFails(ProbeError):
    """The scheduler's own step() raised; what it raised is the cause.

    row: of the timesteps that were run.
    """

    def __init__(self, row: int, error: Exception) -> None:
        super().__init__(f"its own step {row} fails: {type(error).__name__}: {error}")
        self.row = row


class NotLinear(ProbeError):
    """The steps ran, and are no table."""


class TooOld(NotLinear):
    """A step uses noise or latents that a row does not keep."""


class Cancels(ProbeError):
    """The terms of a table are so much larger than the step's that float32 loses the step."""
