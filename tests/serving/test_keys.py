"""Who may ask: a server with keys, seen by clients with the right one, a wrong one and none."""

import openai
import pytest
from support.student_server import StudentServer, http, picture, request
from support.tiny_student import save_tiny_student

from mvaema.serving.keys import Keys
from mvaema.serving.refusals import Refusal
from mvaema.students.loading import load_student

KEY, OTHER = "sk-lab-5e884898da280471", "sk-lab-second-key"


def test_only_clients_with_a_key_are_answered(tmp_path):
    model = load_student(save_tiny_student(tmp_path)).eval()
    model.generation_config.max_new_tokens = 4
    with StudentServer(model, keys=[KEY, OTHER]) as server:
        for key in (KEY, OTHER):
            client = server.client(key)
            assert client.models.list().data
            assert client.chat.completions.create(**request("What is it?", picture()))
        for key in ("sk-wrong", KEY[:-1], KEY + "x", KEY.upper()):
            client = server.client(key)
            for call in (
                client.models.list,
                lambda client=client: client.chat.completions.create(
                    **request("What is it?", picture(0, (900, 900)))
                ),
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    call()
                assert caught.value.code == "invalid_api_key" and key not in str(caught.value)
        for headers in ({}, {"Authorization": KEY}, {"Authorization": "Basic " + KEY}):
            assert http.get(f"{server.url}/models", headers=headers).status_code == 401
        # A probe of a container has no key.
        root = server.url.removesuffix("/v1")
        assert http.get(f"{root}/health").status_code == 200
        assert http.get(f"{root}/ready").status_code == 200


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MVAEMA_API_KEY", raising=False)
    assert not Keys.found(None)
    Keys.found(None).check(None)  # everybody may ask
    monkeypatch.setenv("MVAEMA_API_KEY", KEY)
    Keys.found(None).check(f"Bearer {KEY}")
    file = tmp_path / "keys"
    file.write_text(f"# of the lab\n\n{OTHER}  \n")
    keys = Keys.found(file)
    keys.check(f"bearer {OTHER}")
    with pytest.raises(Refusal):
        keys.check(f"Bearer {KEY}")  # the file goes before the environment
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        Keys.found(file)
    monkeypatch.setenv("MVAEMA_API_KEY", " ")
    with pytest.raises(ValueError, match="MVAEMA_API_KEY is blank"):
        Keys.found(None)
