"""The page, and the requests that it makes: the bytes of a picture in, what the model says of it out."""

import base64
import io
import secrets
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.data.decode import Pixels
from pipeline.evaluation.neighbours import Neighbour
from pipeline.reports.page import render
from pipeline.reports.pictures import in_colour, overlay
from pipeline.tryout.answers import Answer, TriedModel

MOST_BYTES = 512 * 2**20
JPEG_QUALITY = 85
# What the page sends pictures as. Other sites' pages cannot send it without asking first, which nothing here allows.
PICTURE_TYPE = "application/octet-stream"
SECONDS_TO_FINISH = 2


def build_app(model: TriedModel, name: str, hosts: Sequence[str] = ()) -> Starlette:
    """The page of the model `name`. With `hosts`, requests are answered that were sent to one of these names alone, so
    that no other site can reach the page through a name of its own that points here."""
    checkpoint = model.classifier.checkpoint
    nonce = secrets.token_urlsafe(16)
    kept = model.neighbours
    page = render(
        "try.html",
        name=name,
        classes=checkpoint.classes,
        backbone=checkpoint.backbone,
        image_px=checkpoint.image_px,
        kept=0 if kept is None else len(kept.pictures),
        trained_on=0 if kept is None else kept.trained_on,
        is_local=bool(hosts),
        nonce=nonce,
    )
    headers = {
        "Content-Security-Policy": f"default-src 'none'; img-src data: blob:; style-src 'nonce-{nonce}'; script-src "
        f"'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    one_at_a_time = threading.Lock()

    def show(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    def compute(content: bytes) -> Response:
        try:
            squares = model.classifier.decode(content)
        except MemoryError:
            return _refusal(413, "It takes more memory than there is.")
        except Exception as error:  # Pillow's decoders raise whatever their format's parser does
            reason = " ".join(str(error).split()) or type(error).__name__
            return _refusal(422, f"It cannot be opened as a picture: {reason.rstrip('.')}.")
        with one_at_a_time:
            return JSONResponse(as_json(model.answer(squares)))

    async def answer(request: Request) -> Response:
        if request.headers.get("content-type") != PICTURE_TYPE:
            return _refusal(415, f"Send the bytes of a picture file as {PICTURE_TYPE}.")
        content = await _read(request)
        if content is None:
            return _refusal(413, f"It has more than {MOST_BYTES // 2**20} MiB.")
        return await run_in_threadpool(compute, content)

    routes = [Route("/", show), Route("/answer", answer, methods=["POST"])]
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)] if hosts else []
    return Starlette(routes=routes, middleware=guard)


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which end it without a word."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=SECONDS_TO_FINISH
    )
    with suppress(KeyboardInterrupt):  # raised anew by uvicorn, once it has closed its connections
        uvicorn.Server(config).run(sockets=[listening])


def as_json(answer: Answer) -> dict[str, object]:
    """What the page shows of an answer; pictures are `data:` addresses."""
    heat = answer.heat
    return {
        "label": answer.label,
        "probabilities": [{"label": label, "probability": value} for label, value in answer.probabilities],
        "square": _address(_jpeg(in_colour(answer.square))),
        "heat": None if heat is None else _address(_jpeg(overlay(answer.square, heat))),
        "neighbours": [_neighbour(one) for one in answer.neighbours],
        "doubts": list(answer.doubts),
    }


def _neighbour(one: Neighbour) -> dict[str, object]:
    return {"label": one.label, "path": one.path, "similarity": one.similarity, "picture": _address(one.thumbnail)}


async def _read(request: Request) -> bytes | None:
    """The body; None if it is too large."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MOST_BYTES:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _refusal(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status_code=status)


def _jpeg(picture: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
