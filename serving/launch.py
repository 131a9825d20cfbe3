"""Puts the student server together: registry, base model, worker, app. Says what is wrong as OperatorError."""

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving import base_model, memory
from serving.app import create_app
from serving.errors import OperatorError
from serving.listen import serve
from serving.registry import Registry, RegistryError
from serving.settings import AppSettings, ServeSettings, WorkerSettings
from serving.worker import Worker


def launch(
    settings: ServeSettings, listener: socket.socket, on_ready: Callable[[str, int], None]
) -> None:
    """Serve until a signal; `on_ready` gets the base model's id and the number of adapter versions.

    Raises:
        OperatorError: the model or the registry cannot be used, or the worker does not start.
    """
    registry = open_registry(settings.adapters, settings.allowed)
    pinned = _pinned(settings.pinned, registry)
    # In a thread that ends: OpenMP keeps a pool for each thread that has computed, and with more threads in pools than
    # processors it puts them to sleep between products. That made every step of the engine's thread a quarter slower.
    with ThreadPoolExecutor(1, thread_name_prefix="loading") as loading:
        base, worker = loading.submit(_worker, settings, registry, pinned).result()
    memory.give_back(at_once=True)
    started = serve(
        create_app(worker, registry, AppSettings(pinned=pinned)),
        listener,
        on_ready=lambda: on_ready(base.id, len(registry.list())),
        drain_seconds=settings.drain_seconds,
    )
    if not started:
        raise OperatorError("the worker did not start; its reason is above")


def _pinned(names: Sequence[str], registry: Registry) -> tuple[str, ...]:
    """The versions that names mean now: a pinned one does not move with `latest`.

    Raises:
        OperatorError: one is not in the registry.
    """
    try:
        return tuple(registry.resolve(name).id for name in names)
    except RegistryError as why:
        raise OperatorError(f"--pin: {why}") from why


def _worker(
    settings: ServeSettings, registry: Registry, pinned: Sequence[str]
) -> tuple[base_model.BaseModel, Worker]:
    base = base_model.load_weights(settings.model, settings.models)
    worker_settings = WorkerSettings(
        threads=settings.threads,
        weights=settings.weights,
        max_batch=settings.max_batch,
        draft_tokens=settings.draft_tokens,
        queue=settings.queue,
        max_total_tokens=settings.max_total_tokens,
        adapter_memory_bytes=settings.adapter_memory_bytes,
        pinned=frozenset(pinned),
    )
    return base, Worker(base, registry, worker_settings)


def open_registry(place: str, allowed: Sequence[Path] = ()) -> Registry:
    """The registry at a folder, made when it is not there, or at an address such as `s3://bucket/adapters`.

    Raises:
        OperatorError: the place is a file, or cannot be made.
    """
    if "://" not in place:
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
        except OSError as why:
            raise OperatorError(f"--adapters {place}: {why.strerror}") from why
    return Registry(place, allowed=allowed)
