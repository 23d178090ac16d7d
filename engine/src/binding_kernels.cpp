// The single kernels as Python functions, for tests/engine/test_kernels.py. A tile is an array [features, 32].
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "binding.h"
#include "isa.h"
#include "kernels.h"
#include "packed.h"

using namespace nanobind::literals;

namespace sparselane {
namespace {

void check_tile(std::size_t lanes) {
    if (lanes != kLanes) throw nb::value_error(("a tile has 32 lanes, not " + std::to_string(lanes)).c_str());
}

PackedMatrix pack_source(int columns, int rice, const In<std::uint8_t, 1>& positions,
                         const In<std::uint16_t, 1>& row_survivors, const In<std::int8_t, 1>& values) {
    const std::vector<float> ones(row_survivors.size(), 1.0f), zeros(row_survivors.size());
    return pack({"matrix", static_cast<int>(row_survivors.size()), columns, rice, view(positions), view(row_survivors),
                 view(values), ones, zeros});
}

// Rice-coded matrix -> dense int8 [rows, columns].
Out<std::int8_t, 2> decode(int columns, int rice, const In<std::uint8_t, 1>& positions,
                           const In<std::uint16_t, 1>& row_survivors, const In<std::int8_t, 1>& values) {
    const PackedMatrix w = pack_source(columns, rice, positions, row_survivors, values);
    const auto [dense, data] = make<std::int8_t, 2>({size(w.rows), size(columns)});
    for (std::size_t row = 0; row < size(w.rows); ++row)
        for (std::size_t i = 4 * w.row_groups[row]; i < 4 * w.row_groups[row + 1]; ++i)
            if (w.weights[i] != 0) data[row * size(columns) + w.offsets[i] / 4u] = w.weights[i];
    return dense;
}

// A dense int8 matrix in the kernels' order, without the detour over the file's.
PackedMatrix pack_dense(const In<std::int8_t, 2>& w, const std::vector<float>& scales,
                        const std::vector<float>& biases) {
    PackedMatrix packed{static_cast<int>(w.shape(0)), static_cast<int>(w.shape(1)), {0}, {}, {}, {}, scales, biases};
    if (packed.columns > kMaxColumns) throw nb::value_error("too many columns");
    for (std::size_t row = 0; row < w.shape(0); ++row) {
        packed.row_sums.push_back(0);
        for (std::size_t column = 0; column < w.shape(1); ++column) {
            const std::int8_t weight = w.data()[row * w.shape(1) + column];
            if (weight < -kWeightLimit || weight > kWeightLimit) throw nb::value_error("weights must be -64 to 64");
            if (weight == 0) continue;
            packed.offsets.push_back(static_cast<std::uint16_t>(column * 4));
            packed.weights.push_back(weight);
            packed.row_sums.back() += weight;
        }
        while (packed.weights.size() % kSurvivorGroup != 0) packed.offsets.push_back(0), packed.weights.push_back(0);
        packed.row_groups.push_back(static_cast<std::uint32_t>(packed.weights.size() / kSurvivorGroup));
    }
    return packed;
}

template <class T>
Buffer<T> aligned(const T* data, std::size_t count) {
    Buffer<T> buffer;
    buffer.reserve(count);
    std::copy_n(data, count, buffer.data());
    return buffer;
}

// w int8 [M, K], x uint8 [K, 32] -> int32 [M, 32].
Out<std::int32_t, 2> run_spmm(const std::string& isa, const In<std::int8_t, 2>& w, const In<std::uint8_t, 2>& x) {
    check_tile(x.shape(1));
    check_size("x", x.shape(0), w.shape(1));
    const PackedMatrix packed = pack_dense(w, {}, {});
    const auto [sums, data] = make<std::int32_t, 2>({w.shape(0), kLanes});
    choose_kernels(isa).spmm(packed, 0, packed.rows, aligned(x.data(), x.size()).data(), data);
    return sums;
}

Out<float, 2> run_dequantize(const std::string& isa, const In<std::int8_t, 2>& w, const In<float, 1>& row_scales,
                             const In<float, 1>& biases, const In<std::int32_t, 2>& sums, const In<float, 1>& scales,
                             const In<std::int32_t, 1>& zeros, const std::optional<In<float, 2>>& residual) {
    check_tile(sums.shape(1)), check_tile(scales.size()), check_tile(zeros.size());
    const std::size_t rows = w.shape(0);
    check_size("row_scales", row_scales.size(), rows), check_size("biases", biases.size(), rows),
        check_size("sums", sums.shape(0), rows);
    if (residual) check_size("residual", residual->size(), sums.size());
    const PackedMatrix packed =
        pack_dense(w, {row_scales.data(), row_scales.data() + rows}, {biases.data(), biases.data() + rows});
    const auto [y, data] = make<float, 2>({rows, kLanes});
    choose_kernels(isa).dequantize(packed, 0, packed.rows, sums.data(), scales.data(), zeros.data(),
                                   residual ? residual->data() : nullptr, data);
    return y;
}

nb::tuple run_quantize(const std::string& isa, const In<float, 2>& x, int groups) {
    check_tile(x.shape(1));
    if (groups < 1 || groups > kGroups) throw nb::value_error("groups must be 1 to 4");
    const auto [q, levels] = make<std::uint8_t, 2>({x.shape(0), kLanes});
    const auto [s, scales] = make<float, 1>({kLanes});
    const auto [z, zeros] = make<std::int32_t, 1>({kLanes});
    choose_kernels(isa).quantize(x.data(), static_cast<int>(x.shape(0)), groups, levels, scales, zeros);
    return nb::make_tuple(q, s, z);
}

Out<float, 1> run_gelu(const std::string& isa, const In<float, 1>& x) {
    const auto [y, data] = make<float, 1>({x.size()});
    std::copy_n(x.data(), x.size(), data);
    choose_kernels(isa).gelu(data, x.size());
    return y;
}

Out<float, 2> run_layer_norm(const std::string& isa, const In<float, 2>& x, const In<float, 1>& weight,
                             const In<float, 1>& bias, float epsilon, int groups) {
    check_tile(x.shape(1));
    check_size("weight", weight.size(), x.shape(0)), check_size("bias", bias.size(), x.shape(0));
    if (groups < 1 || groups > kGroups) throw nb::value_error("groups must be 1 to 4");
    const auto [y, data] = make<float, 2>({x.shape(0), kLanes});
    std::copy_n(x.data(), x.size(), data);
    choose_kernels(isa).layer_norm(data, static_cast<int>(x.shape(0)), groups, weight.data(), bias.data(), epsilon);
    return y;
}

// scores [keys, 8 | 16 | 24] -> probabilities.
Out<float, 2> run_softmax(const std::string& isa, const In<float, 2>& scores) {
    const std::size_t keys = scores.shape(0), lanes = scores.shape(1);
    if (keys < 1 || lanes % kGroup != 0 || lanes < kGroup || lanes > kQueryLanes)
        throw nb::value_error("scores must be [1.., 8 | 16 | 24]");
    const auto [p, data] = make<float, 2>({keys, lanes});
    std::copy_n(scores.data(), scores.size(), data);
    float inverse[kQueryLanes];
    choose_kernels(isa).softmax(data, static_cast<int>(keys), static_cast<int>(lanes) / kGroup, inverse);
    for (std::size_t i = 0; i < keys * lanes; ++i) data[i] *= inverse[i % lanes];
    return p;
}

// query, key, value [tokens, head size], one sequence whose first token lies at lane `first` -> context, same shape.
Out<float, 2> run_attention(const std::string& isa, const In<float, 2>& query, const In<float, 2>& key,
                            const In<float, 2>& value, int first) {
    const std::size_t tokens = query.shape(0), features = query.shape(1);
    for (const auto& array : {query, key, value})
        if (array.shape(0) != tokens || array.shape(1) != features || array.size() == 0)
            throw nb::value_error("query, key and value must have one shape");
    if (first < 0 || first % kGroup != 0 || first >= 1024)
        throw nb::value_error("first must be a multiple of 8 below 1024");
    const int length = static_cast<int>(tokens), head_size = static_cast<int>(features);
    const std::size_t tiles = (size(first) + tokens + kLanes - 1) / kLanes + 1;
    Buffer<float> q, k, v, context, scratch;
    const auto place = [&](const float* from, Buffer<float>& to) {
        to.reserve(tiles * features * kLanes);
        for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t f = 0; f < features; ++f)
                to.data()[lane_offset(first + static_cast<int>(t), head_size) + f * kLanes] = from[t * features + f];
    };
    place(query.data(), q), place(key.data(), k), place(value.data(), v);
    context.reserve(tiles * features * kLanes);
    scratch.reserve(attention_scratch(head_size, length));
    const Kernels& kernels = choose_kernels(isa);
    for (int lane = 0; lane < length; lane += kQueryLanes) {
        const int groups = (std::min(kQueryLanes, length - lane) + kGroup - 1) / kGroup;
        kernels.attention({q.data(), k.data(), v.data(), context.data(), features * kLanes, head_size, first, length,
                           first + lane, groups},
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
    m.def("decode", &decode, "columns"_a, "rice"_a, "positions"_a.noconvert(), "row_survivors"_a.noconvert(),
          "values"_a.noconvert());
    m.def("spmm", &run_spmm, "isa"_a, "w"_a.noconvert(), "x"_a.noconvert());
    m.def("dequantize", &run_dequantize, "isa"_a, "w"_a.noconvert(), "row_scales"_a.noconvert(), "biases"_a.noconvert(),
          "sums"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert(), "residual"_a.noconvert().none());
    m.def("quantize", &run_quantize, "isa"_a, "x"_a.noconvert(), "groups"_a = kGroups);
    m.def("gelu", &run_gelu, "isa"_a, "x"_a.noconvert());
    m.def("layer_norm", &run_layer_norm, "isa"_a, "x"_a.noconvert(), "weight"_a.noconvert(), "bias"_a.noconvert(),
          "epsilon"_a, "groups"_a = kGroups);
    m.def("softmax", &run_softmax, "isa"_a, "scores"_a.noconvert());
    m.def("attention", &run_attention, "isa"_a, "query"_a.noconvert(), "key"_a.noconvert(), "value"_a.noconvert(),
          "first"_a = 0);
}

}  // namespace sparselane
