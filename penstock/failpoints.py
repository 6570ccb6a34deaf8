"""Named places at which a process can be made to die, so that crash safety is tested where it matters.

`PENSTOCK_FAILPOINT=after_claim` kills the process with SIGKILL when it first comes to that place. Unset, as always
outside of tests, a failpoint is one comparison. It must not know what happens around it.
"""

import os
import signal
from enum import StrEnum


class Failpoint(StrEnum):
    """The places, in the order of a job's way."""

    PRODUCER_COMMITTED = "producer_committed"
    FEEDER_UPDATED = "feeder_updated"
    AFTER_CLAIM = "after_claim"
    AFTER_HOLD = "after_hold"
    BEFORE_SEND = "before_send"
    AFTER_ANSWER = "after_answer"
    AFTER_SETTLEMENT = "after_settlement"
    BEFORE_ACK = "before_ack"
    PARCEL_OPENED = "parcel_opened"
    PARCEL_FILLED = "parcel_filled"
    PARCEL_SEALED = "parcel_sealed"
    PARCEL_UPLOADED = "parcel_uploaded"
    PARCEL_STORED = "parcel_stored"
    PARCEL_ASKED = "parcel_asked"
    PARCEL_CREATED = "parcel_created"
    PARCEL_SENT = "parcel_sent"
    PARCEL_OVER = "parcel_over"
    PARCEL_PAID = "parcel_paid"
    PARCEL_ANSWERED = "parcel_answered"
    PARCEL_SETTLED = "parcel_settled"
    UPKEEP_RECOVERED = "upkeep_recovered"
    UPKEEP_ANNOUNCED = "upkeep_announced"


ARMED = os.environ.get("PENSTOCK_FAILPOINT")


def reach(place: Failpoint) -> None:
    """Die here, if this is the place that is armed."""
    if place == ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
