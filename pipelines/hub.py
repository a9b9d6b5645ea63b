"""A bundle on the Hugging Face hub, through the hub's own client and the login that it knows."""

import glob
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pipelines.ner.bundle import CARRIED_SUFFIXES, INT8_FILES
from pipelines.ner.errors import UserError


class HubError(UserError):
    """An upload that cannot succeed."""


class UploadError(RuntimeError):
    """An upload that has failed; the bundle is where it was."""


def find_push_problems(repo_id: str | None, private: bool) -> list[UserError]:
    """What can be known to be wrong before anything is done: the name, the token, a client set to be offline."""
    if repo_id is None:
        rule = "`--push_to_hub user/name` says where to"
        return [HubError("nothing is pushed", where="`push_private`", rule=rule)] if private else []
    problems: list[UserError] = []
    try:
        validate_repo_id(repo_id)
        well_formed = repo_id.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        rule = "user/name, of letters, digits, `-`, `_` and `.`, at most 96 of them"
        problems.append(HubError("no name on the hub", where="`push_to_hub`", rule=rule, value=repo_id))
    if constants.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE"
        problems.append(HubError("the hub's client is set to be offline", where="`push_to_hub`", remedy=remedy))
    if get_token() is None:
        problems.append(
            HubError(
                "nobody is logged in to the hub",
                where="`push_to_hub`",
                rule="a token that may write, as the hub's own client finds it",
                remedy="run `hf auth login`, or set HF_TOKEN",
            )
        )
    return problems


def push_bundle(bundle: Path, repo_id: str, private: bool) -> str:
    """Upload a bundle, making the repository if there is none; returns its address. Raises UploadError.

    Files of an earlier model there that this one lacks are removed; what else is there stays.
    """
    api = HfApi()
    again = f"hf upload {repo_id} {bundle} .{' --private' if private else ''}"
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise PermissionError("the repository is there and is public")
        there = api.list_repo_files(repo_id)
        ours = [file for file in there if file in INT8_FILES or (file.endswith(CARRIED_SUFFIXES) and "/" not in file)]
        old = [glob.escape(file) for file in ours]
        api.upload_folder(repo_id=repo_id, folder_path=bundle, commit_message="Upload bundle", delete_patterns=old)
    except Exception as error:  # the client raises many types, of several libraries
        reason = " ".join(str(error).split())[:300]
        told = f"{type(error).__name__}: {reason}"
        raise UploadError(
            f"{repo_id} is not uploaded ({told}); the bundle is in {bundle}; the same command tries again, or `{again}`"
        ) from error
    return str(url)
