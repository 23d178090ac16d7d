"""Every kernel against numpy: products, dequantize and quantize to the last bit, the others to bounds derived here.

And every kernel against the reference: to the last bit, all of them.

u = 2^-24 is the rounding error of one float32 operation, relative to its result.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import _engine, supported_isas
from tests.engine.plain import integer_attention

U = 2.0**-24
every_isa = pytest.mark.parametrize("isa", supported_isas())
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


def sparse(rng: np.random.Generator, rows: int, columns: int, density: float) -> np.ndarray:
    weight = rng.integers(-64, 65, (rows, columns)).astype(np.int8)
    weight[rng.random(weight.shape) > density] = 0
    return weight


def test_the_reference_is_always_there() -> None:
    assert supported_isas()[0] == "reference"


# Every set of kernels with every format that it has; the reference has all of them.
every_isa_and_format = pytest.mark.parametrize(
    ("isa", "kind"), [(isa, kind) for isa in supported_isas() for kind in _engine.formats_of(isa)]
)


def products(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Multiply int8 [M, K] with every tile of uint8 [tiles, K, 32] in int32."""
    return np.stack([w.astype(np.int32) @ tile.astype(np.int32) for tile in x])


@every_isa_and_format
@quick
@given(
    seed=seeds,
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    density=st.sampled_from([0, 0.01, 0.1, 0.5, 1]),
    tiles=st.integers(1, 5),
)
def test_products_are_exact(
    isa: str, kind: str, seed: int, rows: int, columns: int, density: float, tiles: int
) -> None:
    rng = np.random.default_rng(seed)
    w, x = sparse(rng, rows, columns, density), rng.integers(0, 256, (tiles, columns, 32)).astype(np.uint8)
    w[rng.integers(rows)] = 0  # an empty row in every case
    np.testing.assert_array_equal(_engine.product(isa, w, x, kind), products(w, x))


@every_isa_and_format
@pytest.mark.parametrize("sign", [-1, 1])
def test_products_do_not_saturate_at_the_largest_values(isa: str, kind: str, sign: int) -> None:
    w, x = np.full((3, 8192), 64 * sign, np.int8), np.full((2, 8192, 32), 255, np.uint8)
    assert (_engine.product(isa, w, x, kind) == 64 * sign * 255 * 8192).all()


def test_the_reference_has_all_formats_and_others_say_which_they_lack() -> None:
    assert _engine.formats_of("reference") == _engine.FORMATS
    one = np.ones((1, 1), np.int8), np.ones((1, 1, 32), np.uint8)
    for isa in supported_isas():
        for kind in set(_engine.FORMATS) - set(_engine.formats_of(isa)):
            with pytest.raises(ValueError, match=f"{isa} has no format {kind}"):
                _engine.product(isa, *one, kind)


def blocks(rng: np.random.Generator, height: int, width: int, density: float) -> np.ndarray:
    """Make int8 [64, 256] whose survivors fill blocks of height x width, a share `density` of them."""
    mask = np.kron(rng.random((64 // height, 256 // width)) < density, np.ones((height, width)))
    return np.where(mask, rng.integers(1, 65, (64, 256)), 0).astype(np.int8)


@every_isa
@pytest.mark.parametrize(
    ("kind", "height", "width", "density"),
    [("survivors", 1, 1, 0.1), ("blocks_1x4", 1, 4, 0.1), ("blocks_4x1", 4, 1, 0.1), ("dense", 1, 1, 1)],
)
def test_a_matrix_gets_the_format_of_its_pattern(isa: str, kind: str, height: int, width: int, density: float) -> None:
    w = blocks(np.random.default_rng(0), height, width, density)
    chosen, steps = _engine.choose_format(isa, w)
    if "masked" not in _engine.formats_of(isa) or isa == "reference":  # to a matrix unit the pattern is nothing
        assert chosen == kind
    filled = w != 0
    assert steps["masked"] == 2 * 4
    assert steps["survivors"] == sum(-(-int(row.sum()) // 4) for row in filled)
    assert steps["blocks_1x4"] == filled.reshape(64, 64, 4).any(axis=2).sum()
    assert steps["blocks_4x1"] == sum(-(-int(panel.any(axis=0).sum()) // 4) for panel in filled.reshape(16, 4, 256))
    assert steps["dense"] == 16 * 64


faster_isa = pytest.mark.parametrize("isa", supported_isas()[1:])


@faster_isa
@quick
@given(seed=seeds, features=st.integers(1, 100), groups=st.integers(1, 4), size=st.sampled_from([1e-30, 1, 1e20]))
def test_all_instruction_sets_agree_to_the_last_bit(
    isa: str, seed: int, features: int, groups: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((features, 32)) * size).astype(np.float32)
    weight, bias = rng.standard_normal((2, features)).astype(np.float32)
    scores = (rng.standard_normal((features, 8 * groups)) * 30).astype(np.float32)
    query, key, value = rng.standard_normal((3, 1 + seed % 130, 1 + features % 70)).astype(np.float32) * 2
    first = 8 * (seed % 7)
    for name, arguments in {
        "quantize": (x, groups),
        "gelu": (x.ravel(),),
        "layer_norm": (x, weight, bias, 1e-12, groups),
        "softmax": (scores,),
        "attention": (query, key, value, first),
        "attention in 8 bits": (query, key, value, first, "int8"),
    }.items():
        ours, reference = (getattr(_engine, name.split()[0])(each, *arguments) for each in (isa, "reference"))
        pairs = zip(ours, reference, strict=True) if name == "quantize" else [(ours, reference)]
        for one, other in pairs:
            lanes = 8 * groups if name == "quantize" else None  # of the others nothing is promised
            assert one[..., :lanes].tobytes() == other[..., :lanes].tobytes(), name


def numpy_quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize float32 [features, tokens] as docs/artifact.md section 4 defines it, in float32."""
    low, high = np.minimum(x.min(axis=0), 0), np.maximum(x.max(axis=0), 0)
    scale = (high - low) / np.float32(255)
    scale[scale < 2.0**-100] = 1
    inverse = 1 / scale
    zero = np.rint(-low * inverse)
    return np.clip(np.rint(x * inverse) + zero, 0, 255).astype(np.uint8), scale, zero.astype(np.int32)


@every_isa
@quick
@given(
    seed=seeds,
    features=st.integers(1, 100),
    size=st.sampled_from([1e-38, 1e-20, 1e-3, 1, 1e4, 1e30]),
    shift=st.sampled_from([-3, 0, 3]),
    groups=st.integers(1, 4),
)
def test_quantize_is_exact(isa: str, seed: int, features: int, size: float, shift: float, groups: int) -> None:
    x = ((np.random.default_rng(seed).standard_normal((features, 32)) + shift) * size).astype(np.float32)
    x[:, 5] = 0
    lanes = groups * 8
    for ours, expected in zip(_engine.quantize(isa, x, groups), numpy_quantize(x[:, :lanes]), strict=True):
        np.testing.assert_array_equal(ours[..., :lanes], expected)


@every_isa
@quick
@given(seed=seeds, features=st.integers(1, 100), groups=st.integers(1, 4))
def test_levels_in_quads_are_the_same_levels(isa: str, seed: int, features: int, groups: int) -> None:
    x = np.random.default_rng(seed).standard_normal((features, 32)).astype(np.float32)
    levels, *numbers = _engine.quantize(isa, x, groups)
    quads, *numbers_of_quads = _engine.quantize_quads(isa, x, groups)
    padded = np.concatenate([levels, np.zeros((-features % 4, 32), np.uint8)])
    lanes = groups * 8
    np.testing.assert_array_equal(quads[:, :lanes], padded.reshape(-1, 4, 32).transpose(0, 2, 1)[:, :lanes])
    for ours, expected in zip(numbers_of_quads, numbers, strict=True):
        np.testing.assert_array_equal(ours[:lanes], expected[:lanes])


@every_isa
def test_quantize_rounds_halves_to_even(isa: str) -> None:
    x = np.zeros((8, 32), np.float32)
    x[:, 0] = [0, 255, 0.5, 1.5, 2.5, 3.5, 253.5, 254.5]
    levels, scales, zeros = _engine.quantize(isa, x)
    assert (scales[0], zeros[0]) == (1, 0)
    assert levels[:, 0].tolist() == [0, 255, 0, 2, 2, 4, 254, 254]
    assert (scales[1], zeros[1], levels[:, 1].tolist()) == (1, 0, [0] * 8)  # a token of zeros


@every_isa
def test_what_is_no_number_stays_in_its_lane(isa: str) -> None:
    x = np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32)
    bad = x.copy()
    bad[3, 7], bad[4, 8], bad[5, 9] = np.nan, np.inf, -np.inf
    good_lanes = [lane for lane in range(32) if lane not in (7, 8, 9)]
    for ours, expected in zip(_engine.quantize(isa, bad), _engine.quantize(isa, x), strict=True):
        np.testing.assert_array_equal(ours[..., good_lanes], expected[..., good_lanes])
    ours, expected = _engine.quantize_quads(isa, bad)[0], _engine.quantize_quads(isa, x)[0]
    np.testing.assert_array_equal(ours[:, good_lanes], expected[:, good_lanes])
    np.testing.assert_array_equal(ours.transpose(0, 2, 1).reshape(-1, 32)[:9], _engine.quantize(isa, bad)[0])


@every_isa
@quick
@given(seed=seeds, rows=st.integers(1, 20), residual=st.booleans())
def test_dequantize_is_exact(isa: str, seed: int, rows: int, residual: bool) -> None:
    rng = np.random.default_rng(seed)
    w, x = sparse(rng, rows, 50, 0.3), rng.standard_normal((50, 32)).astype(np.float32)
    q, scales, zeros = numpy_quantize(x)
    sums = w.astype(np.int32) @ q.astype(np.int32)
    row_scales, biases = rng.random(rows).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    extra = rng.standard_normal((rows, 32)).astype(np.float32) if residual else None
    exact = sums - zeros * w.sum(axis=1, dtype=np.int32)[:, None]
    expected = row_scales[:, None] * scales * exact.astype(np.float32) + biases[:, None]
    ours = _engine.dequantize(isa, w, row_scales, biases, sums, scales, zeros, extra)
    np.testing.assert_array_equal(ours, expected if extra is None else expected + extra)


@every_isa
def test_gelu(isa: str) -> None:
    """The fit's error and rounding: 4e-6 * max(1, |x|), as kernels.h states."""
    x = np.concatenate([np.linspace(-12, 12, 200_003), [0, -0.0, 4.5, -4.5, 1e-30, 3e38, -3e38]]).astype(np.float32)
    expected = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    assert (np.abs(_engine.gelu(isa, x) - expected) <= 4e-6 * np.maximum(1, np.abs(x.astype(float)))).all()


@every_isa
def test_gelu_of_a_value_does_not_depend_on_its_place(isa: str) -> None:
    x = np.random.default_rng(0).standard_normal(77).astype(np.float32)
    together = _engine.gelu(isa, x)
    alone = np.concatenate([_engine.gelu(isa, x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_array_equal(together, alone)


@every_isa
@quick
@given(seed=seeds, features=st.integers(2, 300), shift=st.sampled_from([0, 10]), groups=st.integers(1, 4))
def test_layer_norm(isa: str, seed: int, features: int, shift: float, groups: int) -> None:
    """A sum of n terms is off by n u times the sum of their sizes, so is the mean; the rest is a dozen operations."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((features, 32)) + shift).astype(np.float32)
    weight, bias = rng.standard_normal((2, features)).astype(np.float32)
    exact = x.astype(float)
    deviation = np.sqrt(exact.var(axis=0) + 1e-12)
    normal = (exact - exact.mean(axis=0)) / deviation
    expected = normal * weight[:, None] + bias[:, None]
    mean_error = (features + 2) * U * np.abs(exact).mean(axis=0) / deviation
    bound = np.abs(weight)[:, None] * (
        mean_error + np.abs(normal) * ((features + 12) * U + mean_error)
    ) + 4 * U * np.abs(expected)
    bound += np.abs(weight)[:, None] * U * np.abs(exact) / deviation
    lanes = groups * 8
    ours = _engine.layer_norm(isa, x, weight, bias, 1e-12, groups)
    assert (np.abs(ours - expected) <= bound)[:, :lanes].all()
    np.testing.assert_array_equal(ours[:, lanes:], x[:, lanes:])


@every_isa
@quick
@given(
    seed=seeds,
    keys=st.integers(1, 200),
    lanes=st.sampled_from([8, 16, 24, 32, 40, 48]),
    size=st.sampled_from([0.1, 3, 30]),
)
def test_softmax(isa: str, seed: int, keys: int, lanes: int, size: float) -> None:
    """A score's distance d from the highest is rounded by d u, exp by 2 units, the sum of n terms by n u."""
    scores = (np.random.default_rng(seed).standard_normal((keys, lanes)) * size).astype(np.float32)
    distance = scores.astype(float) - scores.max(axis=0)
    expected = np.exp(distance) / np.exp(distance).sum(axis=0)
    bound = expected * (-distance + distance.max() - distance.min() + keys + 12) * U + 2e-38
    assert (np.abs(_engine.softmax(isa, scores) - expected) <= bound).all()


@every_isa
@quick
@given(seed=seeds, tokens=st.integers(1, 80), head=st.integers(1, 40), first=st.sampled_from([0, 8, 16, 24, 40]))
def test_attention(isa: str, seed: int, tokens: int, head: int, first: int) -> None:
    """Scores are off by (head + 3) u times the sum of their products; softmax makes that a relative error."""
    query, key, value = np.random.default_rng(seed).standard_normal((3, tokens, head)).astype(np.float32)
    q, k, v = query.astype(float), key.astype(float), value.astype(float)
    scores = q @ k.T / math.sqrt(head)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    score_error = (head + 3) * U * (np.abs(q) @ np.abs(k).T / math.sqrt(head)).max()
    spread = scores.max() - scores.min()
    bound = (p @ np.abs(v)) * (2 * score_error + (2 * tokens + 2 * spread + 16) * U)
    ours = _engine.attention(isa, query, key, value, first)
    assert (np.abs(ours - p @ v) <= bound).all()
    np.testing.assert_array_equal(ours, _engine.attention(isa, query, key, value, 0))  # the place in a tile is nothing


@every_isa
@quick
@given(
    seed=seeds,
    tokens=st.integers(1, 150),
    head=st.integers(1, 70),
    first=st.sampled_from([0, 8, 24, 40]),
    size=st.sampled_from([0, 1, 8]),
)
def test_attention_in_8_bits(isa: str, seed: int, tokens: int, head: int, first: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    query, key, value = rng.standard_normal((3, tokens, head)).astype(np.float32)
    key *= np.float32(size)
    value *= np.exp2(rng.integers(-12, 3, (tokens, 1))).astype(np.float32)  # keys that say little beside some that do
    value[rng.integers(tokens)] = 0
    expected, slack = integer_attention(query, key, value)
    ours = _engine.attention(isa, query, key, value, first, "int8")
    assert (np.abs(ours - expected) <= slack).all()
    np.testing.assert_array_equal(ours, _engine.attention(isa, query, key, value, 0, "int8"))


@every_isa
def test_attention_in_8_bits_is_near_to_attention(isa: str) -> None:
    """Where one key takes half of the attention and says nothing, the many others still count: weights carry scales."""
    rng = np.random.default_rng(1)
    query, key, value = rng.standard_normal((3, 300, 64)).astype(np.float32)
    key[0] += query.mean(axis=0) * 40  # a key that all look at, like [SEP]
    query += query.mean(axis=0) * 4
    value[0] *= np.float32(1e-3)
    whole = _engine.attention(isa, query, key, value)
    rounded = _engine.attention(isa, query, key, value, 0, "int8")
    assert np.abs(rounded - whole).max() < 0.05 * np.abs(whole).max()
    assert np.sqrt(((rounded - whole) ** 2).mean() / (whole**2).mean()) < 0.03


@every_isa
def test_the_smallest_ranges_are_zeros_and_keep_numbers_finite(isa: str) -> None:
    tiny = np.full((3, 5, 8), 1e-38, np.float32)
    assert np.isfinite(_engine.attention(isa, *tiny, 0, "int8")).all()
    levels, scales, zeros = _engine.quantize(isa, np.full((4, 32), -1e-38, np.float32))
    assert (levels == 0).all() and (scales == 1).all() and (zeros == 0).all()
