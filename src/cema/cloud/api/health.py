"""For supervisors: ``/healthz`` (the process lives), ``/readyz`` (the store answers), without a token.

``/metrics`` (Prometheus) is for readers, where ``[admin]`` says.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from cema.cloud.api.answers import json_answer
from cema.cloud.api.callers import ContextOf, Reader
from cema.cloud.api.schema import answers

router = APIRouter()
metrics_router = APIRouter()


@router.get("/healthz", summary="The process answers", responses=answers("application/json"))
async def healthz() -> Response:
    return json_answer({"status": "ok"})


@router.get("/readyz", summary="The store answers", responses=answers("application/json", 503))
def readyz(context: ContextOf) -> Response:
    context.store.ping()
    return json_answer({"status": "ok"})


@metrics_router.get("/metrics", summary="Prometheus metrics", responses=answers("text/plain", 401, 403, 503))
def metrics(user: Reader, context: ContextOf) -> Response:
    return Response(context.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
