"""How a program reports what happens: on standard output, one line for each event.

::

    resumed NUMBER MOMENT                 agreed with the others on the next call
    began WHICH MOMENT TIMEOUT            is about to make the call; 0 for no deadline
    ok WHICH MOMENT DIGEST BYTES          the call ended well and its values are right
    lost WHICH MOMENT SINCE NOISE MESSAGE    it ended with GroupLost
    peer WHICH MOMENT SINCE NOISE MESSAGE    it ended with PeerLost
    late WHICH MOMENT SINCE NOISE MESSAGE    it ended with DeadlineExceeded
    wrong WHICH MOMENT MESSAGE            it ended with wrong values
    error NUMBER MOMENT MESSAGE           it ended with another error
    handed WHICH MOMENT                   a message is sent, and nobody waits for its receiver
    split WHICH MOMENT                    has its place in a part; WHICH says the ranks
    parted WHICH MOMENT                   is about to close that
    unreceived WHICH MOMENT SINCE NOISE MESSAGE    closing it, or the whole ring, has said so
    refused WHICH MOMENT MESSAGE          it was not sent at first, to tell of one before it
    took WHICH MOMENT SINCE               it has come to who asked anyone for it, since SINCE
    leaving NUMBER MOMENT                 was asked to leave, and now closes its ring, or has
    done NUMBER MOMENT                    all agreed to stop
    here NUMBER MOMENT                    may be sent signals from now on
    struck NUMBER MOMENT WHERE            an interrupt left the library: WHERE it had been
    dropped WHICH MOMENT                  the call goes on, but an interrupt took its handle away
    touched NUMBER MOMENT                 a signal's handler used the ring amid another use of it
    burst NUMBER MOMENT COUNT             is about to make COUNT calls before it waits for any
    filled NUMBER MOMENT                  has made calls of which much was on its way

The first word says what; WHICH is a call (:mod:`~chaos.which`), NUMBER that of one of the group's,
or -1 for the calls by which its programs agree on something. Moments are on the monotonic clock,
which all processes of the machine share. SINCE is when the program began to wait for that call;
NOISE is :meth:`chaos.pulse.Pulse.told`, or ``landed`` for further calls of a stay in the group that
the program knows to be over.
"""

from __future__ import annotations

import os
import time

from chaos.which import Which


def say(what: str, which: Which | int, *details: object) -> None:
    """Report an event."""
    text = " ".join(str(detail) for detail in details).replace("\n", " ")
    os.write(1, f"{what} {which} {time.monotonic():.6f} {text}\n".encode())
