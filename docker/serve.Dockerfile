# The search service: docker build --file docker/serve.Dockerfile --tag visual-search-serve .
# docker run --publish 8000:8000 --env VISUAL_SEARCH_API_KEY --volume "$PWD/runs:/visual-search/runs" \
#   --volume "$PWD/shop:/visual-search/shop:ro" visual-search-serve
# Fill it first, by the same image: … visual-search-serve python -m visual_search.main_index \
#   --run runs/model --gallery shop/products.jsonl
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /visual-search

# The packages first, alone: they change more seldom than the code.
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY visual_search/__init__.py visual_search/
RUN mkdir my_submission dataset && touch my_submission/__init__.py dataset/__init__.py \
    && pip install --no-cache-dir --editable '.[train,demo,text,serve]'

COPY . .
RUN useradd --create-home --uid 1000 shop && mkdir --parents runs && chown 1000 /visual-search runs
USER 1000
EXPOSE 8000
CMD ["python", "-m", "visual_search.main_serve", "--host", "0.0.0.0"]
