# Debian slim and not Alpine: the wheels of pydantic-core, orjson and uvloop are tested on glibc first.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY signalbus ./signalbus
RUN python -m venv /opt/signalbus \
    && /opt/signalbus/bin/pip install --no-cache-dir ".[speed]"

FROM python:3.13-slim
RUN useradd --system --create-home --home-dir /var/lib/signalbus signalbus
COPY --from=build /opt/signalbus /opt/signalbus
WORKDIR /app
# consumers/ and examples/ are programs, not library code: they are in the image and not in the wheel.
COPY consumers ./consumers
COPY examples ./examples
ENV PATH=/opt/signalbus/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    SIGNALBUS_URL=sqlite:////var/lib/signalbus/signalbus.db
USER signalbus
# The container gets SIGTERM as process 1: exec form, so that the bus drains its handlers.
ENTRYPOINT ["signalbus"]
CMD ["--help"]
