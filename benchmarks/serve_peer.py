"""What a user would build to serve a model: FastAPI and transformers' NER pipeline, as their documentations show them.

    python -m benchmarks.serve_peer MODEL --port 8000

One uvicorn process, threads as PyTorch chooses them, an endpoint that is a plain function (FastAPI runs it in its
thread pool); `POST /` with `{"text": …}` answers the list of entities.
"""

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Document(BaseModel):
    """A request."""

    text: str


def build_app(model: Path) -> FastAPI:
    """The application on a model folder."""
    from transformers import pipeline

    label = pipeline("token-classification", model=str(model), aggregation_strategy="first")
    app = FastAPI()

    @app.post("/")
    def find_entities(document: Document) -> list[dict[str, Any]]:
        """Entities as the pipeline gives them, with scores that JSON can carry."""
        return [{**entity, "score": float(entity["score"])} for entity in label(document.text)]

    return app


def main() -> None:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(build_app(arguments.model), port=arguments.port)


if __name__ == "__main__":
    main()
