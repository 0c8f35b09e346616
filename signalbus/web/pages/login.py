"""The form that asks for the token. Who checks it, and what a right one is worth, is decided elsewhere."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse

from .assets import ASSETS
from .environment import make_environment


def login_page(request: Request, *, error: str = "", status: int = 200) -> HTMLResponse:
    """Return the form, which posts ``token`` to ``/login``; ``error``: why the last try was refused.

    Tells nothing of the bus, as it is for those who may see nothing yet.
    """
    template = make_environment().get_template("login.html")
    return HTMLResponse(template.render(assets=ASSETS, error=error), status_code=status)
