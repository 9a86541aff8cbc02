"""`magnet serve`: embeddings, infilling and completions over HTTP, from one model in one process."""
