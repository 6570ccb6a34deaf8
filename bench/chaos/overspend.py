"""Looks all the time whether a hard budget is overspent. It must not know who spends."""

import threading
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

LOOK_S = 0.25

ABOVE = text("""
    SELECT max(settled_nanodollars + held_nanodollars - hard_limit) AS above, min(hard_limit) AS hard_limit
    FROM spending JOIN budgets USING (tenant, project, period)
    WHERE unit = 'nanodollars' AND hard_limit IS NOT NULL
""")


class Overspend:
    """The largest excess over any hard limit that was ever seen, and how often was looked."""

    def __init__(self, engine: Engine) -> None:
        """Look through this engine."""
        self.nanodollars = 0
        self.looks = 0
        self.least_left: int | None = None
        self._engine = engine
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="overspend", daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join()

    def look(self) -> None:
        """Look once."""
        with self._engine.connect() as connection:
            row = connection.execute(ABOVE).one()
        self.looks += 1
        if row.above is not None:
            self.nanodollars = max(self.nanodollars, row.above)
            self.least_left = -row.above if self.least_left is None else min(self.least_left, -row.above)

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
            except DBAPIError:  # Postgres is being restarted
                continue
