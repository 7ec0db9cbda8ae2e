"""Whatever ends uploads, in whatever order: no bound is passed, and all that was held is given back."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cema.cloud.api.admission import DEVICE_UPLOADS, MAX_PAUSE_S, MIN_PAUSE_S, Admission, Upload
from cema.config import ServerConfig
from cema.errors import OverloadedError

SERVER = ServerConfig(max_body_bytes=50, max_queued_bytes=100, max_queued_uploads=3)


class BrokenOffError(Exception):
    """The connection, the store or the patience: the request ends here."""


class Request:
    """One that is under way, as the route has it: what it entered is left in the end."""

    def __init__(self, device_id: str) -> None:
        self.device_id, self.stack, self.queued = device_id, ExitStack(), False
        self.upload: Upload | None = None

    def end(self, broken: bool) -> None:
        try:
            with self.stack:
                if broken:
                    raise BrokenOffError
        except BrokenOffError:
            pass


class Uploads(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.admission = Admission(SERVER, lambda: self.now_s)
        self.running: list[Request] = []
        self.asked_s: list[float] = []

    def attempt(self, request: Request, step: str, size_bytes: int = 0) -> None:
        """What is refused has ended."""
        try:
            if step == "begin":
                request.upload = request.stack.enter_context(self.admission.upload(request.device_id))
                self.running.append(request)
            elif step == "grow":
                assert request.upload is not None
                request.upload.grow(size_bytes)
            else:
                request.stack.enter_context(self.admission.turn())
                request.queued = True
        except OverloadedError as error:
            self.asked_s.append(float(str(error.values["retry_after_s"])))
            request.end(broken=True)
            if request in self.running:
                self.running.remove(request)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(device_id=st.sampled_from("abcd"))
    def begin(self, device_id: str) -> None:
        self.attempt(Request(device_id), "begin")

    @rule(number=st.integers(0, 9), size_bytes=st.integers(1, 60))
    def bytes_come(self, number: int, size_bytes: int) -> None:
        if self.running:
            self.attempt(self.running[number % len(self.running)], "grow", size_bytes)

    @rule(number=st.integers(0, 9))
    def body_is_complete(self, number: int) -> None:
        waiting = [request for request in self.running if not request.queued]
        if waiting:
            self.attempt(waiting[number % len(waiting)], "turn")

    @rule(number=st.integers(0, 9), broken=st.booleans())
    def end(self, number: int, broken: bool) -> None:
        if self.running:
            self.running.pop(number % len(self.running)).end(broken)

    @invariant()
    def bounds_hold(self) -> None:
        assert 0 <= self.admission.held_bytes <= SERVER.max_queued_bytes
        assert 0 <= self.admission.queued <= SERVER.max_queued_uploads
        assert all(n <= DEVICE_UPLOADS for n in Counter(each.device_id for each in self.running).values())

    @invariant()
    def nobody_is_sent_away_for_longer_than_the_bound(self) -> None:
        assert all(MIN_PAUSE_S <= asked_s <= MAX_PAUSE_S for asked_s in self.asked_s)

    @invariant()
    def what_is_held_is_that_of_those_under_way(self) -> None:
        assert self.admission.in_flight == len(self.running)
        assert self.admission.queued == sum(each.queued for each in self.running)
        assert self.admission.held_bytes == sum(each.upload.size_bytes for each in self.running if each.upload)

    def teardown(self) -> None:
        for request in self.running:
            request.end(broken=True)
        assert (self.admission.held_bytes, self.admission.queued, self.admission.in_flight) == (0, 0, 0)


TestUploads = Uploads.TestCase
