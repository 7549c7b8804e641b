"""Small graphs, one operator or idiom each, on which the emulation and the conversion have to agree."""

import numpy as np
import onnx.parser
from onnx import numpy_helper

RNG = np.random.default_rng(0)
UNARY = [
    "Abs",
    "Acos",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"]
REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def between(low, high, *shape):
    return RNG.uniform(low, high, shape).astype(np.float32)


def read(text, opset=20, domains="", **weights):
    """A model from ONNX's own text form, every node with a name."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def statistics(channels, variance=1e7):
    return {
        "scale": normal(channels),
        "shift": normal(channels),
        "mean": 1e4 * normal(channels),
        "var": variance * between(0.5, 2, channels),
    }


X = "float[2,3,8,8] x"
Y = "float[a,b,c,d] y"
BATCH_NORM = "BatchNormalization({}, scale, shift, mean, var)"
LSTM = {"w": normal(1, 16, 5), "r": normal(1, 16, 4), "b": normal(1, 32)}
BRANCH = """[branch] z = If(c) <then_branch = t () => (float[2,3,8,8] p) { s = Exp(h) p = Mul(s, w) },
                               else_branch = e () => (float[2,3,8,8] q) { q = Add(h, w) }>"""
LOOP = """[loop] z = Loop(n, , h) <body = b (int64 i, bool go, float[2,3,8,8] v) => (bool on, float[2,3,8,8] u) {
    on = Identity(go) t = Mul(v, w) u = Add(t, x) }>"""
NESTED = """[branch] z = If(c) <then_branch = t () => (float[2,3,8,8] p) {
        p = If(c) <then_branch = tt () => (float[2,3,8,8] pp) { pp = Mul(h, w) },
                   else_branch = ee () => (float[2,3,8,8] qq) { qq = Neg(x) }> },
    else_branch = e () => (float[2,3,8,8] q) { q = Neg(h) }>"""
SCAN = """[scan] z = Scan(h) <num_scan_inputs = 1, body = b (float[3,8,8] v) => (float[3,8,8] u) { u = Mul(v, w) }>"""
INPUT = {"x": between(0.3, 0.9, 2, 3, 8, 8)}


def one(body, opset=20, inputs=X, outputs=Y, domains="", feeds=INPUT, **weights):
    return read(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset, domains, **weights), feeds


GRAPHS = {
    "Acosh": one("[op] h = Acosh(x) [end] y = Mul(h, k)", k=np.float32(1.1), feeds={"x": between(1.2, 2, 2, 3, 8, 8)}),
    **{op: one(f"[op] h = {op}(x) [end] y = Mul(h, k)", k=np.float32(1.1)) for op in UNARY},
    **{op: one(f"[op] h = {op}(x, k) [end] y = Mul(h, k)", k=np.float32(1.1)) for op in BINARY},
    **{
        op: one(f"[op] h = {op}<keepdims = 1>(x, axes) [end] y = Mul(h, k)", k=np.float32(1.1), axes=np.array([1]))
        for op in REDUCTIONS
    },
    **{
        f"{op}-11": one(f"[op] h = {op}<axes = [1]>(x) [end] y = Mul(h, k)", 11, k=np.float32(1.1)) for op in REDUCTIONS
    },
    "Conv": one("[op] y = Conv(x, w, b)", w=normal(4, 3, 3, 3), b=normal(4)),
    "Conv, BatchNormalization": one(
        f"[op] h = Conv(x, w) [norm] y = {BATCH_NORM.format('h')}", w=normal(4, 3, 3, 3), **statistics(4)
    ),
    "BatchNormalization": one(f"[op] y = {BATCH_NORM.format('x')}", **statistics(3)),
    "BatchNormalization-9": one(f"[op] y = {BATCH_NORM.format('x')}", 9, **statistics(3)),
    "BatchNormalization in training": one(
        "[op] y, m, v = BatchNormalization<training_mode = 1>(x, scale, shift, mean, var)", **statistics(3)
    ),
    "ConvTranspose": one(
        f"[op] h = ConvTranspose(x, w) [norm] y = {BATCH_NORM.format('h')}", w=normal(3, 4, 3, 3), **statistics(4)
    ),
    "Gemm": one("[f] f = Flatten(x) [op] y = Gemm(f, w, b)", outputs="float[a,b] y", w=normal(192, 5), b=normal(5)),
    "MatMul": one("[op] h = MatMul(x, w) [end] y = Exp(h)", w=normal(8, 5)),
    "pooling": one(
        "[op] h = AveragePool<kernel_shape = [2, 2]>(x) [max] m = MaxPool<kernel_shape = [2, 2]>(h) "
        "[end] y = GlobalAveragePool(m)"
    ),
    "norms": one(
        "[i] i = InstanceNormalization(x, s, b) [l] l = LayerNormalization(i, t) "
        "[end] y = LpNormalization<axis = 1>(l)",
        s=normal(3),
        b=normal(3),
        t=normal(8),
    ),
    "LayerNormalization's statistics": one("[op] h, m, d = LayerNormalization(x, s) [end] y = Mul(m, d)", s=normal(8)),
    "GroupNormalization": one("[op] y = GroupNormalization<num_groups = 3>(x, s, b)", 21, s=normal(3), b=normal(3)),
    "moves": one(
        "[t] t = Transpose(x) [s] s = Slice(t, zero, two) [e] e = Concat<axis = 0>(s, s) [end] y = Mul(e, k)",
        k=np.float32(1.1),
        zero=np.array([0]),
        two=np.array([2]),
    ),
    "Pad": one("[op] h = Pad(x, p, v) [end] y = Exp(h)", p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), v=np.float32(0.1)),
    "Clip": one("[op] h = Clip(x, low, high) [end] y = Exp(h)", low=np.float32(0.4001), high=np.float32(3.4e38)),
    "Clip-6": one("[op] h = Clip<min = 0.4, max = 3.4e38>(x) [end] y = Exp(h)", 9),
    "Where": one("[g] g = Greater(x, k) [op] h = Where(g, x, k) [end] y = Exp(h)", k=np.float32(0.5001)),
    "TopK": one("[op] h, i = TopK<axis = 1>(x, two) [end] y = Exp(h)", two=np.array([2])),
    "Resize by scales": one(
        '[op] h = Resize<mode = "nearest">(x, , s) [end] y = Exp(h)', s=np.float32([1, 1, 1.7, 1.7])
    ),
    "Resize by sizes": one('[op] h = Resize<mode = "cubic">(x, , , s) [end] y = Exp(h)', s=np.array([2, 3, 13, 9])),
    "Resize of a region": one(
        '[op] h = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">'
        "(x, r, , s)"
        " [end] y = Exp(h)",
        s=np.array([2, 3, 13, 9]),
        r=np.float32([0, 0, 0.1003, 0.1, 1, 1, 0.9007, 1]),
    ),
    "Resize-10": one('[op] h = Resize<mode = "linear">(x, s) [end] y = Exp(h)', 10, s=np.float32([1, 1, 1.7, 1.7])),
    "Upsample": one('[op] h = Upsample<mode = "nearest">(x, s) [end] y = Exp(h)', 9, s=np.float32([1, 1, 1.7, 1.7])),
    "GridSample": one("[op] y = GridSample(x, g)", g=between(-0.9, 0.9, 2, 5, 5, 2)),
    "QDQ": one(
        "[op] h = Exp(x) [q] q = QuantizeLinear(h, s, z) [d] d = DequantizeLinear(q, s, z) [end] y = Exp(d)",
        s=np.float32(0.0301),
        z=np.int8(0),
    ),
    "tiny scale": one(
        "[op] h = Exp(x) [q] q = QuantizeLinear(h, s, z) [d] d = DequantizeLinear(q, t, z) [end] y = Exp(d)",
        s=np.float32(0.0301),
        t=np.float32(1e-9),
        z=np.int8(0),
    ),
    "QLinearMatMul": one(
        "[op] h = Exp(x) [q] q = QuantizeLinear(h, s, z) [m] m = QLinearMatMul(q, s, z, w, t, z, u, z) "
        "[d] d = DequantizeLinear(m, u, z) [end] y = Exp(d)",
        21,
        s=np.float32(0.0301),
        t=np.float32(1e-9),
        u=np.float32(1.1e-8),
        z=np.int8(0),
        w=RNG.integers(-9, 9, (8, 5)).astype(np.int8),
    ),
    "Range": one(
        "[op] r = Range(a, b, s) [end] y = Add(x, r)", a=np.float32(0.1), b=np.float32(0.8), s=np.float32(0.09)
    ),
    "Dropout": one("[op] h = Dropout(x, r) [end] y = Exp(h)", r=np.float32(0.3)),
    "casts": one(
        "[c] h = Cast<to = 1>(n) [op] m = Mul(h, x) [i] i = Cast<to = 7>(m) [f] f = Cast<to = 1>(i) "
        "[end] y = Mul(f, x)",
        inputs=f"{X}, int64[8] n",
        feeds={**INPUT, "n": np.arange(8) * 257},
    ),
    "a cast that is read in both": one(
        "[c] h = Cast<to = 1>(n) [op] m = Mul(h, x) [r] r = Range(h, b, s) [end] y = Add(m, r)",
        inputs=f"{X}, int64 n",
        feeds={**INPUT, "n": np.array(1)},
        b=np.float32(1.8),
        s=np.float32(0.1001),
    ),
    "constants": one(
        "a = Constant<value_float = 1.1>() f = ConstantOfShape<value = float[1] {1.3}>(s) [op] h = Mul(x, a) "
        "[end] y = Mul(h, f)",
        s=np.array([8]),
    ),
    "mask": one(
        "[i] i = Sub(one, x) [op] h = Mul(i, big) [a] a = Add(x, h) [end] y = Softmax(a)",
        one=np.float32(1),
        big=np.float32(-3.4028235e38),
        feeds={"x": (RNG.random((2, 3, 8, 8)) > 0.3).astype(np.float32)},
    ),
    "mask by Where": one(
        "[g] g = Greater(x, k) [e] e = Expand(big, s) [w] w = Where(g, zero, e) [a] a = Add(x, w) [end] y = Softmax(a)",
        k=np.float32(0.5),
        big=np.float32(-1e9),
        s=np.array([8]),
        zero=np.float32(0),
    ),
    "LSTM": one(
        "[h] h = Tanh(x) [op] z, n, c = LSTM<hidden_size = 4>(h, w, r, b) [end] y = Exp(z)",
        14,
        inputs="float[6,2,5] x",
        feeds={"x": normal(6, 2, 5)},
        **LSTM,
    ),
    "com.microsoft": one(
        "[h] h = Exp(x) [op] z = com.microsoft.FusedMatMul(h, w) [g] g = com.microsoft.Gelu(z) [end] y = Exp(g)",
        15,
        domains=', "com.microsoft" : 1',
        w=0.1 * normal(8, 5),
    ),
    "If": one(
        f"[h] h = Exp(x) {BRANCH} [end] y = Exp(z)",
        16,
        inputs=f"{X}, bool c",
        feeds={**INPUT, "c": np.array(True)},
        w=np.float32(0.1),
    ),
    "If-11": one(
        f"[h] h = Exp(x) {BRANCH} [end] y = Exp(z)",
        11,
        inputs=f"{X}, bool c",
        feeds={**INPUT, "c": np.array(False)},
        w=np.float32(0.1),
    ),
    "nested If": one(
        f"[h] h = Exp(x) {NESTED} [end] y = Exp(z)",
        18,
        inputs=f"{X}, bool c",
        feeds={**INPUT, "c": np.array(True)},
        w=np.float32(0.1),
    ),
    "Loop": one(
        f"[h] h = Exp(x) {LOOP} [end] y = Exp(z)",
        16,
        inputs=f"{X}, int64 n",
        feeds={**INPUT, "n": np.array(3)},
        w=np.float32(0.1),
    ),
    "Scan": one(f"[h] h = Exp(x) {SCAN} [end] y = Exp(z)", 16, w=np.float32(0.1)),
}
