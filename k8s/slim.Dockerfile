# The image of code server, daemon, webserver, runs and CPU steps, without torch. Build it in the repository's folder,
# with VERSION=$(caption-assets --version):
#
#     docker build --file k8s/slim.Dockerfile --build-arg VERSION="$VERSION" \
#       --tag registry.example.com/caption-assets-slim:"$VERSION" .
#
# Pin the base's digest after its tag (...-slim-bookworm@sha256:...) in both files, and renew it for security updates.
FROM python:3.11.14-slim-bookworm AS package
COPY pyproject.toml README.md LICENSE /source/
COPY caption_assets /source/caption_assets
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11.14-slim-bookworm
ARG VERSION
LABEL org.opencontainers.image.title="caption-assets-slim" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY requirements/k8s.lock /requirements.lock
RUN pip install --no-cache-dir --no-deps --requirement /requirements.lock
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl \
    && useradd --uid 10001 --no-create-home --home-dir /tmp caption \
    && mkdir --parents /opt/dagster/dagster_home
ENV DAGSTER_HOME=/opt/dagster/dagster_home \
    DAGSTER_DISABLE_TELEMETRY=yes \
    HOME=/tmp \
    PYTHONUNBUFFERED=1
USER 10001:10001
# No entry point: Dagster sets the pods' arguments, not their command.
