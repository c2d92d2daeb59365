"""What stands between the client and the store, counts, and makes trouble."""

import http.client
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    key: str  # bucket and key; "" behind the bucket for a listing
    query: str
    headers: dict[str, str]


@dataclass
class Trouble:
    act: object
    method: str
    key: str
    query: str
    times: int


@dataclass
class Proxy:
    """The requests that came, and what is to befall the next ones."""

    upstream: str
    url: str = ""
    requests: list = field(default_factory=list)
    troubles: list = field(default_factory=list)
    lock: object = field(default_factory=threading.Lock)
    released: object = field(default_factory=threading.Event)

    def trouble(self, act, method="GET", key="", query="", times=10**6):
        """Let `act` befall the next `times` requests that have the method, a key ending so and such a query."""
        self.troubles.append(Trouble(act, method, key, query, times))

    def take(self, request):
        with self.lock:
            self.requests.append(request)
            for each in self.troubles:
                fits = (each.method, each.times > 0) == (request.method, True)
                # A listing has no key, and meets only what is meant for it.
                meant = request.key.endswith(each.key) and bool(request.key) if each.key != "LIST" else not request.key
                if fits and meant and each.query in request.query:
                    each.times -= 1
                    return each.act
        return None

    def count(self, method, key=""):
        return sum(each.method == method and bool(each.key) and each.key.endswith(key) for each in self.requests)

    def lists(self):
        return sum(each.method == "GET" and not each.key for each in self.requests)


@contextmanager
def proxying(upstream):
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            super().setup()
            # Headers and body are written apart; waiting to join them would cost 40 ms a request.
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            key = unquote(parts.path).lstrip("/").partition("/")[2]
            act = proxy.take(Request(self.command, key, parts.query, dict(self.headers)))
            if act is not None and not getattr(act, "changes_answer", False):
                act(self, proxy)
                return
            connection = http.client.HTTPConnection(urlsplit(proxy.upstream).netloc)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("connection", "transfer-encoding")
            ]
            if act is not None:
                act(self, proxy, answer.status, headers, content)
            else:
                send(self, answer.status, headers, content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Whoever hangs up in the middle is meant to.
    server.handle_error = lambda *arguments: None
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        proxy.released.set()
        server.shutdown()
        server.server_close()


def send(handler, status, headers, content):
    handler.send_response_only(status)
    for name, value in headers:
        handler.send_header(name, value)
    if "content-length" not in {name.lower() for name, _ in headers} and status != 204:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def refuse(status, code):
    """Answer with an error as stores do."""

    def act(handler, proxy):
        content = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()
        send(handler, status, [("Content-Type", "application/xml")], content)

    return act


def reset(handler, proxy):
    """Break the connection off."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def stall(handler, proxy):
    """Answer nothing until the test is over."""
    proxy.released.wait(120)
    handler.close_connection = True


def truncate(length):
    """Promise the whole body, send `length` bytes of it and hang up."""

    def act(handler, proxy, status, headers, content):
        send(handler, status, headers, content[:length])
        handler.close_connection = True

    act.changes_answer = True
    return act


def stall_after(length):
    """Promise the whole body, send `length` bytes of it and no more."""

    def act(handler, proxy, status, headers, content):
        send(handler, status, headers, content[:length])
        handler.wfile.flush()
        stall(handler, proxy)

    act.changes_answer = True
    return act


def flip(place):
    """Change one byte of the body."""

    def act(handler, proxy, status, headers, content):
        changed = bytearray(content)
        changed[place] ^= 1
        send(handler, status, headers, bytes(changed))

    act.changes_answer = True
    return act


def then(do):
    """Answer as the store did, after `do` was called."""

    def act(handler, proxy, status, headers, content):
        do()
        send(handler, status, headers, content)

    act.changes_answer = True
    return act
