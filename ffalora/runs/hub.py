"""A finished adapter on the hub, as a model repository that is private unless asked otherwise."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..config import ConfigError
from .export import export

PREFIX = "hub:"


def push_to_hub(
    run: str | Path,
    name: str,
    merged: bool = False,
    base: str | None = None,
    metrics: bool = True,
    public: bool = False,
    onnx: bool = False,
) -> str:
    """Writes what :func:`ffalora.export` writes into a folder into the repository ``name`` of the hub, as one commit.

    The repository is made where there is none. Who may do so is what ``hf auth login`` or ``HF_TOKEN`` says.

    Args:
        run, merged, base, metrics, onnx: as :func:`ffalora.export` takes them; a base model that is a folder here must
            be named as others know it.
        name: ``OWNER/NAME``.
        public: let everybody read it; without, one that is public already is refused.

    Returns:
        The repository's address.

    Raises:
        ConfigError: no such name can be, the base model is a folder of this machine, the repository is public and that
            was not asked for, or the hub cannot be reached or refuses.
        CheckpointError: there is no such adapter.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"hub:{name}: {error}") from None
    if "/" not in name:
        raise ConfigError(f"hub:{name} names no owner; write hub:OWNER/NAME")
    with tempfile.TemporaryDirectory(prefix="ffalora-") as place:
        made = export(run, Path(place) / "model", merged, base, metrics, name, onnx)
        if made.is_base_local and not merged:
            raise ConfigError(
                f"the base model is the folder {made.base}, which nobody on the hub has; name theirs with --base, or "
                "push the merged model (--merged)"
            )
        failures: Any = HfHubHTTPError.__bases__  # of its HTTP client, whichever that is, and of files and logins
        try:
            return _upload(HfApi(), made.folder, name, public)
        except failures as error:
            raise ConfigError(f"hub:{name}: {_reason(error)}") from None


def _upload(api: Any, folder: Path, name: str, public: bool) -> str:
    if not api.repo_exists(name):
        api.create_repo(name, private=not public, exist_ok=True)
    elif not public and not api.model_info(name).private:
        raise ConfigError(f"hub:{name} is there and public; give --public if everybody may read this, or another name")
    commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Adapter and card by ffalora")
    return str(commit.repo_url)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub does not let you write there ({status}); log in with `hf auth login`, or set HF_TOKEN"
    return f"the hub cannot be asked ({error})"
