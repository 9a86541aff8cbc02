"""A server on a tiny model, and clients of it."""

import pytest
from server_process import KEY, serving_here
from tiny import make_model


@pytest.fixture(scope="session")
def model():
    """A tiny model; it never ends a text by itself."""
    model = make_model()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="session")
def server(model):
    """The address of a server that asks for a key, with small limits."""
    limits = {"max_body": 20_000, "max_texts": 20, "max_waiting": 20}
    with serving_here(model, "tiny", [KEY], **limits) as address:
        yield address
