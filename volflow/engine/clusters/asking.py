"""Questions that the workers of a cluster answer beside their tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from distributed import Client

from volflow.engine.workers import address_of, scheduler_gone
from volflow.errors import InvalidInput

__all__ = ["ask", "cannot_run"]

R = TypeVar("R")

# A worker that runs answers at once, as soon as it has imported what is asked.
ANSWER_S = 30.0


def cannot_run(answer: Exception) -> str:
    """Return what to say of a worker with no volflow, or another one, and the remedy.

    Of what it cannot load Dask passes on the text alone.
    """
    return (
        f"cannot run volflow as this process has it ({answer}); install the same version of it"
        " where the workers run"
    )


def ask(
    client: Client, question: Callable[..., R], *given: Any, workers: Sequence[str]
) -> dict[str, R]:
    """Return the answer of each worker, by address; those that have left are left out.

    Parameters
    ----------
    client
        The connected client.
    question, given
        A function of a module of volflow, and its arguments; one named ``dask_worker`` is the
        worker that is asked.
    workers
        Addresses of the workers to ask.

    Raises
    ------
    InvalidInput
        If a worker has no volflow, or another one.
    TimeoutError
        If one does not answer.
    """
    options: dict[str, Any] = {"workers": list(workers), "on_error": "return"}
    try:
        answers = client.sync(client._run, question, *given, callback_timeout=ANSWER_S, **options)
    except TimeoutError:
        raise
    except (OSError, AttributeError, RuntimeError) as error:
        raise scheduler_gone(address_of(client)) from error
    found = {}
    for address, answer in answers.items():
        if isinstance(answer, OSError):  # it has left meanwhile
            continue
        if isinstance(answer, Exception):
            raise InvalidInput(f"the worker {address} {cannot_run(answer)}")
        found[address] = answer
    return found
