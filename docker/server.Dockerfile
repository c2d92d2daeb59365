# The servers of Prefect and MLflow, and the small jobs that prepare their stores. Build it from the repository's root:
# docker build --file docker/server.Dockerfile --tag diffusion-server .
FROM python:3.11.15-slim-trixie

# Versions are those of the lock, which says why fastapi and sqlalchemy are held back. There is no torch in it.
RUN --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    pip install --no-cache-dir --disable-pip-version-check --constraint /tmp/requirements.lock \
        asyncpg boto3 fastapi flask-wtf mlflow prefect psycopg2-binary sqlalchemy \
    && useradd --uid 10001 --create-home server

COPY --chmod=755 docker/guard.sh /usr/local/bin/guard
COPY docker/buckets.py docker/healthy.py docker/mlflow-accounts.ini /srv/servers/

# Nobody is told that we run.
ENV PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/tmp/prefect-pages

USER 10001
WORKDIR /tmp
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "/srv/servers/healthy.py", "http://127.0.0.1:4200/api/health", "http://127.0.0.1:5000/health"]
