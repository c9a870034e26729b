# For training: docker build --file docker/train.Dockerfile --tag visual-search-train .
# docker run --gpus all --ipc host --volume "$PWD/dataset:/visual-search/dataset" \
#   --volume "$PWD/runs:/visual-search/runs" visual-search-train \
#   python -m visual_search.main_arcface --config config/arcface_1st.yml --name arcface_1st
# The CUDA libraries come with torch; the host needs a driver and nvidia-container-toolkit.
FROM python:3.12-slim-bookworm

# A compiler for torch.compile, git-lfs for the submission's weights.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git git-lfs libgomp1 make \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /visual-search

# The packages first, alone: they change more seldom than the code.
COPY pyproject.toml requirements.txt README.md LICENSE ./
RUN mkdir visual_search my_submission dataset \
    && touch visual_search/__init__.py my_submission/__init__.py dataset/__init__.py \
    && pip install --no-cache-dir --editable '.[train,data,text,demo,trackers,tune,export,submit]'

COPY . .
RUN useradd --create-home --uid 1000 trainer && mkdir --parents runs && chown 1000 /visual-search runs
USER 1000
CMD ["python", "-m", "visual_search.main_arcface", "--help"]
