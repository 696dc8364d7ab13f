"""A dump served as OSV's own query interface, on loopback, for as long as a check lasts.

Threads: the server's own, one a request. Shared state and its guard: `asked` under `_lock`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from harness.vulncheck.database import Database

REQUEST_MAX_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0


class Endpoint:
    """A running endpoint: where it is, and what it was asked."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.url = ""
        self._lock = threading.Lock()
        self._asked: set[str] = set()

    def answer(self, question: object) -> dict[str, object] | None:
        """Return the answer to a question, or None when it is none."""
        try:
            name = str(question["package"]["name"])  # type: ignore[index]
            version = str(question["version"])  # type: ignore[index]
        except (TypeError, KeyError):
            return None
        with self._lock:
            self._asked.add(name)
        found = self.database.query(name, version)
        return {"vulns": found} if found else {}

    def asked(self) -> set[str]:
        """Return the packages that were asked about."""
        with self._lock:
            return set(self._asked)


@contextmanager
def serving(database: Database) -> Iterator[Endpoint]:
    """Serve a database on loopback."""
    endpoint = Endpoint(database)

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/v1/query" or not 0 < length <= REQUEST_MAX_BYTES:
                self.send_error(400)
                return
            try:
                answer = endpoint.answer(json.loads(self.rfile.read(length)))
            except ValueError:
                answer = None
            if answer is None:
                self.send_error(400)
                return
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing; the check tells what was asked."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        thread = threading.Thread(target=server.serve_forever, name="osv endpoint")
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
