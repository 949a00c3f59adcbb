"""A pretended CUDA device on a CPU: finds mixed devices, counts waits of the host and launches.

`with SimCuda() as sim:` runs code with device="cuda". A tensor on the pretended device wraps a CPU
tensor and has the device cuda:0. Each ATen operation is inspected before it runs:

* A CPU tensor with dimensions among device tensors raises the error that CUDA raises.
* An operation that makes the host wait (a blocking copy, `.item()`, `bool()`, `nonzero`, a boolean
  index, `unique`, `bincount`, `equal`) is counted in `sim.syncs` by the line that asked for it.
* An operation that launches a kernel is counted in `sim.launches` by its name.

Real values flow, so that code which depends on data runs, too. Autograd runs as on the CPU,
autocast uses the CPU's list of operations. PAVA runs as tensor operations, and counts as the one
launch of its kernel. A `torch.cuda.CUDAGraph` keeps the operations of a capture and repeats them at
each replay.
"""

import collections
import sys
from contextlib import contextmanager
from functools import cache

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

__all__ = ["STATE", "Sim", "SimCuda", "report"]

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# These operations move no memory, or launch nothing.
VIEWS = {
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select",
    "split", "split_with_sizes", "chunk", "unbind", "unsqueeze", "squeeze", "as_strided", "detach",
    "alias", "narrow", "diagonal", "unfold", "_reshape_alias", "unsafe_split", "lift_fresh",
    "detach_", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "view_as_real", "resize_", "is_same_size", "sym_size", "set_", "record_stream", "squeeze_",
    "unsqueeze_", "t_", "transpose_", "_has_compatible_shallow_copy_type", "_version", "is_pinned",
    "_local_scalar_dense",
}  # fmt: skip
# The device alone has their result or its shape, so the host waits.
WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique",
    "_unique2", "unique_dim", "unique_consecutive", "bincount", "nonzero_numpy", "argwhere",
    "histc_", "linalg_eig", "allclose",
}  # fmt: skip
# These operations take CPU tensors as indices of a device tensor.
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
READS = ("_local_scalar_dense", "equal", "is_nonzero", "item")
NO_SCALAR = ("gather", "index_select", "embedding", "mm", "addmm", "bmm", "scatter_add_")


class Sim(torch.Tensor):
    """A tensor on the pretended device, which wraps the CPU tensor with its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values, requires_grad=False):
        # In inference mode a view of a normal tensor is normal, too.
        with torch.inference_mode(values.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(
                cls, values.size(), strides=values.stride(),
                storage_offset=values.storage_offset(), dtype=values.dtype, layout=values.layout,
                device=values.device, requires_grad=requires_grad,
            )  # fmt: skip
        made.values_ = values
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self):
        return f"Sim({self.values_!r})"

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def numpy(self, *args, **kwargs):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def __tensor_flatten__(self):
        return ["values_"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Sim(inner["values_"])

    def get_device(self):
        return 0

    def tolist(self):
        STATE.sync("tolist")
        with STATE.off():
            return self.values_.detach().tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                new = self.detach().clone()
            if isinstance(self, torch.nn.Parameter) or getattr(self, "_is_param", False):
                new = torch.nn.Parameter(new, self.requires_grad)
            memo[id(self)] = new.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, proto):
        return Sim, (self.values_.detach(),)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class State:
    """Counters of the pretended device; `counting` switches them off for a while."""

    def __init__(self):
        self.active = self.counting = True
        self.in_kernel = False  # the operations that run now are one kernel on a device
        self.explicit = False  # a call of ours names the device, not PyTorch's own code
        self.graph = None  # the graph that records now
        self.syncs = collections.Counter()
        self.launches = collections.Counter()
        self.async_h2d = collections.Counter()
        self.replays = 0

    @contextmanager
    def off(self):
        old, self.active = self.active, False
        try:
            yield
        finally:
            self.active = old

    @contextmanager
    def named(self):
        old, self.explicit = self.explicit, True
        try:
            yield
        finally:
            self.explicit = old

    def reset(self):
        for counter in (self.syncs, self.launches, self.async_h2d):
            counter.clear()
        self.replays = 0

    def sync(self, why):
        if self.graph is not None:
            raise RuntimeError(f"CUDA error: a graph cannot capture {why} at {place()}")
        if self.counting:
            self.syncs[why, place()] += 1

    def launch(self, name):
        if self.counting and self.graph is None and not self.in_kernel:
            self.launches[name] += 1


STATE = State()


def place() -> str:
    """Return the three innermost frames outside torch: 'file:line function'."""
    found, frame = [], sys._getframe(2)
    while frame is not None and len(found) < 3:
        name = frame.f_code.co_filename
        if name != __file__ and not any(x in name for x in ("/torch/", "contextlib", "<string>")):
            short = name.split("site-packages/")[-1].split("/ltlearn/")[-1]
            found.append(f"{short}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


def is_cuda(device) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


def is_plain(x) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, Sim)


def each(call, x):
    """Apply a function to the tensors in arguments or results; torch's pytree is slower."""
    if isinstance(x, torch.Tensor):
        return call(x)
    if isinstance(x, list | tuple):
        return type(x)([each(call, y) for y in x])
    return {key: each(call, y) for key, y in x.items()} if isinstance(x, dict) else x


def leaves(*nested) -> list:
    """Return the tensors in arguments or results."""
    found = []
    each(found.append, nested)
    return found


def wrap(x):
    return Sim(x) if is_plain(x) else x


def unwrap(x):
    return x.values_ if isinstance(x, Sim) else x


@cache
def has_aliases(func) -> bool:
    """Return whether a result of an operation is one of its arguments, or a view of one."""
    return any(x.alias_info is not None for x in func._schema.arguments)


def dispatch(func, args, kwargs):
    """Run an ATen operation on the CPU, and count it where a device tensor takes part."""
    name = func._schema.name.split("::")[-1]
    flat = leaves(args, kwargs)
    sims = [x for x in flat if isinstance(x, Sim)]
    if sims and torch.is_inference_mode_enabled():  # composite operations come here whole then
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with Dispatch():
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
    if name in ("_to_copy", "to", "_pin_memory"):
        return copied(func, name, args, dict(kwargs))
    if name == "copy_" and isinstance(args[0], Sim) != isinstance(args[1], Sim):
        if not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
            STATE.sync("copy_ D2H" if isinstance(args[1], Sim) else "copy_ H2D")
        func(unwrap(args[0]), unwrap(args[1]), *args[2:], **kwargs)
        return args[0]
    if sims:
        return on_device(func, name, args, kwargs, flat)
    if STATE.active and is_cuda(kwargs.get("device")):  # a factory makes a tensor on the device
        if name not in VIEWS:
            STATE.launch(name)
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": CPU}
        made = each(wrap, func(*args, **kwargs))
        return record(func, args, kwargs, made)
    return func(*args, **kwargs)


def copied(func, name, args, kwargs):
    """Copy a tensor to a type or device."""
    source, given = args[0], dict(kwargs)
    non_blocking, device = kwargs.pop("non_blocking", False), kwargs.pop("device", None)
    if isinstance(source, Sim):
        # PyTorch's own code takes this tensor for one of the CPU. Only a call inside `named` wants
        # a copy on the CPU.
        if device is not None and not is_cuda(device) and STATE.explicit:
            STATE.launch("D2H async") if non_blocking else STATE.sync("D2H copy")
            return func(source.values_, **kwargs)
        STATE.launch(name)
        return record(func, args, kwargs, wrap(func(source.values_, **kwargs)))
    if is_cuda(device):
        if non_blocking:
            STATE.async_h2d[place()] += 1
        else:
            STATE.sync("H2D copy (blocking, pageable)")
        return wrap(func(source, **kwargs))
    return func(*args, **given)


def on_device(func, name, args, kwargs, flat):
    """Run an operation that takes device tensors."""
    refuse_mixed(func, name, args, flat)
    if name in WAITS:
        STATE.sync(name)
    if name == "repeat_interleave" and not kwargs.get("output_size"):
        STATE.sync("repeat_interleave without output_size")
    if name not in VIEWS:
        mask = args[-1] if name == "convolution_backward" and args else None
        for _ in range(sum(map(bool, mask[:2])) if isinstance(mask, list | tuple) else 1):
            STATE.launch(name)
    if STATE.graph is not None:
        STATE.graph.keep(func, args, kwargs)
    named = kwargs.get("device") is not None
    kw = dict(kwargs, device=CPU) if named else dict(kwargs)
    out = func(*each(unwrap, args), **each(unwrap, kw))
    if name in READS or (named and not is_cuda(kwargs["device"]) and STATE.explicit):
        return out  # such as zeros_like(x, device="cpu")
    out = record(func, args, kw, each(wrap, out))
    return return_and_correct_aliasing(func, args, kw, out) if has_aliases(func) else out


def refuse_mixed(func, name, args, flat):
    """Raise for a CPU tensor among device tensors, as CUDA does."""
    if name in INDEXED:
        for index in args[1] if len(args) > 1 else ():
            if isinstance(index, Sim) and index.dtype in (torch.bool, torch.uint8):
                STATE.sync("boolean index")
            elif is_plain(index):
                STATE.sync("CPU index of a device tensor (H2D)")
        bad = [x for x in (args[0], *args[2:3]) if is_plain(x) and x.dim()]
    else:
        bad = [x for x in flat if is_plain(x) and (x.dim() or name in NO_SCALAR)]
    if bad:
        raise RuntimeError(
            f"{func}: Expected all tensors to be on the same device, but found at least two "
            f"devices, cuda:0 and cpu (cpu shape {tuple(bad[0].shape)}) at {place()}"
        )


def record(func, args, kwargs, out):
    """Keep an operation for the graph that is captured now."""
    if STATE.graph is not None:
        STATE.graph.kept.append((func, args, kwargs, out))
    return out


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Handle functions that dispatch without the wrapper: `Tensor.to`, `torch.tensor`, ..."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.to:
            return to(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return to(first, CPU)
        if func is torch.Tensor.cuda:
            return to(first, CUDA, non_blocking=kwargs.get("non_blocking", False))
        if func is torch.Tensor.type_as:
            return to(first, args[1])
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            if is_cuda(kwargs.get("device")):
                rest = {key: value for key, value in kwargs.items() if key != "device"}
                return to(func(*args, **rest), CUDA)
            if func is torch.as_tensor and isinstance(first, Sim):
                return first
            if isinstance(first, list | tuple):  # reads each tensor in the list
                first = each(lambda x: x.item() if isinstance(x, Sim) else x, first)
                return func(first, *args[1:], **kwargs)
        if isinstance(first, Sim):
            if func is torch.Tensor.tolist:
                return first.tolist()
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                return first.numpy()
            if func is torch.Tensor.type and len(args) == 1:
                return "torch.cuda." + torch.Tensor.type(first).split(".")[-1]
            if func is torch.Tensor.pin_memory:
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor'")
            if name == "new_tensor":
                return to(torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)), CUDA)
        if func is torch.Tensor.pin_memory:
            return first  # a machine without CUDA cannot pin
        device = kwargs.get("device")
        if device is not None and not is_cuda(device) and any(isinstance(x, Sim) for x in args):
            with STATE.named():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def to(self, *args, **kwargs):
    """Do `Tensor.to`, with this module's devices."""
    copy, memory_format = kwargs.pop("copy", False), kwargs.pop("memory_format", None)
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, torch.Tensor):
        device, dtype = (CUDA if isinstance(other, Sim) else other.device), other.dtype
        non_blocking = kwargs.get("non_blocking", args[1] if len(args) > 1 else False)
    else:
        device, dtype, non_blocking, _ = PARSE(*args, **kwargs)
    here = isinstance(self, Sim)
    there = here if device is None else is_cuda(device)
    same = here == there and dtype in (None, self.dtype)
    if memory_format not in (None, torch.preserve_format):
        same = same and self.is_contiguous(memory_format=memory_format)
    if same and not copy:
        return self
    given = {"dtype": dtype, "memory_format": memory_format}
    given = {key: value for key, value in given.items() if value is not None}
    if here != there:
        given |= {"device": CUDA if there else CPU, "non_blocking": non_blocking}
    return Copy.apply(self, given)


def convert(module, fn, recurse=True):
    """Do `Module._apply`. A module that stays on the CPU keeps its parameters, as in torch."""
    tensors = (*module.parameters(), *module.buffers())
    stays = all(is_plain(t) and t.device.type == "cpu" for t in tensors)
    with STATE.off():
        stays = stays and not isinstance(fn(torch.zeros(1)), Sim)
    torch.__future__.set_overwrite_module_params_on_conversion(not stays)
    return APPLY(module, fn, recurse)


class Copy(torch.autograd.Function):
    """A copy to the other device, or another type, whose gradient goes back."""

    @staticmethod
    def forward(ctx, x, given):
        ctx.was, ctx.dtype = isinstance(x, Sim), x.dtype
        with STATE.named():
            return dispatch(aten._to_copy.default, (x.detach(),), dict(given))

    @staticmethod
    def backward(ctx, grad):
        given = {"dtype": ctx.dtype}
        if isinstance(grad, Sim) != ctx.was:
            given["device"] = CUDA if ctx.was else CPU
        with STATE.named():
            return dispatch(aten._to_copy.default, (grad,), given), None


class Graph:
    """A pretended `torch.cuda.CUDAGraph`: a capture keeps its operations, a replay repeats them.

    Results go where the capture put them, as on a device. A wait in a capture raises. A capture on
    a device computes nothing, so what it changed here is put back at its end.
    """

    def __init__(self, *args, **kwargs):
        self.kept, self.before = [], {}

    def capture_begin(self, *args, **kwargs):
        self.kept, self.before, STATE.graph = [], {}, self

    def capture_end(self):
        STATE.graph = None
        with STATE.off(), torch.utils._python_dispatch._disable_current_modes():
            for changed, values in self.before.values():
                changed.copy_(values)

    def keep(self, func, args, kwargs):
        """Keep the values that an operation is about to change."""
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            # The schema of batch norm does not show that it changes the running statistics.
            if written or argument.name in ("running_mean", "running_var"):
                for x in leaves(given.get(argument.name)):
                    if isinstance(x, Sim) and x.values_.data_ptr() not in self.before:
                        values = x.values_.detach()
                        self.before[values.data_ptr()] = values, values.clone()

    def pool(self):
        return 0, 0

    def reset(self):
        self.kept = []

    @torch.no_grad()
    def replay(self):
        """Repeat the operations, in one launch."""
        STATE.replays += 1
        STATE.launch("graph")
        with STATE.off(), torch.utils._python_dispatch._disable_current_modes():
            for func, args, kwargs, out in self.kept:
                args, kwargs = each(unwrap, args), each(unwrap, kwargs)
                held = {x.untyped_storage().data_ptr() for x in leaves(args, kwargs)}
                again = leaves(func(*args, **kwargs))
                for old, new in zip(map(unwrap, leaves(out)), again, strict=True):
                    # A view, or an operation in place, has its result there already.
                    if old.untyped_storage().data_ptr() not in held:
                        old.copy_(new)


@contextmanager
def capture(graph, *args, **kwargs):
    """Do `torch.cuda.graph`; without a capture, its operations would run on the device at once."""
    graph.capture_begin()
    try:
        yield
    except Exception as e:
        # A device raises at the end of a capture that has failed, and does not repeat why.
        text = "CUDA error: operation failed due to a previous error during capture"
        raise RuntimeError(text) from e
    finally:
        graph.capture_end()


class Stream:
    """A stream or an event, of which the pretended device needs none."""

    def __init__(self, *args, **kwargs):
        pass

    def nothing(self, *args):
        pass

    wait_stream = wait_event = record_event = record = wait = nothing

    def synchronize(self):
        STATE.sync("synchronize")

    def query(self):
        return True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


APPLY = torch.nn.Module._apply
PARSE = torch._C._nn._parse_to
ON_CUDA = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda *args: None,
    "synchronize": lambda *args: STATE.sync("torch.cuda.synchronize"),
    "is_bf16_supported": lambda *args, **kwargs: True,
    "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "set_rng_state": lambda *args, **kwargs: None,
    "get_rng_state_all": lambda *args, **kwargs: [torch.get_rng_state()],
    "set_rng_state_all": lambda *args, **kwargs: None,
    "manual_seed_all": lambda *args: None,
    "manual_seed": lambda *args: None,
    "empty_cache": lambda: None,
    "get_device_name": lambda *args: "pretended",
    "get_device_capability": lambda *args: (9, 0),
    "get_device_properties": lambda *args: None,
    "mem_get_info": lambda *args: (1 << 36, 1 << 36),
    "max_memory_allocated": lambda *args: 0,
    "memory_allocated": lambda *args: 0,
    "is_current_stream_capturing": lambda: STATE.graph is not None,
    "CUDAGraph": Graph,
    "graph": capture,
    "graph_pool_handle": lambda: (0, 0),
    "Stream": Stream,
    "Event": Stream,
    "stream": lambda stream: stream,
    "current_stream": lambda *args: Stream(),
    "default_stream": lambda *args: Stream(),
}


class SimCuda:
    """Pretend a CUDA device for the length of a `with` block, whose value holds the counters."""

    def __init__(self):
        self.undo = []

    def patch(self, owner, name, value):
        self.undo.append((owner, name, getattr(owner, name, None), name in vars(owner)))
        setattr(owner, name, value)

    def __enter__(self):
        enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
        autocast, generator = torch.autocast, torch.Generator

        def parse(*args, **kwargs):
            if args and isinstance(args[0], Sim):
                return CUDA, args[0].dtype, kwargs.get("non_blocking", False), None
            return PARSE(*args, **kwargs)

        def on_cpu(kind):
            return "cpu" if kind == "cuda" else kind

        class OnCpu(type):
            """Make a generator of the CPU, whichever device is asked for."""

            def __instancecheck__(cls, instance):
                return isinstance(instance, generator)

            def __call__(cls, device="cpu"):
                return generator()

        self.patch(torch._C._nn, "_parse_to", parse)
        self.patch(torch, "autocast", lambda kind="cuda", *a, **k: autocast(on_cpu(kind), *a, **k))
        self.patch(torch, "is_autocast_enabled", lambda kind="cuda": enabled(on_cpu(kind)))
        self.patch(torch, "get_autocast_dtype", lambda kind: dtype(on_cpu(kind)))
        self.patch(torch, "Generator", OnCpu("Generator", (), {}))
        for name, value in ON_CUDA.items():
            self.patch(torch.cuda, name, value)
        from ltlearn.isotonic import api, engines, tensor_ops

        solve = tensor_ops.solve

        def in_one_launch(*args, **kwargs):
            STATE.launch("pava")
            STATE.in_kernel = True
            try:
                return solve(*args, **kwargs)
            finally:
                STATE.in_kernel = False

        engines._triton_runs_on.cache_clear()
        engines.load_engine.cache_clear()
        self.patch(tensor_ops, "solve", in_one_launch)
        self.patch(api, "dispatch_modes", lambda: 0)
        self.patch(engines, "_triton_runs_on", lambda kind: False)
        from torch.nn.utils import clip_grad

        grouped = clip_grad._group_tensors_by_device_and_dtype

        def by_device(*args, **kwargs):
            """Group tensors by their device, which C++ code takes for the CPU."""
            return {
                (leaves(lists)[0].device, dtype): (lists, index)
                for (_, dtype), (lists, index) in grouped(*args, **kwargs).items()
            }

        self.patch(clip_grad, "_group_tensors_by_device_and_dtype", by_device)
        if Sim not in optimizer._foreach_supported_types:
            optimizer._foreach_supported_types.append(Sim)
        self.overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        self.patch(torch.nn.Module, "_apply", convert)
        self.modes = [Dispatch(), Functions()]
        for mode in self.modes:
            mode.__enter__()
        STATE.__init__()
        return STATE

    def __exit__(self, *exc):
        for mode in reversed(self.modes):
            mode.__exit__(*exc)
        for owner, name, value, had in reversed(self.undo):
            setattr(owner, name, value) if had else delattr(owner, name)
        torch.__future__.set_overwrite_module_params_on_conversion(self.overwrite)
        from ltlearn.isotonic import engines

        engines.load_engine.cache_clear()
        return False


def report(state, title, per=1, most=40):
    """Return the counts as text, for the search for a wait."""
    lines = [
        f"== {title}: {state.syncs.total() / per:.3f} waits, "
        f"{state.launches.total() / per:.1f} launches a step"
    ]
    lines += [
        f"   {n / per:8.3f}  {why:32s} {at}" for (why, at), n in state.syncs.most_common(most)
    ]
    lines += [
        f"   {n / per:8.3f}  {'asynchronous H2D copy':32s} {at}"
        for at, n in state.async_h2d.most_common(5)
    ]
    return "\n".join(lines)
