"""The HTTP API: what there is to look at and to decide, for programs, Prometheus and a page. Decides nothing itself.

`app` puts it together, `operations` and the modules beside it say what may be asked, `serve` listens, and `client` is
what asks. Everything heavy is imported there, so that this package costs nothing.
"""
