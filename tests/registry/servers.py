"""Tracking servers that fail."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Dies(BaseHTTPRequestHandler):
    """Serves who asks whether it is there, and answers everything else with one status."""

    status, answer = 503, b"{}"

    def do_GET(self):
        self._answer(self.path == "/health" or self.path.endswith("experiments/search"))

    do_POST = do_PUT = do_GET

    def _answer(self, serves):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200 if serves else self.status)
        self.end_headers()
        self.wfile.write(b"{}" if serves else self.answer)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(handler):
    """A server on a free port for the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def dying_server():
    """The address of a server that is there when it is asked first, and fails from then on."""
    with serving(_Dies) as server:
        yield f"http://127.0.0.1:{server.server_port}"


class _Refuses(_Dies):
    status, answer = 400, b'{"error_code": "BAD_REQUEST", "message": "not here"}'


@contextmanager
def refusing_server():
    """The address of a server that is there, and refuses every request."""
    with serving(_Refuses) as server:
        yield f"http://127.0.0.1:{server.server_port}"
