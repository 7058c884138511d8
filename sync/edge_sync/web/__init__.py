"""The hub's dashboard: pages for people, rendered on the server, with no build step."""

from edge_sync.web.pages import routes

__all__ = ["routes"]
