from typing import ClassVar

from ..backend_contract import BackendContract


class TestTriton(BackendContract):
    name: ClassVar[str] = "triton"
