"""Whether this process lives, and whether it can do its work: for whatever restarts it, and whatever sends it work."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..inspection import Inspection
from .state import troubles_of
from .values import written


def health_routes(inspection: Inspection) -> list[Route]:
    """Return ``/healthz`` and ``/readyz``. Neither asks anybody, so both answer at once whatever hangs."""

    async def alive(request: Request) -> Response:
        return _json({"alive": True}, 200)

    async def ready(request: Request) -> Response:
        health = inspection.bus.broker.health()
        troubles = troubles_of(inspection)
        told: dict[str, object] = {
            "ready": not troubles,
            "broker": {"state": health.state.value, "reason": health.reason},
            "troubles": troubles,
            "warnings": list(health.warnings),
        }
        return _json(told, 503 if troubles else 200)

    return [Route("/healthz", alive), Route("/readyz", ready)]


def _json(told: dict[str, object], status: int) -> Response:
    return Response(written(told), status, media_type="application/json")
