"""The one rule about repositories on the Hub, against a Hub on loopback."""

import pytest
from huggingface_hub import HfApi, constants
from support.hub_server import TOKEN, running_hub

from mvaema.hub import private_repository


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
@pytest.mark.parametrize("public", [False, True])
def test_a_new_repository_is_private_unless_public_was_asked_for(hub, repo_type, public):
    api = HfApi(endpoint=hub.url, token=TOKEN)
    for _ in range(2):  # the second time it is there already
        url = private_repository(api, "lab/new", repo_type, public)
        assert url.repo_id == "lab/new"
        assert hub.repositories["lab/new"]["private"] is not public


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_public_repository_is_refused_unless_public_was_asked_for(hub, repo_type):
    hub.repositories["lab/open"] = {"private": False, "files": {}}
    api = HfApi(endpoint=hub.url, token=TOKEN)
    with pytest.raises(PermissionError, match=r"lab/open is public already.*--public"):
        private_repository(api, "lab/open", repo_type)
    assert private_repository(api, "lab/open", repo_type, public=True).repo_id == "lab/open"


def test_a_private_repository_stays_private_even_with_public(hub):
    hub.repositories["lab/secret"] = {"private": True, "files": {}}
    private_repository(HfApi(endpoint=hub.url, token=TOKEN), "lab/secret", "model", public=True)
    assert hub.repositories["lab/secret"]["private"] is True
