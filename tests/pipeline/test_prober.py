"""Availability is counted from the first good answer on, and not while a service is down on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.prober import Prober


class Service:
    """Answers with the status it is told."""

    def __init__(self) -> None:
        self.status = 503
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def more(self, count: int = 2) -> None:
        """Returns when so many further questions were asked."""
        upto, deadline = self.asked + count, time.monotonic() + 30
        while self.asked < upto:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_only_outages_after_the_start_and_not_on_purpose_count(service: Service) -> None:
    prober = Prober(f"http://127.0.0.1:{service.server.server_port}/", interval=0.01)
    with prober.asking():
        service.more()
        assert prober.probes == []
        service.status = 200
        until(lambda: len(prober.probes) >= 3)
        assert prober.share == 1.0
        with prober.excused():
            service.status = 500
            service.more(3)
            service.status = 200
            service.more()
        assert prober.share == 1.0
        service.status = 500
        until(lambda: bool(prober.problems))
    assert prober.share < 1.0
    assert prober.problems[0] == "status 500"
    assert 0 <= prober.seconds(0.5) <= prober.seconds(1.0)


def test_a_service_that_never_answered_is_not_available() -> None:
    prober = Prober("http://127.0.0.1:9/", interval=0.01)
    with prober.asking():
        time.sleep(0.05)
    assert prober.share == 0.0
