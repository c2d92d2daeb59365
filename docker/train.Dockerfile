# Whatever computes: the worker of the pool `machine`, and the image of Docker and Kubernetes pools. Build it from the
# repository's root: docker build --file docker/train.Dockerfile --tag diffusion-train .
#
# PyTorch's wheel brings the CUDA libraries that it was built for, so a base image with CUDA would hold a second set of
# them, of another version, that nothing uses. The driver comes from the host (NVIDIA's container toolkit).
FROM python:3.11.15-slim-trixie AS build

WORKDIR /project
RUN --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    pip install --no-cache-dir --disable-pip-version-check --constraint /tmp/requirements.lock uv \
    && python -m venv --without-pip /srv/diffusion

# Gigabytes, and in a layer of their own: a change of the code leaves it as it is.
COPY pyproject.toml requirements.lock ./
RUN uv pip install --no-cache --compile-bytecode --python /srv/diffusion/bin/python --constraint requirements.lock \
        --extra pipeline --extra serve --extra docker --extra kubernetes -r pyproject.toml

COPY LICENSE README.md ./
COPY diffusion_core diffusion_core
RUN uv pip install --no-cache --compile-bytecode --python /srv/diffusion/bin/python --no-deps \
        --build-constraint requirements.lock .


FROM python:3.11.15-slim-trixie

# Runs clone with git, and torch.compile builds its launchers with gcc. tini, as process 1, ends who outlives a parent.
# Debian's archive keeps the newest version of a package only: one that is pinned could soon not be built any more.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc git libc6-dev openssh-client tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home diffusion \
    && install --directory --owner=diffusion --group=diffusion \
        /var/lib/diffusion /var/lib/diffusion/cache /var/lib/diffusion/checkpoints /var/lib/diffusion/compiled \
        /var/lib/diffusion/downloads

COPY --from=build /srv/diffusion /srv/diffusion
COPY docker/healthy.py /srv/diffusion/

# The project that is installed here is for whoever has no clone; Python looks in the folder of a clone first.
ENV PATH=/srv/diffusion/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1 \
    DIFFUSION_CHECKPOINTS=/var/lib/diffusion/checkpoints \
    DIFFUSION_COMPILE_CACHE=/var/lib/diffusion/compiled \
    DIFFUSION_DOWNLOADS=/var/lib/diffusion/downloads \
    DIFFUSION_DVC_CACHE=/var/lib/diffusion/cache \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 10001
# Where containers of Docker and Kubernetes pools clone to. Not the volume: Prefect updates a clone that it finds, and so
# a run would meet what the last one left in it.
WORKDIR /home/diffusion
ENTRYPOINT ["tini", "--"]
# One training at a time: two would share the GPU's memory.
CMD ["python", "-m", "diffusion_core.supervision.worker", "--pool", "machine", "--type", "process", "--limit", "1", "--with-healthcheck"]
