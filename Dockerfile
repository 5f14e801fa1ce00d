# handbook_ext with vLLM and DeepSpeed for CUDA. Not built where this was written: there is no GPU and no image registry.
#   docker build -t handbook_ext . && docker run --gpus all -v "$PWD/runs:/work/runs" handbook_ext make zephyr-selm-iter3
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work
COPY . .
# The versions of constraints.txt are those of every machine; the extras are those that a goal at paper scale would install.
RUN make setup && make .venv/extra-gpu .venv/extra-vllm
ENV HF_HOME=/work/runs/.hub
CMD ["make", "help"]
