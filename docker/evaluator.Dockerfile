# What the evaluator has: requirements.txt and apt.txt alone, no network, 4 cores, 16 GB.
# docker build --file docker/evaluator.Dockerfile --tag visual-search-evaluator .
# docker run --network none --cpus 4 --memory 16g --volume "$PWD/runs:/visual-search/runs" \
#   --volume "$PWD/dataset/development_test_data:/data:ro" visual-search-evaluator
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /visual-search
COPY apt.txt ./
# hadolint ignore=DL3008
RUN apt-get update \
    && sed '/^ *\(#\|$\)/d' apt.txt \
        | xargs --no-run-if-empty apt-get install --yes --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt

COPY . .
RUN useradd --create-home --uid 1000 aicrowd && mkdir --parents runs && chown 1000 runs
USER 1000
ENV AICROWD_DATASET_DIR=/data
CMD ["python", "-c", "import numpy; from my_submission.aicrowd_wrapper import AIcrowdWrapper; numpy.save('runs/ranks.npy', AIcrowdWrapper().predict_product_ranks())"]
