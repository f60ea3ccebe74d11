"""huggingface_hub itself, on a cache of its own and without a network."""

import http.server
import sys
import threading

import pytest
from huggingface_hub import constants

import nest_dist
from nest_dist.base import failures, hub
from nest_dist.pretrained.formats import safetensors_file


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def snapshot(cache, repository):
    """The folder in which the library keeps the files of a repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1234")
    (folder / "snapshots" / "1234").mkdir(parents=True)
    return folder / "snapshots" / "1234"


def refused(message, where):
    with pytest.raises(failures.BadInput, match=message) as error:
        nest_dist.load(where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_id_stands_for_the_weights_of_a_repository(name, cache, trained):
    file = snapshot(cache, "me/my-nest") / name
    safetensors_file.write(file, trained.params, {})
    assert nest_dist.load("hf:me/my-nest").model == trained.model


def test_what_is_neither_on_the_hub_nor_in_its_cache_is_refused(cache):
    refused(
        r"^hf:them/their-nest cannot be fetched from the Hugging Face Hub \(.+\); check name and "
        r"network, or give a path\.$",
        "hf:them/their-nest",
    )


class _NoSuchFile(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_repository_without_weights_is_refused(cache, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), _NoSuchFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        refused(
            r"the repository them/pictures has none of model.safetensors, pytorch_model.bin; give",
            "hf:them/pictures",
        )
        server.shutdown()


def test_an_error_of_the_library_is_shown_in_one_line(cache):
    refused(r"^hf:them/--their cannot be fetched .* \(.+\); check name", "hf:them/--their")


def test_without_the_library_an_id_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(r"hf:me/my-nest is on the Hugging .* `pip install nest-dist\[hub\]`", "hf:me/my-nest")


@pytest.mark.parametrize(
    "where", ["workdirs/quickstart", "checkpoints/100", "digits/model.safetensors", "me/my-nest"]
)
def test_a_path_that_is_not_there_is_never_asked_for_on_the_hub(
    where, cache, monkeypatch, tmp_path_factory
):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))  # README's first command has made one here
    safetensors_file.write(snapshot(cache, where) / "model.safetensors", {}, {})
    monkeypatch.setattr(hub, "download", None)
    refused(rf"^{where} is no file, .* Hub write hf:{where}\.$", where)


@pytest.mark.parametrize("where", ["hf:me", "hf:", "hf:a/b/c", "hf://a/b", "hf:../x/y"])
def test_what_names_no_repository_is_refused(where):
    refused(rf"^{where} names no repository; write hf:OWNER/NAME\.$", where)
