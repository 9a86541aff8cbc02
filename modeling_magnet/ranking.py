"""Encodes queries and documents, and ranks by similarity, as sentence-transformers does."""

from collections.abc import Sequence
from typing import Any

import torch

from .checks import as_list, whole_number
from .encoding import EncodingMixin
from .tokenizing import check_text


class RankingMixin(EncodingMixin):
    """`encode_query`, `encode_document`, `similarity` and `rank`."""

    def encode_query(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **encode_arguments,
    ) -> Any:
        """Encode queries: `encode` with the checkpoint's prompt named `query`, if it has one.

        Args:
            sentences, prompt_name, prompt: as in `encode`; a prompt that is given wins.
            encode_arguments: the others of `encode`.

        Returns, raises:
            As `encode`.

        Example:
            >>> model.encode_query("Who sleeps?").shape
            (576,)
        """
        if prompt is None and prompt_name is None:
            prompt_name = self.magnet_settings.prompt_name_of("query")
        return self.encode(sentences, prompt_name, prompt, **encode_arguments)

    def encode_document(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **encode_arguments,
    ) -> Any:
        """Encode documents, with the prompt named `document`, `passage` or `corpus`, if there is one.

        Args, returns, raises:
            As `encode_query`.

        Example:
            >>> model.encode_document(["A cat sleeps.", "A dog runs."]).shape
            (2, 576)
        """
        if prompt is None and prompt_name is None:
            prompt_name = self.magnet_settings.prompt_name_of("document")
        return self.encode(sentences, prompt_name, prompt, **encode_arguments)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine similarity of each of some vectors with each of others.

        Args:
            embeddings1: (vectors, hidden) or one vector, (hidden,): an array, a tensor or a list.
            embeddings2: (others, hidden) or one vector.

        Returns:
            (vectors, others) in float32.

        Raises:
            TypeError: something other than vectors is given, such as texts.
            ValueError: the vectors differ in length.

        Example:
            >>> model.similarity(model.encode(["A cat sleeps."]), model.encode(["A dog runs."])).shape
            torch.Size([1, 1])
        """
        one, two = _matrix(embeddings1), _matrix(embeddings2)
        if one.shape[1] != two.shape[1]:
            raise ValueError(
                f"the vectors have {one.shape[1]} and {two.shape[1]} dimensions: encode both with the "
                "same model and truncate_dim"
            )
        return one @ two.to(one.device).T

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **encode_arguments,
    ) -> list[dict[str, Any]]:
        """Sort documents by their similarity to a query, the nearest first.

        Arguments and result are those of `sentence_transformers.CrossEncoder.rank`. For a query against
        documents that stay the same, keep their vectors and use `similarity`.

        Args:
            query: a text.
            documents: texts.
            top_k: the number of documents to return. None: all.
            return_documents: add each document's `text`.
            encode_arguments: of `encode`, such as `batch_size` and `truncation`.

        Returns:
            A dict per document: `corpus_id`, its number in `documents`, and `score`, the cosine.

        Raises:
            TypeError, ValueError: `documents` is one string, `top_k` is not a whole number from 1 on, or
                as in `encode`.

        Example:
            >>> model.rank("Who sleeps?", ["A dog runs.", "A cat sleeps."], top_k=1)
            [{'corpus_id': 1, 'score': 0.76}]
        """
        check_text(query, "query")
        if isinstance(documents, str):
            raise TypeError("documents is one string: give a sequence of strings")
        texts = as_list(documents, "documents")
        if top_k is not None:
            top_k = whole_number("top_k", top_k)
        own = {"convert_to_tensor": True, **encode_arguments}
        vectors = self.encode_document(texts, **own)  # (documents, hidden)
        scores = self.similarity(self.encode_query(query, **own), vectors)[0]  # (documents,)
        order = scores.argsort(descending=True, stable=True)[:top_k]
        return [
            {"corpus_id": i, "score": scores[i].item()}
            | ({"text": texts[i]} if return_documents else {})
            for i in order.tolist()
        ]


def _matrix(vectors: Any) -> torch.Tensor:
    """Vectors as a matrix (vectors, hidden) in float32, each scaled to length 1."""
    if isinstance(vectors, (list, tuple)) and vectors and isinstance(vectors[0], torch.Tensor):
        vectors = torch.stack(list(vectors))
    try:
        rows = torch.atleast_2d(torch.as_tensor(vectors)).float()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"got {type(vectors).__name__}, expected vectors: encode texts first"
        ) from error
    return torch.nn.functional.normalize(rows, dim=-1)
