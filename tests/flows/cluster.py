"""A cluster of Kubernetes as far as Prefect's worker asks it: jobs and their pods, behind a Role."""

import json
import queue
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "training"
PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>batch)/v1)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>\w+))?$"
)
LOG = "a pod's last words"


def _resources(*names):
    kinds = {"jobs": "Job", "pods": "Pod", "namespaces": "Namespace", "events": "Event"}
    return [
        {
            "name": name,
            "singularName": "",
            "kind": kinds.get(name.partition("/")[0]),
            "namespaced": name != "namespaces",
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        for name in names
    ]


# What every account may ask: which kinds there are.
DISCOVERY = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": _resources("pods", "pods/log", "namespaces", "events")},
    "/apis": {
        "groups": [
            {"name": "batch", "versions": [{"version": "v1"}], "preferredVersion": {"version": "v1"}},
        ]
    },
    "/apis/batch/v1": {"resources": _resources("jobs")},
}


class Cluster:
    """Its server, what it holds, and what it was asked: triples of group, resource and verb."""

    def __init__(self, rules):
        self.allowed = {
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        self.used = set()
        self.refused = set()
        self.objects = {"jobs": {}, "pods": {}}
        self._watchers = {"jobs": [], "pods": []}
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def jobs(self):
        return list(self.objects["jobs"].values())

    def write_kubeconfig(self, path):
        context = {"cluster": "here", "user": "worker", "namespace": NAMESPACE}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "worker", "user": {"token": "anything"}}],
            "contexts": [{"name": "here", "context": context}],
        }
        path.write_text(json.dumps(content))
        return path

    def may(self, request):
        """Whether the Role allows it, which is written down."""
        with self._lock:
            (self.used if request in self.allowed else self.refused).add(request)
        return request in self.allowed

    def put(self, kind, name, value):
        with self._lock:
            event = "MODIFIED" if name in self.objects[kind] else "ADDED"
            self.objects[kind][name] = value
            for each in self._watchers[kind]:
                each.put({"type": event, "object": value})

    def remove(self, kind, name):
        with self._lock:
            gone = self.objects[kind].pop(name)
            for each in self._watchers[kind]:
                each.put({"type": "DELETED", "object": gone})

    def watch(self, kind):
        events = queue.Queue()
        with self._lock:
            self._watchers[kind].append(events)
        return events

    def create_job(self, manifest):
        """Hold a job and its pod as they are when the pod waits for a node."""
        name = f"{manifest['metadata']['generateName']}{len(self.objects['jobs']):05}"
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "labels": manifest["metadata"]["labels"],
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        job = {**manifest, "metadata": {**metadata, "uid": f"job-{name}"}, "status": {"active": 1}}
        pod = {
            "metadata": {**metadata, "uid": f"pod-{name}", "labels": {**metadata["labels"], "job-name": name}},
            "spec": manifest["spec"]["template"]["spec"],
            "status": {"phase": "Pending"},
        }
        self.put("jobs", name, job)
        self.put("pods", name, pod)
        return job

    def crash(self, job):
        """Let a job's pod end as one does that is killed for its memory."""
        name = job["metadata"]["name"]
        self.put("pods", name, {**self.objects["pods"][name], "status": {"phase": "Failed"}})
        self.put("jobs", name, {**job, "status": {"failed": 1}})


def _handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content, status=200):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def asked(self, verb):
            """Return kind, name and part of the address, or None where that was answered already."""
            path = urlsplit(self.path).path
            if path in DISCOVERY:
                self.answer(DISCOVERY[path])
                return None
            found = PATH.match(path)
            resource = "/".join(filter(None, [found["kind"], found["part"]])) if found else path
            inside = found and found["namespace"] == NAMESPACE
            if not cluster.may((found["group"] or "" if found else "", resource if inside else path, verb)):
                self.answer({"kind": "Status", "code": 403, "reason": "Forbidden", "message": path}, 403)
                return None
            return found["kind"], found["name"], found["part"]

        def do_GET(self):
            options = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            named = PATH.match(urlsplit(self.path).path)
            verb = "get" if named and named["name"] else "watch" if options.get("watch") else "list"
            if not (asked := self.asked(verb)):
                return
            kind, name, part = asked
            if verb == "watch":
                self.stream(cluster.watch(kind))
            elif part == "log":
                self.answer(LOG.encode())
            elif name:
                self.answer(cluster.objects[kind][name])
            else:
                items = list(cluster.objects[kind].values())
                self.answer({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})

        def stream(self, events):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            while (event := events.get()) is not None:
                self.wfile.write(json.dumps(event).encode() + b"\n")
                self.wfile.flush()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked := self.asked("create"):
                assert asked == ("jobs", None, None)
                self.answer(cluster.create_job(body), 201)

        def do_DELETE(self):
            if asked := self.asked("delete"):
                kind, name, _ = asked
                cluster.remove(kind, name)
                self.answer({"kind": "Status", "status": "Success"})

        def do_PATCH(self):
            self.asked("patch")

        def do_PUT(self):
            self.asked("update")

    return Handler


@contextmanager
def running_cluster(rules):
    """A cluster for the block, whose account has these rules and no other."""
    cluster = Cluster(rules)
    thread = threading.Thread(target=cluster.server.serve_forever, daemon=True)
    # Streams that are open at the end are left to the process.
    cluster.server.daemon_threads = True
    cluster.server.block_on_close = False
    thread.start()
    try:
        yield cluster
    finally:
        for watchers in cluster._watchers.values():
            for each in watchers:
                each.put(None)
        cluster.server.shutdown()
        cluster.server.server_close()
