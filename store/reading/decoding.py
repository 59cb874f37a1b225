"""Chunks of a compressed array, decoded ahead in threads and kept until they are let go."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Executor, Future

import numpy as np
from numpy.typing import NDArray


class DecodedChunks:
    """What ``load`` makes of chunk numbers, each made once until it is dropped. Safe to use from threads."""

    def __init__(self, load: Callable[[int], NDArray[np.uint8]]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._chunks: dict[int, Future[NDArray[np.uint8]]] = {}

    def start(self, number: int, threads: Executor) -> None:
        """Have ``threads`` decode a chunk, unless it is there."""
        with self._lock:
            if number not in self._chunks:
                self._chunks[number] = threads.submit(self._load, number)

    def get(self, number: int) -> NDArray[np.uint8]:
        """A chunk, waited for or decoded here. What ``load`` raises is raised; the next call tries again."""
        with self._lock:
            future = self._chunks.get(number)
            mine = future is None
            if future is None:
                future = self._chunks[number] = Future()
        try:
            if mine:
                _run(future, self._load, number)
            return future.result()
        except CancelledError:  # whoever had started it stopped before its turn came
            self.drop([number])
            return self._load(number)
        except BaseException:
            self.drop([number])
            raise

    def drop(self, numbers: Iterable[int]) -> None:
        """Let go of chunks; views of them that are in use keep their memory."""
        with self._lock:
            for number in numbers:
                self._chunks.pop(number, None)


def _run(future: "Future[NDArray[np.uint8]]", load: Callable[[int], NDArray[np.uint8]], number: int) -> None:
    try:
        future.set_result(load(number))
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)
