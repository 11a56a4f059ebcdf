"""The bar of a calibration: network calls made, of those that are expected."""

from tqdm import tqdm


class CallBar:
    """A tqdm bar whose total is the calls made and what each part to come is expected to cost.

    How many calls a search needs shows while it runs, so the total moves; at the end it is what
    was needed.
    """

    def __init__(self, bar: tqdm, parts: dict[str, float]) -> None:
        self.bar, self.left = bar, dict(parts)

    def tick(self) -> None:
        # tqdm drops a total that was passed.
        self.bar.total = max(self.bar.total, self.bar.n + 1)
        self.bar.update(1)

    def say(self, text: str) -> None:
        self.bar.set_description(text)

    def expect(self, **calls: float) -> None:
        """Says of each of the parts how many calls are left in it; 0 once it is done."""
        self.left |= calls
        self.bar.total = self.bar.n + round(sum(self.left.values()))
        self.bar.refresh()
