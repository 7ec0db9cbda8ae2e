"""For operators: ``/healthz`` (the process lives), ``/readyz`` (the store answers), ``/metrics`` (Prometheus).

They take no token: publish only ``/v1`` to the devices' network if the figures are nobody's business.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from cema.cloud.api.answers import json_answer
from cema.cloud.api.context import ContextOf
from cema.cloud.api.schema import answers

router = APIRouter()


@router.get("/healthz", summary="The process answers", responses=answers("application/json"))
async def healthz() -> Response:
    return json_answer({"status": "ok"})


@router.get("/readyz", summary="The store answers", responses=answers("application/json", 503))
def readyz(context: ContextOf) -> Response:
    context.store.ping()
    return json_answer({"status": "ok"})


@router.get("/metrics", summary="Prometheus metrics", responses=answers("text/plain", 503))
def metrics(context: ContextOf) -> Response:
    return Response(context.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
