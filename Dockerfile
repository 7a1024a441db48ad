# ggprune in a container, from wheels alone.
#
#   docker build -t ggprune .
#   docker run --rm -v "$PWD:/models" ggprune model.gguf --keep 96
#
# For NVIDIA GPUs (nvidia-container-toolkit on the host):
#
#   docker build -t ggprune:cuda --build-arg WHEELS=cu124 \
#     --build-arg BASE=nvidia/cuda:12.4.1-runtime-ubuntu22.04 .
#   docker run --rm --gpus all -v "$PWD:/models" ggprune:cuda model.gguf --keep 96
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG WHEELS=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
# libgomp1: OpenMP, which the wheels of llama-cpp-python expect to find.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/ggprune
COPY pyproject.toml README.md LICENSE /src/
COPY ggprune /src/ggprune
RUN /opt/ggprune/bin/pip install --only-binary llama-cpp-python \
    --extra-index-url https://abetlen.github.io/llama-cpp-python/whl/${WHEELS} /src \
    && rm -r /src
ENV PATH=/opt/ggprune/bin:$PATH
WORKDIR /models
ENTRYPOINT ["ggprune"]
