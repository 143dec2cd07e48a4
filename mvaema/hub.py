"""Repositories on the Hugging Face Hub (or the hub that HF_ENDPOINT names), private by default."""

from huggingface_hub import HfApi, RepoUrl, get_token


def require_token() -> None:
    """Fail before long work that would only fail at its end.

    Raises:
        PermissionError: this machine has no token for the Hub.
    """
    if get_token() is None:
        raise PermissionError(
            "uploading needs a token for the Hub: run `hf auth login`, or set HF_TOKEN."
        )


def private_repository(api: HfApi, repo_id: str, repo_type: str, public: bool = False) -> RepoUrl:
    """The repository to upload to, created unless it is there.

    Args:
        api: the client, with the token of whoever uploads.
        repo_id: "owner/name".
        repo_type: "model" or "dataset".
        public: whether everybody may see it. A repository that exists keeps its visibility.

    Returns:
        the address of the repository, a `str`; its `repo_id` is complete.

    Raises:
        PermissionError: the repository exists and is public, but `public` is False.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused the request.
    """
    url = api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
    if not public and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise PermissionError(
            f"{url.repo_id} is public already, so nothing was uploaded. Make it private, choose "
            "another repository, or pass --public."
        )
    return url
