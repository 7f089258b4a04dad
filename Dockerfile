# syntax=docker/dockerfile:1
# CPU by default. For CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# The steps are the Makefile's own targets, so what is built here is what is tested outside.
ARG PYTHON_VERSION=3.12
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The wheel instead of an editable install: the image must not need the sources.
RUN make install wheel VENV=/opt/secateur TORCH="$TORCH" TORCH_INDEX="$TORCH_INDEX" \
    && /opt/secateur/bin/pip uninstall --quiet --yes secateur \
    && /opt/secateur/bin/pip install --quiet --no-deps dist/secateur-*.whl

FROM python:${PYTHON_VERSION}-slim
ARG TORCH_INDEX
# Triton, which comes with torch for CUDA, compiles with a C compiler where it runs.
RUN case "$TORCH_INDEX" in */cpu) compiler="" ;; *) compiler="gcc libc6-dev" ;; esac \
    && apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap libgomp1 $compiler \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 secateur
COPY --from=build /opt/secateur /opt/secateur
ENV PATH=/opt/secateur/bin:$PATH \
    SECATEUR_HOST=0.0.0.0 \
    SECATEUR_CACHE_DIR=/home/secateur/.cache/secateur \
    TRITON_CACHE_DIR=/home/secateur/.cache/secateur/triton
USER secateur
RUN mkdir -p "$SECATEUR_CACHE_DIR"
VOLUME /home/secateur/.cache/secateur
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=2)"
ENTRYPOINT ["secateur"]
CMD ["serve"]
