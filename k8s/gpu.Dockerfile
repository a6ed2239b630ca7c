# The image of the captioning step: vLLM's official image, of the version in requirements/gpu.lock, with the packages of
# the slim image. Build it in the repository's folder, with VERSION=$(caption-assets --version):
#
#     docker build --file k8s/gpu.Dockerfile --build-arg VERSION="$VERSION" \
#       --tag registry.example.com/caption-assets-gpu:"$VERSION" .
FROM python:3.11.14-slim-bookworm AS package
COPY pyproject.toml README.md LICENSE /source/
COPY caption_assets /source/caption_assets
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM vllm/vllm-openai:v0.32.0
ARG VERSION
LABEL org.opencontainers.image.title="caption-assets-gpu" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY requirements/k8s.lock /requirements.lock
RUN python3 -m pip install --no-cache-dir --no-deps --requirement /requirements.lock
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --no-deps /wheels/*.whl \
    && useradd --uid 10001 --no-create-home --home-dir /cache caption \
    && mkdir --parents /opt/dagster/dagster_home
# vLLM, torch and Triton write compiled kernels below HOME, on the volume of the weights.
ENV DAGSTER_HOME=/opt/dagster/dagster_home \
    DAGSTER_DISABLE_TELEMETRY=yes \
    HOME=/cache \
    PYTHONUNBUFFERED=1
USER 10001:10001
# The base image's entry point is an API server. Dagster sets the pods' arguments, not their command.
ENTRYPOINT []
