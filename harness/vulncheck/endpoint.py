"""OSV's query API on loopback, answered from a dump, for the duration of a check.

Threads: the server's, one per request. Shared state and its guard: `_queried` and `_affected`
under `_lock`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.vulncheck.database import Database

REQUEST_MAX_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0
END_LOOK_S: Final = 0.02  # how often it looks whether it is to end


class Endpoint:
    """A running endpoint: its URL, the packages that it was queried for, and those affected."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.url = ""
        self._lock = threading.Lock()
        self._queried: set[tuple[str, Version]] = set()
        self._affected: set[tuple[str, Version]] = set()

    def answer(self, query: object) -> dict[str, object] | None:
        """Return the answer to a query, or None if the query is invalid."""
        try:
            name = canonicalize_name(query["package"]["name"])  # type: ignore[index]
            version = Version(query["version"])  # type: ignore[index]
        except (TypeError, KeyError, AttributeError, InvalidVersion):
            return None
        found = self.database.query(name, version)
        with self._lock:
            self._queried.add((name, version))
            if found:
                self._affected.add((name, version))
        return {"vulns": found} if found else {}

    def queried(self) -> set[tuple[str, Version]]:
        """Return the packages that were queried, each with its version."""
        with self._lock:
            return set(self._queried)

    def affected(self) -> set[tuple[str, Version]]:
        """Return the queried packages for which the answer was not empty."""
        with self._lock:
            return set(self._affected)


@contextmanager
def serve(database: Database) -> Iterator[Endpoint]:
    """Serve a database on a free loopback port within the context."""
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
            """Log nothing; the check reports failures."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        # By default the end would wait for half a second.
        thread = threading.Thread(
            target=server.serve_forever, args=(END_LOOK_S,), name="osv endpoint"
        )
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
