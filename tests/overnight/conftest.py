"""What tests of the overnight lane share."""

import pytest

from tests.overnight.night import Night
from tests.rooms import Rooms


@pytest.fixture
def night(rooms: Rooms) -> Night:
    """Give a desk on empty tables, and a simulator whose batches end at the first look."""
    made = Night(rooms)
    made.pace(0)
    return made
