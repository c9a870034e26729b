# Training, on GPUs or without: docker build -f Dockerfile . -t visual-search
# docker run -it --gpus all --ipc host --volume "$PWD/dataset:/visual-search/dataset" \
#   --volume "$PWD/runs:/visual-search/runs" visual-search \
#   python -m visual_search.main_arcface --config config/arcface_1st.yml --name arcface_1st
# The CUDA libraries come with torch; the host needs a driver and nvidia-container-toolkit.
#
# An evaluator that finds a Dockerfile builds from it: what requirements.txt and apt.txt bring is
# there. Nothing but these, no network, 4 cores and 16 GB, to try a submission in:
# docker build --build-arg EXTRAS= --tag visual-search-evaluator .
# docker run --network none --cpus 4 --memory 16g --volume "$PWD/runs:/visual-search/runs" \
#   --volume "$PWD/dataset/development_test_data:/data:ro" --env AICROWD_DATASET_DIR=/data \
#   visual-search-evaluator python -c "import numpy; from my_submission.aicrowd_wrapper import \
#   AIcrowdWrapper; numpy.save('runs/ranks.npy', AIcrowdWrapper().predict_product_ranks())"
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /visual-search
COPY apt.txt ./
# A compiler for torch.compile, git-lfs for the submission's weights.
# hadolint ignore=DL3008
RUN apt-get update \
    && sed '/^ *\(#\|$\)/d' apt.txt \
        | xargs apt-get install --yes --no-install-recommends g++ git git-lfs libgomp1 make \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The packages first, alone: they change more seldom than the code.
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt
# Any of pyproject.toml's extras: --build-arg EXTRAS=train,data,text,demo,tune,export,submit
ARG EXTRAS=train,trackers
COPY pyproject.toml README.md LICENSE ./
COPY visual_search/__init__.py visual_search/
RUN mkdir my_submission dataset && touch my_submission/__init__.py dataset/__init__.py \
    && pip install --no-cache-dir --editable ".${EXTRAS:+[$EXTRAS]}"

COPY . .
RUN useradd --create-home --uid 1000 aicrowd && mkdir --parents runs && chown 1000 /visual-search runs
USER 1000
CMD ["bash"]
