"""Flower's SuperExec of a site, which forks the process of each message from one that has imported everything.

Flower's own starts Python anew for every message: 1.8 seconds of a core, as much as many a site's training takes. Each
message has a process of its own here, too; where the system cannot fork (Windows), it starts as slowly as Flower's.

    python -m ffalora.federated.flower.superexec OPTIONS_OF_FLOWER_SUPEREXEC
"""

from __future__ import annotations

import multiprocessing
import sys

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supercore.tls import validate_and_resolve_root_certificates

_IMPORTED = ["flwr.supernode.runtime.run_clientapp", "ffalora.federated.flower.client"]


class ForkedApps(SubprocessExecutor):
    """Starts client apps by forking, whatever else there is to start as Flower does."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context(None if sys.platform == "win32" else "forkserver")
        self._context.set_forkserver_preload(_IMPORTED)

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Starts the process of a message; it ends with this one, as Flower's own do."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return super().launch(spec)
        multiprocessing.active_children()  # lets go of those that have ended
        self._context.Process(target=answer, args=(spec,), daemon=True).start()
        return LaunchResult.accepted()


def answer(spec: ExecutionSpec) -> None:
    """What ``flwr-clientapp`` does: answers one message, and ends the process."""
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
        parent_pid=spec.parent_pid,
        runtime_dependency_install=spec.runtime_dependency_install,
    )


def main() -> None:
    """As ``flower-superexec``, whose options it takes."""
    from flwr.supercore.cli import flower_superexec

    run_superexec.get_executor = lambda *asked, **options: ForkedApps()
    flower_superexec()


if __name__ == "__main__":
    main()
