"""The Hugging Face Hub: put a folder there, fetch known files of bounded size. The extra `hub` brings the library."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checks import optional_library
from .errors import InputError, in_short

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether a name that is no folder here may be ``user/repo``."""
    return isinstance(name, str) and REPOSITORY.fullmatch(name) is not None


def upload(
    folder: Path, repo_id: str, *, private: bool | None, token: str | None, endpoint: str | None, message: str
) -> str:
    """Put the files of a folder into a repository, in one commit; the repository is made where it is missing.

    Returns:
        The address of the repository.
    """
    if not is_repository(repo_id):
        raise InputError(f"repo_id: found {repo_id!r:.120}, wanted user/repo")
    hub = optional_library("repo_id", "huggingface_hub", "hub")
    api = hub.HfApi(endpoint=endpoint, token=token, library_name="neural-polarizer")
    try:
        made: Any = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # of the library, of what it fetches with, of the machine
        raise InputError(f"repo_id: {repo_id!r} cannot be written ({in_short(error)})") from None
    return str(made)


def download(
    repo_id: str, limits: Mapping[str, int], *, revision: str | None, token: str | None, endpoint: str | None
) -> Path:
    """The folder with files of a repository, all of one commit, from the hub's cache where they are there already.

    Args:
        limits: the most bytes of each file; nothing larger is fetched, and no other file.
        revision: a branch, a tag or a commit; None: the main branch.

    Raises:
        InputError: no library, no such repository or file, a file that is too large.
    """
    hub = optional_library(f"directory: {repo_id!r} is no folder, and to fetch it", "huggingface_hub", "hub")
    where: dict[str, Any] = {"repo_id": repo_id, "endpoint": endpoint}
    folders = set()
    try:
        for name, limit in limits.items():
            found = hub.get_hf_file_metadata(hub.hf_hub_url(filename=name, revision=revision, **where), token=token)
            if found.size is None or found.size > limit:
                raise InputError(f"directory: {repo_id!r}: {name} has {found.size} bytes, wanted at most {limit}")
            revision = found.commit_hash or revision  # what is pushed meanwhile is another commit
            path = hub.hf_hub_download(
                filename=name, revision=revision, token=token, library_name="neural-polarizer", **where
            )
            folders.add(Path(path).parent)
        (folder,) = folders
    except InputError:
        raise
    except Exception as error:  # of the library, of what it fetches with, of the machine
        raise InputError(
            f"directory: {repo_id!r} is no folder here, and cannot be fetched from the hub ({in_short(error)})"
        ) from None
    return folder
