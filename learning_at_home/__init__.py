"""Mixtures of experts trained on machines that nobody has to own together.

    import learning_at_home as lib

A server holds experts (`ExpertBackend`, `TesseractServer`), a trainer calls them (`RemoteExpert`,
`GatingFunction`), and a `TesseractNetwork` tells who is alive. Importing this starts no thread and opens no socket.
"""

from typing import Any

from learning_at_home import errors
from learning_at_home.admission import Admission, issue_certificate
from learning_at_home.client.gating_function import GatingFunction
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.nested import nested_compare, nested_flatten, nested_map, nested_pack
from learning_at_home.network import TesseractNetwork
from learning_at_home.nn.registry import register_expert_class
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.runtime import TesseractRuntime
from learning_at_home.runtime.task_pool import TaskPool
from learning_at_home.schema import DUMMY_BATCH_SIZE, BatchTensorProto, TensorProto
from learning_at_home.server.server import TesseractServer

__version__ = "0.1.0"

__all__ = [
    "DUMMY_BATCH_SIZE",
    "Admission",
    "BatchTensorProto",
    "ExpertBackend",
    "GatingFunction",
    "RemoteExpert",
    "TaskPool",
    "TensorProto",
    "TesseractNetwork",
    "TesseractRuntime",
    "TesseractServer",
    "errors",
    "issue_certificate",
    "nested_compare",
    "nested_flatten",
    "nested_map",
    "nested_pack",
    "register_expert_class",
]

# Names of the original that have no place in one process with a C++ core.
_REPLACED = {
    "PickleSerializer": "tensors travel raw behind msgpack headers (csrc/rpc/message.hpp); nothing is ever unpickled",
    "JoblibSerializer": "tensors travel raw behind msgpack headers (csrc/rpc/message.hpp); nothing is ever unpickled",
    "PytorchSerializer": "tensors travel raw behind msgpack headers (csrc/rpc/message.hpp); nothing is ever unpickled",
    "SharedArray": "there is one process a server, so nothing is shared between processes; see TesseractRuntime",
    "SharedArrays": "there is one process a server, so nothing is shared between processes; see TesseractRuntime",
    "SharedFuture": "there is one process a server; results go back to callers in C++ (csrc/batching)",
    "ArrayProto": "schemas are made of BatchTensorProto only",
    "Connection": "connections are made by the network thread; call an expert with RemoteExpert",
    "check_numpy": "tensors need no conversion; use torch.Tensor.numpy()",
    "DUMMY": "RemoteExpert keeps its autograd node alive by itself",
    "run_in_background": "the package has no worker threads; use concurrent.futures",
    "repeated": "use itertools.repeat",
    "add_event_callback": "use concurrent.futures.Future.add_done_callback",
    "CountdownEvent": "use threading.Barrier or threading.Semaphore",
    "await_first": "use concurrent.futures.wait(..., return_when=FIRST_COMPLETED)",
    "run_and_await_k": "GatingFunction waits for k_min answers per token in C++ (csrc/net/call_group.hpp)",
}


def __getattr__(name: str) -> Any:
    if name in _REPLACED:
        raise AttributeError(f"learning_at_home has no {name}: {_REPLACED[name]}")
    raise AttributeError(f"module 'learning_at_home' has no attribute {name!r}")
