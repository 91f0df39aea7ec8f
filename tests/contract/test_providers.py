"""What every embedding provider promises, for each adapter."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from embedder.models import ModelAccess
from embedder.providers import registry
from embedder.providers.port import Provider, ProviderSuspect
from tests.plugins.embedder_world import generation
from tests.plugins.openai_server import OpenAIServer
from walvec.contracts.errors import DefinitionError, ProviderStop, ProviderWait
from walvec.definitions.model import EmbeddingProvider
from walvec.runtime.settings import settings_from

MODELS = {
    "static": ("minilm-static-256", 256),
    "openai": ("text-embedding-3-small", 64),
    "custom": ("some-model", 32),
    "ollama": ("nomic", 16),
    "fake": ("fake", 24),
}


@pytest.fixture(params=sorted(MODELS))
async def made(request: pytest.FixtureRequest, openai_server: OpenAIServer) -> AsyncIterator[tuple[Provider, int]]:
    model, dimensions = MODELS[request.param]
    definition = EmbeddingProvider("ep", "p", request.param, "sk-x", openai_server.url)
    provider = registry.make(definition, model, dimensions, settings_from({}))
    yield provider, dimensions
    await provider.close()


def test_every_kind_is_held_to_this_suite() -> None:
    assert set(registry.KINDS) == set(MODELS)


async def test_rows_in_the_order_of_the_texts(made: tuple[Provider, int]) -> None:
    provider, dimensions = made
    texts = [f"text number {i} " + "long " * (i % 7) for i in range(40)]
    whole = await provider.embed(texts, kind="document")
    assert whole.dtype == np.float32
    assert whole.shape == (40, dimensions)
    assert np.isfinite(whole).all()
    for i in (0, 13, 39):
        one = await provider.embed([texts[i]], kind="document")
        np.testing.assert_allclose(one[0], whole[i], atol=1e-6)


async def test_concurrent_calls_and_odd_texts(made: tuple[Provider, int]) -> None:
    provider, dimensions = made
    odd = ["x", "\u2603", "a\u0001b", "\U0001f600" * 50, "long " * 5000]
    found = await asyncio.gather(*(provider.embed([t], kind="query") for t in odd))
    assert all(f.shape == (1, dimensions) for f in found)


async def test_static_takes_texts_of_any_length_and_keeps_the_loop_live() -> None:
    provider = registry.make(EmbeddingProvider("e", "p", "static"), "minilm-static-256", 256, settings_from({}))
    head = "red lamp " * 600
    short, long = await provider.embed([head, head + "blue chair " * 3000], kind="document")
    assert not np.allclose(short, long)


@pytest.mark.parametrize("fault", ["shuffle", "floats", "no_index"])
async def test_answers_of_other_shapes_are_understood(openai_server: OpenAIServer, fault: str) -> None:
    definition = EmbeddingProvider("ep", "p", "openai", "sk-x", openai_server.url)
    provider = registry.make(definition, "text-embedding-3-small", 8, settings_from({}))
    straight = await provider.embed(["a", "b", "c"], kind="document")
    setattr(openai_server.faults, fault, True)
    np.testing.assert_allclose(await provider.embed(["a", "b", "c"], kind="document"), straight, atol=1e-7)
    await provider.close()


async def test_dimensions_are_asked_for_where_the_model_has_a_choice(openai_server: OpenAIServer) -> None:
    definition = EmbeddingProvider("ep", "p", "openai", "sk-x", openai_server.url)
    ada = registry.make(definition, "text-embedding-ada-002", 1536, settings_from({}))
    await ada.embed(["a"], kind="document")
    assert "dimensions" not in openai_server.bodies[-1]
    unknown = registry.make(definition, "other", 12, settings_from({}))
    assert (await unknown.embed(["a"], kind="document")).shape == (1, 12)
    assert [b.get("dimensions") for b in openai_server.bodies[1:]] == [None, 12]
    for provider in (ada, unknown):
        await provider.close()


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ({"drop": 1}, ProviderSuspect),
        ({"nan": True}, ProviderSuspect),
        ({"nan": True, "floats": True}, ProviderSuspect),
        ({"dimensions": 5}, ProviderSuspect),
        ({"body": []}, ProviderSuspect),
        ({"body": {"error": {"code": "insufficient_quota"}}}, ProviderStop),
        ({"body": {"data": [{"embedding": None, "index": 0}, {"embedding": [1], "index": 1}]}}, ProviderSuspect),
        ({"body": {"data": [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 0}]}}, ProviderSuspect),
        ({"hang_up": True}, ProviderWait),
    ],
    ids=str,
)
async def test_answers_that_cannot_be_trusted(
    openai_server: OpenAIServer, faults: dict[str, object], kind: type[Exception]
) -> None:
    for name, value in faults.items():
        setattr(openai_server.faults, name, value)
    definition = EmbeddingProvider("ep", "p", "openai", "sk-x", openai_server.url)
    provider = registry.make(definition, "text-embedding-3-small", 8, settings_from({}))
    with pytest.raises(kind):
        await provider.embed(["a", "b"], kind="document")
    await provider.close()


async def test_nobody_listens(openai_server: OpenAIServer) -> None:
    definition = EmbeddingProvider("ep", "p", "custom", None, "http://127.0.0.1:9/v1")
    provider = registry.make(definition, "m", 8, settings_from({}))
    with pytest.raises(ProviderWait):
        await provider.embed(["a"], kind="document")
    await provider.close()
    wrong = registry.make(EmbeddingProvider("e", "p", "custom", None, "nonsense"), "m", 8, settings_from({}))
    with pytest.raises(ProviderStop):
        await wrong.embed(["a"], kind="document")
    await wrong.close()


async def test_model_access(openai_server: OpenAIServer) -> None:
    settings = settings_from({"providers": {"openai": {"base_url": openai_server.url}}})
    access = ModelAccess(settings)
    provider = EmbeddingProvider("ep", "p", "openai", "sk-x")
    assert (await access.embed_query(provider, generation(), "hello")).shape == (8,)
    assert access.defaults("openai") == ("text-embedding-3-small", 1536)
    assert access.defaults("static") == ("minilm-static-256", 256)
    assert access.defaults("custom") == (None, None)
    assert await access.check(provider, "text-embedding-3-large", None) == 3072
    assert await access.check(provider, "text-embedding-3-small", 256) == 256
    assert await access.check(provider, "unknown", 7) == 7
    static = EmbeddingProvider("e2", "s", "static")
    assert await access.check(static, "minilm-static-256", None) == 256
    for definition, model, dimensions in (
        (provider, "text-embedding-3-small", 5000),
        (provider, "text-embedding-ada-002", 256),
        (provider, "unknown", None),
        (static, "other", None),
        (static, "minilm-static-256", 128),
        (EmbeddingProvider("e3", "x", "nonsense"), "m", 1),
        (EmbeddingProvider("e4", "x", "custom"), "m", 1),
        (EmbeddingProvider("e5", "x", "openai", limits={"max_items": 0}), "text-embedding-3-small", None),
    ):
        with pytest.raises(DefinitionError):
            await access.check(definition, model, dimensions)
    assert "static" in access.providers()
    await access.close()
