// The single kernels as Python functions, for tests/engine/test_kernels.py. A tile is an array [features, 32].
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "binding.h"
#include "costs.h"
#include "isa.h"
#include "kernels.h"
#include "packed.h"

using namespace nanobind::literals;

namespace sparselane {
namespace {

void check_tile(std::size_t lanes) {
    if (lanes != kLanes) throw nb::value_error(("a tile has 32 lanes, not " + std::to_string(lanes)).c_str());
}

// Coded matrix -> dense int8 [rows, columns].
Out<std::int8_t, 2> decode_matrix(int columns, int rice, const In<std::uint8_t, 1>& positions,
                                  const In<std::uint16_t, 1>& row_survivors, const In<std::uint8_t, 1>& value_lengths,
                                  const In<std::uint8_t, 1>& values) {
    const std::vector<float> ones(row_survivors.size(), 1.0f), zeros(row_survivors.size());
    const Survivors decoded = decode({"matrix", static_cast<int>(row_survivors.size()), columns, rice, view(positions),
                                      view(row_survivors), view(value_lengths), view(values), ones, zeros});
    const auto [dense, data] = make<std::int8_t, 2>({size(decoded.rows), size(columns)});
    for (std::size_t row = 0; row < size(decoded.rows); ++row)
        for (std::size_t i = decoded.row_starts[row]; i < decoded.row_starts[row + 1]; ++i)
            data[row * size(columns) + decoded.column[i]] = decoded.weight[i];
    return dense;
}

Survivors survivors_of(const In<std::int8_t, 2>& w) {
    Survivors found{static_cast<int>(w.shape(0)), static_cast<int>(w.shape(1)), {0}, {}, {}};
    if (found.columns > kMaxColumns) throw nb::value_error("too many columns");
    for (std::size_t row = 0; row < w.shape(0); ++row) {
        for (std::size_t column = 0; column < w.shape(1); ++column) {
            const std::int8_t weight = w.data()[row * w.shape(1) + column];
            if (weight < -kWeightLimit || weight > kWeightLimit) throw nb::value_error("weights must be -64 to 64");
            if (weight == 0) continue;
            found.column.push_back(static_cast<std::uint16_t>(column));
            found.weight.push_back(weight);
        }
        found.row_starts.push_back(static_cast<std::uint32_t>(found.weight.size()));
    }
    return found;
}

Format format_of(const std::string& name) {
    for (int i = 0; i < kFormats; ++i)
        if (name == kFormatNames[i]) return static_cast<Format>(i);
    throw nb::value_error(("there is no format '" + name + "'").c_str());
}

// The matrix in a format that these kernels have.
PackedMatrix arrange_for(const Kernels& kernels, const Survivors& survivors, const std::string& name) {
    const Format format = format_of(name);
    if (kernels.products[static_cast<std::size_t>(format)] == nullptr)
        throw nb::value_error((std::string(kernels.name) + " has no format " + name).c_str());
    return arrange(survivors, format);
}

// The formats of these kernels, in the order of kFormatNames.
std::vector<std::string> formats_of(const std::string& isa) {
    std::vector<std::string> names;
    for (int i = 0; i < kFormats; ++i)
        if (choose_kernels(isa).products[size(i)] != nullptr) names.emplace_back(kFormatNames[i]);
    return names;
}

// The steps that a dense int8 matrix needs in each format, and the format that these kernels choose for it.
nb::tuple choose_format(const std::string& isa, const In<std::int8_t, 2>& w) {
    const Survivors survivors = survivors_of(w);
    nb::dict steps;
    const auto counts = count_steps(survivors);
    for (std::size_t i = 0; i < kFormats; ++i) steps[kFormatNames[i]] = counts[i];
    const Format best = cheapest(survivors, choose_kernels(isa).costs);
    return nb::make_tuple(kFormatNames[static_cast<std::size_t>(best)], steps);
}

// What a step of each format that these kernels have costs on so many threads, as a model that names no kernels sees it.
nb::dict costs_here(const std::string& isa, int threads) {
    const Kernels& kernels = choose_kernels(isa);
    std::array<float, kFormats> costs;
    {
        const Unlocked unlocked;
        costs = measure_costs(kernels, *Pool::shared(threads));
    }
    nb::dict named;
    for (std::size_t i = 0; i < kFormats; ++i)
        if (costs[i] != kNever) named[kFormatNames[i]] = costs[i];
    return named;
}

template <class T>
Buffer<T> aligned(const T* data, std::size_t count) {
    Buffer<T> buffer;
    buffer.reserve(count);
    std::copy_n(data, count, buffer.data());
    return buffer;
}

// Tiles uint8 [tiles][columns][32] in the order that a format wants.
struct Input {
    Input(const std::uint8_t* x, int tiles, int columns, Format format, const Kernels& kernels) {
        const std::size_t plain = size(columns) * kLanes;
        stride = wants_quads(format) ? (size(columns) + kQuad - 1) / kQuad * kQuad * kLanes : plain;
        bytes.reserve(stride * size(tiles));
        for (int tile = 0; tile < tiles; ++tile) {
            const std::uint8_t* from = x + size(tile) * plain;
            if (wants_quads(format)) {
                kernels.interleave(aligned(from, plain).data(), kLanes, columns, bytes.data() + size(tile) * stride);
                continue;
            }
            const int first = tile / kernels.tiles * kernels.tiles, together = std::min(kernels.tiles, tiles - first);
            for (std::size_t column = 0; column < size(columns); ++column)
                std::copy_n(
                    from + column * kLanes, kLanes,
                    bytes.data() + size(first) * plain + (column * size(together) + size(tile - first)) * kLanes);
        }
    }
    Buffer<std::uint8_t> bytes;
    std::size_t stride = 0;
};

template <class Each>
void multiply_all(const Kernels& kernels, const PackedMatrix& w, const Input& x, int tiles, const Each& each) {
    alignas(64) std::int32_t sums[kMostTiles * kRowBlock * kLanes];
    const int most = wants_quads(w.format) ? kernels.quad_tiles : kernels.tiles;
    for (int tile = 0; tile < tiles; tile += most) {
        const int together = std::min(most, tiles - tile);
        for (int row = 0; row < w.rows; row += kRowBlock) {
            const int count = std::min(kRowBlock, w.rows - row);
            kernels.products[static_cast<std::size_t>(w.format)](
                w, row, count, {x.bytes.data() + size(tile) * x.stride, x.stride, together}, sums);
            for (int i = 0; i < together; ++i) each(tile + i, row, count, sums + i * kRowBlock * kLanes);
        }
    }
}

// w int8 [M, K], x uint8 [tiles, K, 32] -> int32 [tiles, M, 32].
Out<std::int32_t, 3> run_product(const std::string& isa, const In<std::int8_t, 2>& w, const In<std::uint8_t, 3>& x,
                                 const std::string& format) {
    check_tile(x.shape(2));
    check_size("x", x.shape(1), w.shape(1));
    const Kernels& kernels = choose_kernels(isa);
    const PackedMatrix packed = arrange_for(kernels, survivors_of(w), format);
    const Input input(x.data(), static_cast<int>(x.shape(0)), packed.columns, packed.format, kernels);
    const auto [result, data] = make<std::int32_t, 3>({x.shape(0), w.shape(0), kLanes});
    const std::size_t tile_size = w.shape(0) * kLanes;
    multiply_all(kernels, packed, input, static_cast<int>(x.shape(0)),
                 [&, to = data](int tile, int row, int count, const std::int32_t* sums) {
                     std::copy_n(sums, count * kLanes, to + size(tile) * tile_size + size(row) * kLanes);
                 });
    return result;
}

// Seconds of each of `repeats` products of w int8 [M, K] with `tiles` random tiles: the bench's kernel level.
std::vector<double> time_product(const std::string& isa, const In<std::int8_t, 2>& w, const std::string& format,
                                 int tiles, int repeats) {
    if (tiles < 1 || repeats < 1) throw nb::value_error("tiles and repeats must be at least 1");
    const Kernels& kernels = choose_kernels(isa);
    const PackedMatrix packed = arrange_for(kernels, survivors_of(w), format);
    std::vector<std::uint8_t> x(size(tiles) * w.shape(1) * kLanes);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint8_t>(i * 2654435761u >> 13);
    const Input input(x.data(), tiles, packed.columns, packed.format, kernels);
    std::vector<double> seconds;
    std::int64_t kept = 0;  // so that no product is left out
    const Unlocked unlocked;
    for (int i = 0; i < repeats; ++i) {
        const auto began = std::chrono::steady_clock::now();
        multiply_all(kernels, packed, input, tiles, [&](int, int, int, const std::int32_t* sums) { kept += sums[0]; });
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
    if (kept == INT64_MIN) throw nb::value_error("unreachable");
    return seconds;
}

Out<float, 2> run_dequantize(const std::string& isa, const In<std::int8_t, 2>& w, const In<float, 1>& row_scales,
                             const In<float, 1>& biases, const In<std::int32_t, 2>& sums, const In<float, 1>& scales,
                             const In<std::int32_t, 1>& zeros, const std::optional<In<float, 2>>& residual) {
    check_tile(sums.shape(1)), check_tile(scales.size()), check_tile(zeros.size());
    const std::size_t rows = w.shape(0);
    check_size("row_scales", row_scales.size(), rows), check_size("biases", biases.size(), rows),
        check_size("sums", sums.shape(0), rows);
    if (residual) check_size("residual", residual->size(), sums.size());
    PackedMatrix packed = arrange(survivors_of(w), Format::survivors);
    packed.scales.assign(row_scales.data(), row_scales.data() + rows);
    packed.biases.assign(biases.data(), biases.data() + rows);
    const auto [y, data] = make<float, 2>({rows, kLanes});
    choose_kernels(isa).dequantize(packed, 0, packed.rows, sums.data(), scales.data(), zeros.data(),
                                   residual ? residual->data() : nullptr, data, nullptr);
    return y;
}

nb::tuple run_quantize(const std::string& isa, const In<float, 2>& x, int groups) {
    check_tile(x.shape(1));
    if (groups < 1 || groups > kGroups) throw nb::value_error("groups must be 1 to 4");
    const auto [q, levels] = make<std::uint8_t, 2>({x.shape(0), kLanes});
    const auto [s, scales] = make<float, 1>({kLanes});
    const auto [z, zeros] = make<std::int32_t, 1>({kLanes});
    const int features = static_cast<int>(x.shape(0));
    choose_kernels(isa).quantize(x.data(), features, groups, x.data(), features, levels, kLanes, scales, zeros);
    return nb::make_tuple(q, s, z);
}

// quads [ceil(features / 4), 32, 4], scales, zeros.
nb::tuple run_quantize_quads(const std::string& isa, const In<float, 2>& x, int groups) {
    check_tile(x.shape(1));
    if (groups < 1 || groups > kGroups) throw nb::value_error("groups must be 1 to 4");
    const auto [q, quads] = make<std::uint8_t, 3>({(x.shape(0) + kQuad - 1) / kQuad, kLanes, kQuad});
    const auto [s, scales] = make<float, 1>({kLanes});
    const auto [z, zeros] = make<std::int32_t, 1>({kLanes});
    const int features = static_cast<int>(x.shape(0));
    choose_kernels(isa).quantize_quads(x.data(), features, groups, x.data(), features, quads, scales, zeros);
    return nb::make_tuple(q, s, z);
}

// gelu of x, which goes in as the scales of tokens whose sum is 1.
Out<float, 1> run_gelu(const std::string& isa, const In<float, 1>& x) {
    const Kernels& kernels = choose_kernels(isa);
    PackedMatrix one;
    one.rows = one.columns = 1;
    one.row_sums = {0}, one.scales = {1.0f}, one.biases = {0.0f};
    std::int32_t sums[kLanes], zeros[kLanes] = {};
    std::fill_n(sums, kLanes, 1);
    const auto [y, data] = make<float, 1>({x.size()});
    for (std::size_t i = 0; i < x.size(); i += kLanes) {
        const std::size_t count = std::min<std::size_t>(kLanes, x.size() - i);
        float values[kLanes] = {}, results[kLanes];
        std::copy_n(x.data() + i, count, values);
        kernels.dequantize_gelu(one, 0, 1, sums, values, zeros, nullptr, results, nullptr);
        std::copy_n(results, count, data + i);
    }
    return y;
}

Out<float, 2> run_layer_norm(const std::string& isa, const In<float, 2>& x, const In<float, 1>& weight,
                             const In<float, 1>& bias, float epsilon, int groups) {
    check_tile(x.shape(1));
    check_size("weight", weight.size(), x.shape(0)), check_size("bias", bias.size(), x.shape(0));
    if (groups < 1 || groups > kGroups) throw nb::value_error("groups must be 1 to 4");
    const auto [y, data] = make<float, 2>({x.shape(0), kLanes});
    std::copy_n(x.data(), x.size(), data);
    choose_kernels(isa).layer_norm(data, static_cast<int>(x.shape(0)), groups, weight.data(), bias.data(), epsilon,
                                   nullptr);
    return y;
}

// scores [keys, 8 | 16 | 24] -> probabilities.
Out<float, 2> run_softmax(const std::string& isa, const In<float, 2>& scores) {
    const std::size_t keys = scores.shape(0), lanes = scores.shape(1);
    if (keys < 1 || lanes % kGroup != 0 || lanes < kGroup || lanes > kMostQueryGroups * kGroup)
        throw nb::value_error("scores must be [1.., 8 to 48, a multiple of 8]");
    const auto [p, data] = make<float, 2>({keys, lanes});
    std::copy_n(scores.data(), scores.size(), data);
    float inverse[kMostQueryGroups * kGroup];
    choose_kernels(isa).softmax(data, static_cast<int>(keys), static_cast<int>(lanes) / kGroup, inverse);
    for (std::size_t i = 0; i < keys * lanes; ++i) data[i] *= inverse[i % lanes];
    return p;
}

// query, key, value [tokens, head size], one sequence whose first token lies at lane `first` -> context, same shape.
// arithmetic: float32 | int8.
Out<float, 2> run_attention(const std::string& isa, const In<float, 2>& query, const In<float, 2>& key,
                            const In<float, 2>& value, int first, const std::string& arithmetic) {
    const std::size_t tokens = query.shape(0), features = query.shape(1);
    for (const auto& array : {query, key, value})
        if (array.shape(0) != tokens || array.shape(1) != features || array.size() == 0)
            throw nb::value_error("query, key and value must have one shape");
    if (first < 0 || first % kGroup != 0 || first >= 1024)
        throw nb::value_error("first must be a multiple of 8 below 1024");
    const int length = static_cast<int>(tokens), head_size = static_cast<int>(features);
    const std::size_t tiles = (size(first) + tokens + kLanes - 1) / kLanes + 1, stride = features * kLanes;
    Buffer<float> q, k, v, context, scratch;
    const auto place = [&](const float* from, Buffer<float>& to) {
        to.reserve(tiles * stride);
        for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t f = 0; f < features; ++f)
                to.data()[lane_offset(first + static_cast<int>(t), head_size) + f * kLanes] = from[t * features + f];
    };
    place(query.data(), q), place(key.data(), k), place(value.data(), v);
    context.reserve(tiles * stride);
    scratch.reserve(attention_scratch(head_size, length));
    const Kernels& kernels = choose_kernels(isa);
    const std::size_t head_bytes = HeadTile::bytes(head_size);
    Buffer<std::uint8_t> heads;
    heads.reserve(tiles * head_bytes);
    for (std::size_t tile = 0; tile < tiles; ++tile)
        kernels.quantize_head(q.data() + tile * stride, k.data() + tile * stride, v.data() + tile * stride, head_size,
                              HeadTile(heads.data() + tile * head_bytes, head_size));
    for (int lane = 0; lane < length; lane += kernels.query_groups * kGroup) {
        const int groups = std::min(kernels.query_groups, (length - lane + kGroup - 1) / kGroup);
        if (arithmetic == "int8")
            kernels.integer_attention(
                {heads.data(), head_bytes, context.data(), stride, head_size, first, length, first + lane, groups},
                scratch.data());
        else
            kernels.attention(
                {q.data(), k.data(), v.data(), context.data(), stride, head_size, first, length, first + lane, groups},
                scratch.data());
    }
    const auto [mixed, data] = make<float, 2>({tokens, features});
    for (std::size_t t = 0; t < tokens; ++t)
        for (std::size_t f = 0; f < features; ++f)
            data[t * features + f] = context.data()[lane_offset(first + static_cast<int>(t), head_size) + f * kLanes];
    return mixed;
}

}  // namespace

void bind_kernels(nb::module_& m) {
    m.def("decode", &decode_matrix, "columns"_a, "rice"_a, "positions"_a.noconvert(), "row_survivors"_a.noconvert(),
          "value_lengths"_a.noconvert(), "values"_a.noconvert());
    nb::list formats;
    for (const char* name : kFormatNames) formats.append(name);
    m.attr("FORMATS") = formats;
    m.def("formats_of", &formats_of, "isa"_a);
    m.def("product", &run_product, "isa"_a, "w"_a.noconvert(), "x"_a.noconvert(), "format"_a = "survivors");
    m.def("time_product", &time_product, "isa"_a, "w"_a.noconvert(), "format"_a, "tiles"_a, "repeats"_a);
    m.def("choose_format", &choose_format, "isa"_a, "w"_a.noconvert());
    m.def("measure_costs", &costs_here, "isa"_a, "threads"_a);
    m.def("dequantize", &run_dequantize, "isa"_a, "w"_a.noconvert(), "row_scales"_a.noconvert(), "biases"_a.noconvert(),
          "sums"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert(), "residual"_a.noconvert().none());
    m.def("quantize", &run_quantize, "isa"_a, "x"_a.noconvert(), "groups"_a = kGroups);
    m.def("quantize_quads", &run_quantize_quads, "isa"_a, "x"_a.noconvert(), "groups"_a = kGroups);
    m.def("gelu", &run_gelu, "isa"_a, "x"_a.noconvert());
    m.def("layer_norm", &run_layer_norm, "isa"_a, "x"_a.noconvert(), "weight"_a.noconvert(), "bias"_a.noconvert(),
          "epsilon"_a, "groups"_a = kGroups);
    m.def("softmax", &run_softmax, "isa"_a, "scores"_a.noconvert());
    m.def("attention", &run_attention, "isa"_a, "query"_a.noconvert(), "key"_a.noconvert(), "value"_a.noconvert(),
          "first"_a = 0, "arithmetic"_a = "float32");
}

}  // namespace sparselane
