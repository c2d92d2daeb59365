"""Images as a client gets them: PNG files in JSON, one PNG, or a zip file."""

import base64
import io
import json
import zipfile
from dataclasses import asdict
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from pydantic import BaseModel

from diffusion_core.pictures import grid, picture, png
from diffusion_core.problems import Location, sentence
from diffusion_core.registry.served import Served
from diffusion_core.serving.request import ImageRequest, Job

COLUMNS = 8


def answer(request: ImageRequest, job: Job, served: Served, images: NDArray[np.uint8]) -> Response:
    """Return the response to a request, with the version in the headers `X-Model` and `X-Model-Version`.

    Args:
        request: the request.
        job: what it means for the model.
        served: the model.
        images: its images, uint8 (n, H, W, C).
    """
    # Headers are Latin-1; the name of a model may be of other letters.
    headers = {"X-Model": quote(served.name), "X-Model-Version": served.version}
    how = {"sampler": asdict(job.sampling.sampler), "guidance": asdict(job.sampling.guidance)}
    if request.format == "png":
        if len(images) == 1:
            content = png(picture(images[0]), _about(job, served, 0) | how)
        else:
            about = {"images": [_about(job, served, place) for place in range(len(images))], **how}
            content = png(grid(images, columns=min(COLUMNS, len(images))), about)
        return Response(content, media_type="image/png", headers=headers)
    abouts = [_about(job, served, place) for place in range(len(images))]
    files = [png(picture(image), about | how) for image, about in zip(images, abouts, strict=True)]
    if request.format == "zip":
        folder = io.BytesIO()
        # PNG files are compressed already.
        with zipfile.ZipFile(folder, "w", zipfile.ZIP_STORED) as archive:
            for about, file in zip(abouts, files, strict=True):
                archive.writestr(f"{about['seed']}-{about['index']:05d}.png", file)
        return Response(folder.getvalue(), media_type="application/zip", headers=headers)
    made = [about | {"png": base64.b64encode(file).decode()} for about, file in zip(abouts, files, strict=True)]
    content = json.dumps({"model": served.name, "version": served.version, **how, "images": made}).encode()
    return Response(content, media_type="application/json", headers=headers)


def refusal(status: int, sentence: str) -> Response:
    """Return an answer without images: a sentence, as FastAPI writes its own."""
    return Response(json.dumps({"detail": sentence}).encode(), status, media_type="application/json")


def tell_invalid_requests(app: FastAPI, body: type[BaseModel]) -> None:
    """Let an application answer a body that is not of its type by what is wrong with it, in a sentence."""

    async def invalid_request(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = error.errors()
        content = problems[0]["input"]
        if problems[0]["type"] == "json_invalid":
            told = "the body is not JSON"
        elif isinstance(content, bytes):
            told = "the body has another type than JSON: send the header Content-Type: application/json"
        elif problems[0]["loc"] == ("body",) and not isinstance(content, dict):
            told = 'the body is not an object: send one, for example {"n": 1}'
        else:
            told = sentence(problems, _field, lambda place: _fields(body, place[1:]))
        return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)

    app.add_exception_handler(RequestValidationError, invalid_request)


def _field(place: Location) -> str:
    """Return the name of a field, without what it stands in; an item of a list has its place behind the name."""
    last = max((number for number, part in enumerate(place[1:], start=1) if isinstance(part, str)), default=0)
    return ".".join(map(str, place[last:])) if last else "the body"


def _fields(body: type[BaseModel], place: Location) -> list[str]:
    """Return the names of the fields at a place in a body, as clients write them."""
    for part in place:
        inner = body.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        body = inner
    return [field.alias or name for name, field in body.model_fields.items()]


def _about(job: Job, served: Served, place: int) -> dict[str, Any]:
    seed, index = job.keys[place]
    about: dict[str, Any] = {"model": served.name, "version": served.version, "seed": seed, "index": index}
    if job.labels is not None:
        about["class"] = served.model.class_names[job.labels[place]]
    return about
