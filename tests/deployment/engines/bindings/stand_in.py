"""A TensorRT without kernels, over NVIDIA's own bindings: ONNX Runtime computes, in the memory of the host.

A stand-in: enumerations, base classes and the signatures of all methods are those of the bindings (:mod:`guard`), the
work behind them is not NVIDIA's. A serialised engine is a line of JSON, which says how it was built, and the ONNX file.
"""

import ctypes
import json
import os
import sys

import numpy as np
import onnx

from .guard import Fake, install, record

TRT = None
"""The bindings; set by :func:`replace`."""

REFUSED = "Det"
"""The operator that the parser does not take."""

_TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8"}


def replace(module, bindings):
    """Put the classes that a program makes objects of into a module that holds all of the bindings."""
    global TRT
    TRT = bindings
    made = [Builder, OnnxParser, Runtime, Refitter, OnnxParserRefitter]
    classes = [*made, IBuilderConfig, INetworkDefinition, ILayer, ITensor, IOptimizationProfile, ITimingCache]
    classes += [IHostMemory, ICudaEngine, IExecutionContext, EngineInspector, ParserError]
    module["STAND_IN_LACKS"] = install(bindings, classes)
    module.update({cls.__name__: cls for cls in made})
    record("device", os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def _device():
    return os.environ.get("STAND_IN_DEVICE", "")


def _type(code):
    return TRT.DataType.__members__[_TYPES.get(code, "FLOAT")]


class IHostMemory(Fake, bytes):
    """Bytes of the library's."""

    @property
    def nbytes(self):
        return len(self)


class ITensor(Fake):
    def __init__(self, name, dtype, shape):
        self._name, self._dtype, self._shape = name, dtype, shape

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    shape = property(lambda self: TRT.Dims(self._shape))


class ILayer(Fake):
    def __init__(self, name, outputs):
        self._name, self._outputs = name, outputs

    name = property(lambda self: self._name)
    num_outputs = property(lambda self: len(self._outputs))

    def get_output(self, index):
        return self._outputs[index]


class INetworkDefinition(Fake):
    def __init__(self, flags):
        self._flags, self._inputs, self._layers, self._model = flags, [], [], b""

    num_inputs = property(lambda self: len(self._inputs))
    num_layers = property(lambda self: len(self._layers))

    def get_flag(self, flag):
        return bool(self._flags >> int(flag) & 1)

    def get_input(self, index):
        return self._inputs[index]

    def get_layer(self, index):
        return self._layers[index]

    def __getitem__(self, index):
        return self._layers[index]

    def __len__(self):
        return len(self._layers)


class ParserError(Fake):
    def __init__(self, index, node):
        self._index, self._node = index, node

    def node(self):
        return self._index

    def node_operator(self):
        return self._node.op_type

    def desc(self):
        return f"no importer for {self._node.op_type} (node {self._node.name})"

    def __str__(self):
        return self.desc()


class OnnxParser(Fake):
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def supports_model_v2(self, model, path=None):
        nodes = onnx.load_model_from_string(model).graph.node
        self._errors = [ParserError(index, node) for index, node in enumerate(nodes) if node.op_type == REFUSED]
        return not self._errors

    def parse(self, model, path=None):
        if not self.supports_model_v2(model):
            return False
        graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model)).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        for node in graph.node:
            outputs = [ITensor(name, _type(types.get(name, 1)), ()) for name in node.output]
            self._network._layers.append(ILayer(node.name, outputs))
        self._network._inputs += [ITensor(name, dtype, shape) for name, dtype, shape in _signature(graph, graph.input)]
        self._network._model = bytes(model)
        return True


def _signature(graph, values):
    """(name, type, shape) of inputs or outputs, -1 for a dynamic dimension."""
    weights = {tensor.name for tensor in graph.initializer}
    tensors = [(value.name, value.type.tensor_type) for value in values if value.name not in weights]
    return [(name, _type(t.elem_type), [d.dim_value or -1 for d in t.shape.dim]) for name, t in tensors]


class IOptimizationProfile(Fake):
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):  # noqa: A002
        self._shapes[input] = [list(shape) for shape in (min, opt, max)]


class ITimingCache(Fake):
    def __init__(self, layers):
        self._layers = layers

    def serialize(self):
        return IHostMemory(json.dumps([TRT.__version__, _device(), sorted(self._layers)]).encode())


class IBuilderConfig(Fake):
    def __init__(self):
        self._flags = {TRT.BuilderFlag.TF32}  # as the library's default is
        self._profiles, self._limits, self._timings = [], {}, None

    DLA_core = property(lambda self: -1)
    num_optimization_profiles = property(lambda self: len(self._profiles))

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def get_flag(self, flag):
        return flag in self._flags

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool, pool_size):
        self._limits[pool] = pool_size

    def get_memory_pool_limit(self, pool):
        return self._limits.get(pool, 0)

    def create_timing_cache(self, serialized_timing_cache):
        """A cache with these timings; none for bytes of another library or device, as the real one logs and returns."""
        blob = bytes(serialized_timing_cache)
        version, device, layers = json.loads(blob) if blob else (TRT.__version__, _device(), [])
        return ITimingCache(set(layers)) if (version, device) == (TRT.__version__, _device()) else None

    def set_timing_cache(self, cache, ignore_mismatch):
        self._timings = cache
        return True

    def get_timing_cache(self):
        return self._timings

    def get_tactic_sources(self):
        return 0

    def get_preview_feature(self, feature):
        return False

    def get_quantization_flag(self, flag):
        return False


class Builder(Fake):
    def __init__(self, logger):
        if not _device():
            TRT.Builder(logger)  # which raises what the bindings raise where the library makes no object

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        names = {layer.name for layer in network._layers}
        print(f"[I] timed {len(names - config._timings._layers)} layers")
        config._timings._layers |= names
        plan = {
            "library": TRT.__version__,
            "device": _device(),
            "flags": sorted(flag.name for flag in config._flags),
            "verbosity": config.profiling_verbosity.name,
            "profile": config._profiles[0]._shapes,
        }
        return IHostMemory(json.dumps(plan).encode() + b"\n" + network._model)


class Runtime(Fake):
    def __init__(self, logger):
        self._logger = logger
        if not _device():
            TRT.Runtime(logger)

    def deserialize_cuda_engine(self, serialized_engine):
        head, _, model = bytes(serialized_engine).partition(b"\n")
        try:
            plan = json.loads(head)
        except ValueError:
            plan = {}
        if (plan.get("library"), plan.get("device")) == (TRT.__version__, _device()):
            return ICudaEngine(plan, model)
        self._logger.log(TRT.Logger.ERROR, "IRuntime::deserializeCudaEngine: Version tag does not match.")
        return None


class ICudaEngine(Fake):
    def __init__(self, plan, model):
        self._plan, self._model = plan, onnx.load_model_from_string(model)
        graph = self._model.graph
        self._inputs, self._outputs = _signature(graph, graph.input), _signature(graph, graph.output)
        self._tensors = {name: (dtype, shape) for name, dtype, shape in (*self._inputs, *self._outputs)}

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        known = {name for name, *_ in self._inputs}
        return TRT.TensorIOMode.INPUT if name in known else TRT.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._tensors[name][0]

    def get_tensor_shape(self, name):
        return TRT.Dims(self._tensors[name][1])

    def get_tensor_profile_shape(self, name, profile_index):
        return [TRT.Dims(shape) for shape in self._plan["profile"][name]]

    def get_tensor_format(self, name, profile_index=0):
        return TRT.TensorFormat.LINEAR

    def is_shape_inference_io(self, name):
        return False

    def get_aliased_input_tensor(self, name):
        return None

    def serialize(self):
        return IHostMemory(json.dumps(self._plan).encode() + b"\n" + self._model.SerializeToString())

    def create_execution_context(self, strategy=None):
        return IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector(self)


class EngineInspector(Fake):
    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, format):  # noqa: A002
        detailed = self._engine._plan["verbosity"] == "DETAILED"
        nodes = self._engine._model.graph.node
        layers = [{"Name": n.name, "LayerType": n.op_type} if detailed else n.name for n in nodes]
        return json.dumps({"Layers": layers}) if format == TRT.LayerInformationFormat.JSON else "\n".join(layers)


class IExecutionContext(Fake):
    def __init__(self, engine):
        import onnxruntime

        self._engine, self._shapes, self._places, self._allocators = engine, {}, {}, {}
        model = engine._model.SerializeToString()
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    engine = property(lambda self: self._engine)

    def get_tensor_shape(self, name):
        return TRT.Dims(self._shapes.get(name, self._engine._tensors[name][1]))

    def set_input_shape(self, name, shape):
        least, _, most = self._engine._plan["profile"][name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def get_tensor_address(self, name):
        return self._places.get(name, 0)

    def set_tensor_address(self, name, memory):
        self._places[name] = memory
        return True

    def set_output_allocator(self, name, output_allocator):
        self._allocators[name] = output_allocator
        return True

    def set_all_tensors_debug_state(self, flag):
        return True

    def set_debug_listener(self, listener):
        return True

    def execute_async_v3(self, stream_handle):
        record("torch", sys.modules.get("torch") is not None)
        feed = {name: self._read(name, dtype) for name, dtype, _ in self._engine._inputs}
        for name, value in zip(self._allocators, self._session.run(list(self._allocators), feed), strict=True):
            value = np.array(value, order="C")
            allocator = self._allocators[name]
            place = allocator.reallocate_output_async(name, 0, value.nbytes, 256, stream_handle)
            allocator.notify_shape(name, TRT.Dims(value.shape))
            ctypes.memmove(place, value.ctypes.data, value.nbytes)
        return True

    def _read(self, name, dtype):
        shape, kind = tuple(self.get_tensor_shape(name)), np.dtype(TRT.nptype(dtype))
        memory = (ctypes.c_char * (int(np.prod(shape)) * kind.itemsize)).from_address(self._places[name])
        return np.frombuffer(memory, kind).reshape(shape).copy()


def _weights(model):
    return {tensor.name: tensor for tensor in model.graph.initializer if _TYPES.get(tensor.data_type) == "FLOAT"}


class Refitter(Fake):
    def __init__(self, engine, logger):
        self._engine, self._new = engine, {}

    def get_all_weights(self):
        """Those of the engine, but for what the parser folds and knows by other names."""
        nodes = self._engine._model.graph.node
        folded = {name for node in nodes if node.op_type == "BatchNormalization" for name in node.input[1:]}
        return sorted(_weights(self._engine._model).keys() - folded) if "REFIT" in self._engine._plan["flags"] else []

    def get_missing_weights(self):
        return sorted(_weights(self._engine._model).keys() - self._new.keys())

    def refit_cuda_engine(self):
        for name, tensor in _weights(self._engine._model).items():
            tensor.CopyFrom(self._new[name])
        return True


class OnnxParserRefitter(Fake):
    def __init__(self, refitter, logger):
        self._refitter = refitter

    num_errors = property(lambda self: 0)

    def refit_from_bytes(self, model, path=None):
        self._refitter._new = _weights(onnx.load_model_from_string(model))
        return True
