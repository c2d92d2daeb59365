"""The model as LitServe runs it: a process of its own samples the requests that wait, together."""

import json
import logging
import os
import signal
import time
from http import HTTPStatus
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import psutil
import torch
from fastapi import Response
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.registry.served import Served
from diffusion_core.runtime.device import choose_device, choose_dtype, cores
from diffusion_core.serving import measures
from diffusion_core.serving.answer import answer, refusal
from diffusion_core.serving.batch import sample_jobs
from diffusion_core.serving.following import Following
from diffusion_core.serving.request import ImageRequest, Job, card, job

PATH = "/images"
# Files that the processes of a server share: what is served, the id of the process that samples, and why it cannot.
CARD, SAMPLER, PROBLEM = "model.json", "sampler", "problem"
# How long a batch waits for more requests, in seconds: little beside the time of sampling it.
PATIENCE = 0.005
# Less than the start of another process takes, in seconds.
LONGEST_WAIT = 1.0


class ImageAPI(LitAPI):  # type: ignore[misc]
    """Samples images of the version that a name means.

    Args:
        environment: the environment, with the store, the device and the limits.
        name: the registered model.
        version: an alias, which is followed, or a number.
        address: of the server, for people.
        folder: what the processes of the server share.
    """

    def __init__(self, environment: Environment, name: str, version: str, address: str, folder: Path) -> None:
        # Waiting is counted in images, by the loop; the number of requests has no limit of its own.
        super().__init__(max_batch_size=environment.serve_queue + 1, api_path=PATH)
        self.loop = Gathering(environment.serve_batch, environment.serve_seconds)
        self._environment = environment
        self._name, self._version = name, version
        self._address, self._folder = address, folder

    def setup(self, device: str) -> None:  # noqa: ARG002 - the environment says which
        """Load the version, in the process that samples."""
        # A terminal sends INT to all processes; the server ends this one when its last request is answered.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        chosen = choose_device(self._environment.device)
        self._dtype = choose_dtype(self._environment.precision, chosen).dtype
        if chosen.type == "cpu":
            # A core is left to HTTP: threads wait for one another, so one that must share its core slows all of them.
            threads = self._environment.threads
            torch.set_num_threads(threads if isinstance(threads, int) else max(1, cores() - 1))
        seconds = self._environment.serve_follow_seconds
        try:
            self._following = Following(
                self._environment, self._name, self._version, chosen, seconds, loaded=self._describe
            )
        except UserError as error:
            # The server says it. LitServe would print a traceback, again at each attempt.
            write_whole(self._folder / PROBLEM, str(error))
            logging.disable()
            raise
        served = self._following.served
        # The first pass through the network takes longer than later ones, and no client should wait for it.
        sample_jobs(served.model, [self._job(ImageRequest(), served)], self._environment.serve_batch, self._dtype)
        write_whole(self._folder / SAMPLER, str(os.getpid()))
        print(f"version {served.version} of {served.name} is served at {self._address}{PATH}", flush=True)

    def decode_request(self, request: ImageRequest) -> ImageRequest:
        """Return the request as it is; its annotation is the type of the body."""
        return request

    def predict(self, requests: list[ImageRequest]) -> list[Response]:
        """Return the response to each request; what one cannot have does not concern the others."""
        served = self._following.served
        outcomes: list[Job | Response] = []
        for request in requests:
            try:
                outcomes.append(self._job(request, served))
            except UserError as error:
                outcomes.append(refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
        jobs = [each for each in outcomes if isinstance(each, Job)]
        sampled = iter(sample_jobs(served.model, jobs, self._environment.serve_batch, self._dtype))
        return [
            answer(request, outcome, served, next(sampled)) if isinstance(outcome, Job) else outcome
            for request, outcome in zip(requests, outcomes, strict=True)
        ]

    def encode_response(self, output: Response) -> Response:
        """Return the response as it is; its annotation is the type of the answer."""
        return output

    def _job(self, request: ImageRequest, served: Served) -> Job:
        most_images, most_steps = self._environment.serve_images, self._environment.serve_steps
        return job(request, served.model, served.judged_by, most_images=most_images, most_steps=most_steps)

    def _describe(self, served: Served) -> None:
        """Write what clients may ask of the version where the server's processes find it."""
        about = card(served, self._environment.serve_images, self._environment.serve_steps)
        write_whole(self._folder / CARD, json.dumps(about))
        measures.version.set(int(served.version))


class Gathering(BatchedLoop):  # type: ignore[misc]
    """LitServe's loop, with batches of images: waits without polling, and takes requests until a batch is full.

    Args:
        images: of a batch.
        seconds: after which no client waits for a request any more.
    """

    def __init__(self, images: int, seconds: float) -> None:
        super().__init__()
        self._images, self._seconds = images, seconds

    def get_batch_requests(
        self,
        lit_api: LitAPI,  # noqa: ARG002 - of LitServe's signature
        request_queue: "Queue[Any]",
        transport: Any,  # noqa: ARG002 - of LitServe's signature
    ) -> tuple[list[tuple[int, str, ImageRequest]], list[tuple[int, str]]]:
        """Return the requests of the next batch, and those that waited too long, which are not sampled."""
        try:
            # Not longer: of a process that was killed here, the queue would give away a request at any later time.
            found = [request_queue.get(timeout=LONGEST_WAIT)]
        except Empty:
            return [], []
        oldest, deadline = time.monotonic() - self._seconds, time.monotonic() + PATIENCE
        while sum(payload.n for *_, begun, payload in found if begun >= oldest) < self._images:
            try:
                found.append(request_queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                break
        waiting = [(consumer, uid, payload) for consumer, uid, begun, payload in found if begun >= oldest]
        return waiting, [(consumer, uid) for consumer, uid, begun, _ in found if begun < oldest]


def samples(folder: Path) -> bool:
    """Return whether the process that samples is there."""
    return psutil.pid_exists(int((folder / SAMPLER).read_text()))
