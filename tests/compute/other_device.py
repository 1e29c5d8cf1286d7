"""A second device on any machine: tensors that say that they are elsewhere, hold their numbers on the CPU, and cannot
be computed with together with tensors on the CPU, as those on a GPU cannot.

Fake tensors of torch hold no numbers: nothing runs with them that looks at numbers to decide, such as a boolean mask.
And without CUDA, autograd ends the process for a tensor on `cuda`. It takes one on `lazy`, a device of torch's own.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CPU = torch.device("cpu")
OTHER = torch.device("lazy", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}  # from one device to another
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}  # which takes places on the CPU in a tensor anywhere
FILLING = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor}  # which takes a number on the CPU, as what is entrywise


class Elsewhere(Tensor):
    "A tensor on `OTHER`, whose numbers `held` has, on the CPU."

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        assert type(held) is Tensor, f"{type(held).__name__} cannot be elsewhere"
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        tensor = Tensor._make_wrapper_subclass(cls, held.shape, **layout, dtype=held.dtype, device=OTHER)
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.held.data_ptr()


def _held(value):
    "`value`, an argument of an operation, with the numbers of each tensor in it."
    if isinstance(value, Elsewhere):
        return value.held
    return [_held(part) for part in value] if isinstance(value, (list, tuple)) else value


def _there(value):
    "`value`, what an operation returns, with the tensors in it elsewhere."
    if isinstance(value, Tensor):
        return Elsewhere(value)
    return type(value)(map(_there, value)) if isinstance(value, (list, tuple)) else value


def _tensors(values) -> list[Tensor]:
    "The tensors among `values`, arguments of an operation, and in lists of them."
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


@cache
def _written(operation) -> dict[str, bool]:
    "{name of an argument: whether it is written to}."
    arguments = operation._schema.arguments
    return {a.name: a.alias_info is not None and a.alias_info.is_write for a in arguments}


@cache
def _returns_arguments(operation) -> bool:
    "Whether it returns views of arguments, or arguments themselves."
    return any(r.alias_info is not None for r in operation._schema.returns)


def _check_devices(operation, args, kwargs) -> None:
    "Raise RuntimeError, as torch does, for tensors on both devices in one operation."
    written = _written(operation)
    given = {**dict(zip(written, args)), **kwargs}
    if operation in INDEXING and isinstance(given["self"], Elsewhere):
        del given["indices"]
    entrywise = torch.Tag.pointwise in operation.tags or operation in INDEXING | FILLING
    for name, value in given.items():
        for tensor in _tensors([value]):
            is_number = entrywise and tensor.ndim == 0 and not written[name]
            if not isinstance(tensor, Elsewhere) and not is_number:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {name} of {operation} is on the CPU"
                )


def _goes_elsewhere(operation, args, kwargs) -> bool:
    "Whether the results are on `OTHER`. Raises RuntimeError for what torch refuses."
    kinds = set(map(type, _tensors([*args, *kwargs.values()])))
    goes = Elsewhere in kinds
    if goes and len(kinds) > 1 and operation not in COPIES:
        _check_devices(operation, args, kwargs)
    if kwargs.get("device") is not None:
        goes = torch.device(kwargs["device"]).type == OTHER.type
    if goes and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a {OTHER.type!r} device type for generator but found 'cpu'")
    return goes


def _computed(operation, args, kwargs):
    "What `operation` returns, computed on the CPU."
    goes = _goes_elsewhere(operation, args, kwargs)
    own = {name: _held(value) for name, value in kwargs.items()}
    if own.get("device") is not None:
        own["device"] = CPU
    if operation is aten._efficientzerotensor.default:
        operation = aten.zeros.default  # the zeros of a derivative in forward mode have no memory
    out = operation(*map(_held, args), **own)
    if operation is aten.copy_.default:
        return args[0]
    if not goes:
        return out
    out = _there(out)
    aliases = _returns_arguments(operation) and operation not in COPIES
    return return_and_correct_aliasing(operation, args, kwargs, out) if aliases else out


class _Operations(TorchDispatchMode):
    "In its `with` block: operations that take no tensor, too, may make one on `OTHER`."

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})


def _as_places(index):
    "An index of a tensor, with lists in it as tensors."
    if isinstance(index, tuple):
        return tuple(_as_places(part) for part in index)
    return torch.tensor(index) if isinstance(index, (list, range)) else index


class OtherDevice(TorchFunctionMode):
    "In its `with` block there is the device `OTHER`."

    def __enter__(self):
        self.operations = _Operations()
        self.operations.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.operations.__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        "What makes a tensor of Python's numbers does so out of sight of `_Operations`: on the CPU, first."
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            tensor, index, *values = args
            args = tensor, _as_places(index), *values
        return function(*args, **kwargs)


def move(model: nn.Module, device: torch.device) -> nn.Module:
    "`model`, with its parameters and buffers on `device`; torch's own `.to` knows no tensors that hold others."
    moved = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p not in moved:
                moved[p] = nn.Parameter(p.detach().to(device), p.requires_grad)
            module._parameters[name] = moved.get(p)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model
