# syntax=docker/dockerfile:1
# CPU by default. For CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# The steps are the Makefile's own targets, so what is built here is what is tested outside.
ARG PYTHON_VERSION=3.12
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX
# Graders of GSM8K and HumanEval, GGUF files, traces. The user that serves cannot install what is missing.
ARG EXTRAS=eval,gguf,otel
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The wheel instead of an editable install: the image must not need the sources.
RUN make install wheel VENV=/opt/secateur TORCH="$TORCH" TORCH_INDEX="$TORCH_INDEX" \
    && /opt/secateur/bin/pip uninstall --quiet --yes secateur \
    && /opt/secateur/bin/pip install --quiet "$(echo dist/secateur-*.whl)[$EXTRAS]"

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
    HF_HOME=/home/secateur/.cache/secateur/huggingface \
    TRITON_CACHE_DIR=/home/secateur/.cache/secateur/triton
USER secateur
RUN mkdir -p "$SECATEUR_CACHE_DIR"
VOLUME /home/secateur/.cache/secateur
EXPOSE 8000
# A first start measures the model, and nothing listens until then.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m \
    CMD python -c "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"SECATEUR_PORT\", 8000)}/ready', timeout=4)"
ENTRYPOINT ["secateur"]
CMD ["serve"]
