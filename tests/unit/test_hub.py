"""Bundles go to the hub and come back through its own client, over a real socket; mistakes are told beforehand."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from pipelines.hub import UploadError, find_push_problems, push_bundle
from pipelines.ner.bundle import load_bundle
from pipelines.ner.errors import UserError
from tests.conftest import make_bundle
from tests.hub_server import TOKEN, Hub, Repository, serve_hub

NAME = "me/my-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, a login, an empty cache. (The client reads its environment when it is imported.)"""
    with serve_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client of its own, kept
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        yield served
        close_session()


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bundle_arrives_whole_in_a_new_repository(hub: Hub, tiny_bundle: Path):
    assert push_bundle(tiny_bundle, NAME, private=False) == f"{hub.url}/{NAME}"
    assert hub.models[NAME].files == read(tiny_bundle)
    assert not hub.models[NAME].private
    assert hub.models[NAME].commits == ["Upload bundle"]


def test_private_repository_is_made_private(hub: Hub, tiny_bundle: Path):
    push_bundle(tiny_bundle, NAME, private=True)
    assert hub.models[NAME].private
    assert hub.models[NAME].files


def test_nothing_meant_to_be_private_goes_to_a_public_repository(hub: Hub, tiny_bundle: Path):
    hub.models[NAME] = Repository()
    with pytest.raises(UploadError, match="the repository is there and is public"):
        push_bundle(tiny_bundle, NAME, private=True)
    assert hub.models[NAME].files == {}


def test_next_bundle_replaces_the_one_before_and_leaves_what_is_not_its_own(hub: Hub, tiny_encoder, tmp_path):
    first, second = (make_bundle(tiny_encoder, tmp_path / head, head=head) for head in ("crf", "linear"))
    others = {"LICENSE": b"mine", "onnx/config.json": b"{}", ".gitattributes": b""}
    hub.models[NAME] = Repository(files=dict(others))
    push_bundle(first, NAME, private=False)
    assert "crf.safetensors" in hub.models[NAME].files
    push_bundle(second, NAME, private=False)
    assert hub.models[NAME].files == others | read(second)


def test_bundle_on_the_hub_loads_as_the_same_bundle_whatever_its_head(hub: Hub, tiny_bundle: Path, monkeypatch):
    push_bundle(tiny_bundle, NAME, private=False)
    hub.models[NAME].files[".gitattributes"] = b"*.safetensors filter=lfs"
    ours, theirs = load_bundle(tiny_bundle), load_bundle(NAME)
    assert theirs.info == ours.info
    assert all(torch.equal(theirs.model.state_dict()[name], one) for name, one in ours.model.state_dict().items())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_bundle(NAME).info == ours.info  # from the cache


def test_checkpoint_of_others_on_the_hub_still_loads_as_one(hub: Hub, tiny_encoder, tmp_path, monkeypatch):
    folder = make_bundle(tiny_encoder, tmp_path / "b", head="linear")
    hub.models[NAME] = Repository(files={n: c for n, c in read(folder).items() if n != "bundle.json"})
    assert load_bundle(NAME).info.training == {"checkpoint": NAME}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_bundle(NAME).info.training == {"checkpoint": NAME}


@pytest.mark.parametrize("refused", ["/create", "/preupload", "/commit"])
def test_failed_upload_says_how_to_repeat_it_and_leaves_the_bundle(hub: Hub, tiny_bundle: Path, tmp_path, refused):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    hub.refuse = refused
    with pytest.raises(UploadError) as caught:
        push_bundle(bundle, NAME, private=True)
    told = str(caught.value)
    assert "\n" not in told
    assert f"hf upload {NAME} {bundle} . --private" in told
    assert "403" in told
    assert TOKEN not in told
    assert read(bundle) == read(tiny_bundle)
    hub.refuse = ""
    push_bundle(bundle, NAME, private=True)
    assert hub.models[NAME].files == read(bundle)


def test_nothing_is_asked_of_the_hub_to_find_mistakes(hub: Hub):
    assert find_push_problems(NAME, private=True) == []
    assert find_push_problems(None, private=False) == []
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "me/a b", "me/a--b", "-me/a", "https://huggingface.co/me/a", "me/"]
)
def test_malformed_name_is_told(hub: Hub, name: str):
    (problem,) = find_push_problems(name, private=False)
    assert isinstance(problem, UserError)
    assert problem.value == name
    assert problem.rule.startswith("user/name")


def test_missing_login_and_offline_client_are_told_together(hub: Hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline, nobody = find_push_problems(NAME, private=False)
    assert offline.remedy == "unset HF_HUB_OFFLINE"
    assert nobody.remedy == "run `hf auth login`, or set HF_TOKEN"


def test_private_without_a_name_is_told():
    (problem,) = find_push_problems(None, private=True)
    assert problem.where == "`push_private`"
