"""The page: what happened on a bus, for people, in HTML that the server renders.

Everything can be read and done without JavaScript; a small script only keeps what is shown up to date. Nothing here
decides who may see or do what: the application that mounts `page_routes` does.
"""

from .login import login_page
from .routes import page_routes

__all__ = ["login_page", "page_routes"]
