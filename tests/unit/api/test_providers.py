"""Embedding providers: what can be made, what may be changed while it is used, and that keys stay where they belong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from embedder.providers import registry
from tests.unit.api.worlds import World
from walvec.contracts.errors import DefinitionError
from walvec.definitions.model import EmbeddingProvider
from walvec.runtime.settings import settings_from

PATH = "/v1/embedding-providers"
OPENAI = {"name": "openai-prod", "provider": "openai", "api_key": "sk-first"}


async def made(world: World, **more: Any) -> str:
    return str((await world.ask("POST", PATH, {**OPENAI, **more}, 201))["id"])


def stored(world: World, provider: str) -> Any:
    return world.control.feed.current.providers[provider]


async def test_a_key_goes_in_and_never_out(world: World) -> None:
    provider = await made(world)
    for answer in (await world.ask("GET", f"{PATH}/{provider}"), await world.ask("GET", PATH)):
        assert "sk-first" not in str(answer)
    assert (await world.ask("GET", f"{PATH}/{provider}"))["has_api_key"] is True
    without = await world.ask("POST", PATH, {"name": "local", "provider": "static"}, 201)
    assert without["has_api_key"] is False


@pytest.mark.parametrize("kind", ["gemini", "voyage", "cohere"])
async def test_a_kind_that_cannot_run_is_told_at_once(world: World, kind: str) -> None:
    refused = await world.ask("POST", PATH, {**OPENAI, "provider": kind}, 501)
    assert refused["error"]["code"] == "not_supported"
    assert kind in refused["error"]["message"]
    assert "openai" in refused["error"]["resolution"]
    assert world.control.feed.current.providers == {}


async def test_the_catalogue_has_every_documented_model(world: World) -> None:
    found = {k["provider"]: k for k in (await world.ask("GET", f"{PATH}/models"))["data"]}
    assert found == {k["provider"]: k for k in (await world.ask("GET", f"{PATH}/catalogue"))["data"]}
    models = {m["model"]: m["dimensions"] for m in found["voyage"]["models"]}
    assert models["voyage-3.5-lite"] == 512
    assert {k: v["available"] for k, v in found.items()} == {
        "static": True, "openai": True, "gemini": False, "voyage": False,
    }  # fmt: skip
    assert {m["model"] for m in found["openai"]["models"]} == {
        "text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002",
    }  # fmt: skip


async def test_a_key_is_changed_and_what_is_left_out_stays(world: World) -> None:
    provider = await made(world, default_model="text-embedding-3-small")
    before = stored(world, provider)
    changed = await world.ask("PUT", f"{PATH}/{provider}", {"api_key": "sk-second"})
    assert "sk-second" not in str(changed)
    assert stored(world, provider) == replace(before, api_key="sk-second")
    await world.ask("PUT", f"{PATH}/{provider}", {"name": "renamed"})
    assert stored(world, provider) == replace(before, api_key="sk-second", name="renamed")
    await made(world, name="other")
    taken = await world.ask("PUT", f"{PATH}/{provider}", {"name": "other"}, 409)
    assert taken["error"]["code"] == "embedding_provider_conflict"


async def test_a_key_is_not_sent_to_another_address(world: World) -> None:
    provider = await made(world)
    body = {"base_url": "https://proxy.example/v1"}
    refused = await world.ask("PUT", f"{PATH}/{provider}", body, 422)
    assert "api_key" in refused["error"]["message"]
    await world.ask("PUT", f"{PATH}/{provider}", {**body, "api_key": "sk-proxy"})
    assert stored(world, provider).base_url == "https://proxy.example/v1"


async def test_openais_own_address_needs_a_key(world: World) -> None:
    """The embedder takes a key from nowhere else; a compatible server may need none."""
    own = {"base_url": "https://API.openai.com:443/v1/"}
    for without in ({}, {"api_key": ""}, {"api_key": None}, {"api_key": " \n"}, own, {**own, "api_key": ""}):
        body = {"name": "openai-prod", "provider": "openai", **without}
        error = (await world.ask("POST", PATH, body, 422))["error"]
        assert (error["code"], error["message"].partition(":")[0]) == ("validation_error", "api_key")
        assert "base_url" in error["resolution"]
    assert world.control.feed.current.providers == {}
    local = {"name": "local", "provider": "openai", "base_url": "http://127.0.0.1:9/v1"}
    assert (await world.ask("POST", PATH, local, 201))["has_api_key"] is False
    provider = await made(world)
    assert "api_key" in (await world.ask("PUT", f"{PATH}/{provider}", {"api_key": ""}, 422))["error"]["message"]
    assert stored(world, provider).api_key == "sk-first"
    static = (await world.ask("POST", PATH, {"name": "static", "provider": "static"}, 201))["id"]
    assert "api_key" in (await world.ask("PUT", f"{PATH}/{static}", {"provider": "openai"}, 422))["error"]["message"]


async def test_a_provider_without_a_key_of_before_is_still_renamed(world: World) -> None:
    provider = await made(world)
    await world.control.definitions.put_provider(replace(stored(world, provider), api_key=None))
    assert (await world.ask("PUT", f"{PATH}/{provider}", {"name": "renamed"}))["name"] == "renamed"


def test_an_address_in_the_settings_needs_no_key() -> None:
    settings = settings_from({"providers": {"openai": {"base_url": "http://127.0.0.1:9/v1"}}})
    registry.check(EmbeddingProvider("emb_1", "p", "openai"), settings)
    with pytest.raises(DefinitionError, match="base_url"):
        registry.check(EmbeddingProvider("emb_1", "p", "custom"), settings)


async def test_a_provider_in_use_keeps_its_kind_and_stays(world: World) -> None:
    table = await world.apply()
    path = f"{PATH}/{table.embedding_provider_id}"
    for method, body in (("PUT", {"provider": "openai"}), ("DELETE", None)):
        refused = await world.ask(method, path, body, 409)
        assert refused["error"]["code"] == "embedding_provider_conflict"
        assert table.name in refused["error"]["message"]


async def test_vectors_that_are_kept_for_a_rollback_hold_their_provider(world: World) -> None:
    table = await world.apply()
    other = await made(world)
    kept = replace(
        table.active, number=7, state="retired", embedding_provider_id=other, provider_kind="openai", kept_until="2999"
    )
    feed = world.control.feed
    feed.move(vector_tables={table.id: replace(table, generations=(table.active, kept))})
    refused = await world.ask("DELETE", f"{PATH}/{other}", status=409)
    assert refused["error"]["code"] == "embedding_provider_conflict"
    feed.move(vector_tables={table.id: table})
    await world.ask("DELETE", f"{PATH}/{other}", status=204)
