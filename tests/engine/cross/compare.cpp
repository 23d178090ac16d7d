// Runs every function of every table of kernels that is linked in, beside the reference, on the same random inputs, and
// compares the bytes of everything that either wrote. Prints a line for each function, exits with 1 if any byte
// differs.
//
// Needs no more than a heap and write(), so that it also runs in an emulator without an operating system (bare.cpp).
#include <unistd.h>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "packed.h"

namespace sparselane {
[[gnu::weak]] const Kernels& avx2_kernels();
[[gnu::weak]] const Kernels& avx_vnni_kernels();
[[gnu::weak]] const Kernels& avx512_vnni_kernels();
[[gnu::weak]] const Kernels& amx_int8_kernels();
[[gnu::weak]] const Kernels& neon_kernels();

namespace {

// ---- Words on standard output ---------------------------------------------------------------------------------------

void print(const char* text) {
    for (std::size_t left = std::strlen(text); left > 0;) {
        const auto written = write(1, text, left);
        if (written <= 0) return;
        text += written, left -= static_cast<std::size_t>(written);
    }
}

void print(std::size_t number) {
    char digits[24];
    char* at = digits + sizeof digits;
    *--at = 0;
    do *--at = static_cast<char>('0' + number % 10);
    while ((number /= 10) != 0);
    print(at);
}

// ---- Random inputs --------------------------------------------------------------------------------------------------

// SplitMix64: the same inputs on every machine.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int below(int limit) { return static_cast<int>(bits() % static_cast<std::uint64_t>(limit)); }
    float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }
    float around(float centre, float size) { return centre + size * 2 * (uniform() + uniform() + uniform() - 1.5f); }

private:
    std::uint64_t state_;
};

template <class T>
T random_value(Random& random) {
    if constexpr (std::is_same_v<T, float>)
        return random.around(0, 1);
    else
        return static_cast<T>(random.bits());
}

// Two arrays with the same contents: one for the reference to work on, one for the kernels under test.
template <class T>
struct Pair {
    Buffer<T> expected, ours;
    std::size_t count;

    Pair(std::size_t size, Random& random) : count(size) {
        expected.reserve(size), ours.reserve(size);
        for (std::size_t i = 0; i < size; ++i) expected.data()[i] = random_value<T>(random);
        copy();
    }
    void copy() { std::memcpy(ours.data(), expected.data(), count * sizeof(T)); }
    template <class Fill>
    void fill(const Fill& value) {
        for (std::size_t i = 0; i < count; ++i) expected.data()[i] = value(i);
        copy();
    }
};

std::vector<float> random_floats(int count, Random& random) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = random.around(0, 1);
    return values;
}

constexpr std::size_t size(int value) { return static_cast<std::size_t>(value); }
constexpr std::size_t tile(int features) { return size(features) * kLanes; }

// ---- One function after another -------------------------------------------------------------------------------------

class Comparison {
public:
    explicit Comparison(const Kernels& kernels) : ours_(kernels) {}

    bool all() {
        for (std::size_t format = 0; format < kFormats; ++format) products(static_cast<Format>(format));
        interleave(), dequantize("dequantize", &Kernels::dequantize),
            dequantize("dequantize_gelu", &Kernels::dequantize_gelu), gelu();
        quantize(), no_numbers(), layer_norm(), softmax(), attention(), quantize_head(), integer_attention(), dense();
        return same_;
    }

private:
    void begin(const char* function) { function_ = function, cases_ = 0, different_ = 0; }
    void end() {
        print(ours_.name), print(" "), print(function_), print(": "), print(cases_), print(" cases, ");
        print(different_), print(" different\n");
        same_ = same_ && different_ == 0;
    }
    void compare(const void* expected, const void* ours, std::size_t bytes) {
        ++cases_;
        if (std::memcmp(expected, ours, bytes) == 0) return;
        if (++different_ > 3) return;  // the first few say enough
        const auto* a = static_cast<const unsigned char*>(expected);
        const auto* b = static_cast<const unsigned char*>(ours);
        std::size_t at = 0;
        while (a[at] == b[at]) ++at;
        print("DIFFERENT "), print(ours_.name), print(" "), print(function_), print(", case "), print(cases_);
        print(", byte "), print(at), print(" of "), print(bytes), print("\n");
    }
    template <class T>
    void compare(const Pair<T>& pair) {
        compare(pair.expected.data(), pair.ours.data(), pair.count * sizeof(T));
    }

    // A random matrix: each row has survivors with a probability of its own around `density`, about one in five has
    // none.
    Survivors random_matrix(int rows, int columns, float density) {
        Survivors s{rows, columns, {0}, {}, {}};
        for (int row = 0; row < rows; ++row) {
            const float of_row = random_.below(5) == 0 ? 0 : density * 2 * random_.uniform();
            for (int column = 0; column < columns; ++column) {
                if (random_.uniform() >= of_row && density < 1) continue;
                const int weight = random_.below(2 * kWeightLimit + 1) - kWeightLimit;
                if (weight == 0) continue;
                s.column.push_back(static_cast<std::uint16_t>(column));
                s.weight.push_back(static_cast<std::int8_t>(weight));
            }
            s.row_starts.push_back(static_cast<std::uint32_t>(s.weight.size()));
        }
        return s;
    }

    // Ours takes all tiles at once, the reference one after another, each by itself.
    void multiply(const PackedMatrix& w, const Pair<std::uint8_t>& x, int tiles) {
        const int columns = (w.columns + kQuad - 1) / kQuad * kQuad;
        Pair<std::uint8_t> tile_alone(tile(columns), random_);
        Pair<std::int32_t> sums(size(tiles) * kRowBlock * kLanes, random_);
        for (int first = 0; first < w.rows; first += kRowBlock) {
            const int count = std::min(kRowBlock, w.rows - first);
            const auto format = static_cast<std::size_t>(w.format);
            ours_.products[format](w, first, count, {x.ours.data(), tile(columns), tiles}, sums.ours.data());
            for (int t = 0; t < tiles; ++t) {
                const std::size_t begin = size(t) * kRowBlock * kLanes;
                for (int c = 0; c < columns; ++c) {
                    const std::size_t from = wants_quads(w.format) ? size(t) * tile(columns) + tile(c)
                                                                   : (size(c) * size(tiles) + size(t)) * kLanes;
                    std::memcpy(tile_alone.expected.data() + tile(c), x.expected.data() + from, kLanes);
                }
                reference_.products[format](w, first, count, {tile_alone.expected.data(), 0, 1},
                                            sums.expected.data() + begin);
                compare(sums.expected.data() + begin, sums.ours.data() + begin, tile(count) * sizeof(std::int32_t));
            }
        }
    }

    void products(Format format) {
        begin(kFormatNames[static_cast<std::size_t>(format)]);
        if (ours_.products[static_cast<std::size_t>(format)] == nullptr) return end();
        const int most = wants_quads(format) ? ours_.quad_tiles : ours_.tiles;
        for (int tiles = 1; tiles <= most; ++tiles)
            for (const int rows : {1, 2, 7, 32, 35})
                for (const int columns : {1, 3, 4, 6, 61, 64, 130})
                    for (const float density : {0.0f, 0.05f, 0.4f, 1.0f}) {
                        const Pair<std::uint8_t> x(size(tiles) * tile((columns + kQuad - 1) / kQuad * kQuad), random_);
                        multiply(arrange(random_matrix(rows, columns, density), format), x, tiles);
                    }
        // The largest sums that there can be, of both signs, and the largest offsets.
        Survivors extreme{2, kMaxColumns, {0, kMaxColumns, 2 * kMaxColumns}, {}, {}};
        for (const int weight : {kWeightLimit, -kWeightLimit})
            for (int column = 0; column < kMaxColumns; ++column) {
                extreme.column.push_back(static_cast<std::uint16_t>(column));
                extreme.weight.push_back(static_cast<std::int8_t>(weight));
            }
        Pair<std::uint8_t> x(size(most) * tile(kMaxColumns), random_);
        for (const int lowest : {255, 200}) {  // all at the top, and not all the same
            x.fill([&](std::size_t) { return static_cast<std::uint8_t>(255 - random_.below(256 - lowest)); });
            multiply(arrange(extreme, format), x, most);
        }
        end();
    }

    // A tile may lie by itself or beside another: rows `stride` bytes apart.
    void interleave() {
        begin("interleave");
        for (const int stride : {kLanes, 2 * kLanes})
            for (int features = 1; features <= 37; ++features) {
                const Pair<std::uint8_t> q(size(features) * size(stride), random_);
                Pair<std::uint8_t> quads(tile((features + kQuad - 1) / kQuad * kQuad), random_);
                for (int first = 0; first < stride; first += kLanes) {
                    reference_.interleave(q.expected.data() + first, stride, features, quads.expected.data());
                    ours_.interleave(q.ours.data() + first, stride, features, quads.ours.data());
                    compare(quads);
                }
            }
        end();
    }

    void dequantize(const char* name, Dequantize Kernels::* function) {
        begin(name);
        for (const int rows : {1, 2, 31, 64, 70})
            for (const int kind : {0, 1, 2}) {  // no residual, one of its own, the output itself
                PackedMatrix w = arrange(random_matrix(rows, 50, 0.3f), Format::survivors);
                w.scales = random_floats(rows, random_), w.biases = random_floats(rows, random_);
                Pair<std::int32_t> sums(tile(kRowBlock), random_), zeros(kLanes, random_);
                sums.fill([&](std::size_t) { return random_.below(1 << 22) - (1 << 21); });
                zeros.fill([&](std::size_t) { return random_.below(256); });
                const std::vector<float> scales = random_floats(kLanes, random_);
                const Pair<float> residual(tile(kRowBlock), random_);
                for (int first = 0; first < rows; first += kRowBlock) {
                    Pair<float> y(tile(kRowBlock), random_), range(2 * kLanes, random_);
                    const auto run = [&](const Kernels& kernels, float* to, float* bounds) {
                        const float* added = kind == 0 ? nullptr : kind == 1 ? residual.ours.data() : to;
                        (kernels.*function)(w, first, std::min(kRowBlock, rows - first), sums.ours.data(),
                                            scales.data(), zeros.ours.data(), added, to, kind == 2 ? nullptr : bounds);
                    };
                    run(reference_, y.expected.data(), range.expected.data());
                    run(ours_, y.ours.data(), range.ours.data());
                    compare(y), compare(range);
                }
            }
        end();
    }

    struct Quantized {
        Pair<std::uint8_t> levels;  // of a tile that lies beside another: [features][64]
        Pair<float> scales;
        Pair<std::int32_t> zeros;

        Quantized(int features, Random& random)
            : levels(2 * tile(features), random), scales(kLanes, random), zeros(kLanes, random) {}
    };

    Quantized quantize_both(const Pair<float>& x, int features, int groups) {
        Quantized q(features, random_);
        const int stride = random_.below(2) == 0 ? kLanes : 2 * kLanes;
        const int first = stride == kLanes ? 0 : random_.below(2) * kLanes;
        reference_.quantize(x.expected.data(), features, groups, x.expected.data(), features,
                            q.levels.expected.data() + first, stride, q.scales.expected.data(),
                            q.zeros.expected.data());
        ours_.quantize(x.ours.data(), features, groups, x.ours.data(), features, q.levels.ours.data() + first, stride,
                       q.scales.ours.data(), q.zeros.ours.data());
        return q;
    }
    void compare_quads(const Pair<float>& x, int features, int groups) {
        Pair<std::uint8_t> quads(tile((features + kQuad - 1) / kQuad * kQuad), random_);
        Pair<float> scales(kLanes, random_);
        Pair<std::int32_t> zeros(kLanes, random_);
        reference_.quantize_quads(x.expected.data(), features, groups, x.expected.data(), features,
                                  quads.expected.data(), scales.expected.data(), zeros.expected.data());
        ours_.quantize_quads(x.ours.data(), features, groups, x.ours.data(), features, quads.ours.data(),
                             scales.ours.data(), zeros.ours.data());
        compare(quads), compare(scales), compare(zeros);
    }
    void compare(const Quantized& q) { compare(q.levels), compare(q.scales), compare(q.zeros); }

    void quantize() {
        begin("quantize, quads too");
        for (const int features : {1, 2, 3, 17, 64})
            for (int groups = 1; groups <= kGroups; ++groups)
                for (const float magnitude : {1e-42f, 1e-38f, 1e-3f, 1.0f, 1e4f, 1e30f, 3e38f})
                    for (const float shift : {-3.0f, 0.0f, 3.0f}) {
                        Pair<float> x(tile(features), random_);
                        x.fill([&](std::size_t i) {
                            const float value = random_.around(shift, 1) / 8 * magnitude;
                            return i % kLanes == 5 ? 0.0f : i % kLanes == 6 ? -0.0f : value;
                        });
                        compare(quantize_both(x, features, groups));
                        compare_quads(x, features, groups);
                    }
        // Ties: with a scale of 1 the halves between two levels go to the even one.
        Pair<float> x(tile(512), random_);
        x.fill([](std::size_t i) { return std::min(static_cast<float>(i / kLanes) / 2, 255.0f); });
        compare(quantize_both(x, 512, kGroups));
        end();
    }

    // NaN and infinity change nothing but their own lanes. A lane with NaN has no definition, one with infinity has.
    void no_numbers() {
        begin("quantize, beside lanes without numbers");
        constexpr int kFeatures = 9;
        Pair<float> x(tile(kFeatures), random_);
        x.expected.data()[4 * kLanes + 8] = std::numeric_limits<float>::infinity();
        x.expected.data()[5 * kLanes + 17] = -std::numeric_limits<float>::infinity();
        x.copy();
        x.ours.data()[0 * kLanes + 3] = std::numeric_limits<float>::quiet_NaN();
        x.ours.data()[8 * kLanes + 4] = std::numeric_limits<float>::quiet_NaN();
        for (int groups = 1; groups <= kGroups; ++groups) {
            Quantized q = quantize_both(x, kFeatures, groups);
            for (const int lane : {3, 4}) {
                for (int f = 0; f < 2 * kFeatures; ++f)  // where the tile lies by itself and where beside another
                    q.levels.ours.data()[f * kLanes + lane] = q.levels.expected.data()[f * kLanes + lane];
                q.scales.ours.data()[lane] = q.scales.expected.data()[lane];
                q.zeros.ours.data()[lane] = q.zeros.expected.data()[lane];
            }
            compare(q);
        }
        end();
    }

    // gelu of a number alone, which goes in as the scale of a token whose sum is 1.
    void gelu() {
        begin("gelu of special numbers");
        PackedMatrix w = arrange({1, 1, {0, 0}, {}, {}}, Format::survivors);
        w.scales = {1.0f}, w.biases = {0.0f};
        const std::vector<std::int32_t> ones(kLanes, 1), zeros(kLanes, 0);
        const float infinity = std::numeric_limits<float>::infinity();
        const float special[] = {0.0f,  -0.0f,  4.5f,   -4.5f,   1e-30f,   std::nextafter(4.5f, 6.0f),
                                 3e38f, -3e38f, 1e-42f, -1e-42f, infinity, -infinity};
        for (int round = 0; round < 100; ++round) {
            Pair<float> x(kLanes, random_), y(kLanes, random_);
            x.fill([&](std::size_t i) {
                return round == 0 && i < std::size(special) ? special[i] : random_.around(0, 4);
            });
            reference_.dequantize_gelu(w, 0, 1, ones.data(), x.expected.data(), zeros.data(), nullptr,
                                       y.expected.data(), nullptr);
            ours_.dequantize_gelu(w, 0, 1, ones.data(), x.ours.data(), zeros.data(), nullptr, y.ours.data(), nullptr);
            compare(y);
        }
        end();
    }

    void layer_norm() {
        begin("layer_norm");
        for (const int features : {1, 2, 33, 100})
            for (int groups = 1; groups <= kGroups; ++groups)
                for (const float shift : {0.0f, 10.0f}) {
                    const auto weight = random_floats(features, random_), bias = random_floats(features, random_);
                    Pair<float> x(tile(features), random_), range(2 * kLanes, random_);
                    x.fill([&](std::size_t) { return random_.around(shift, 1); });
                    const bool asked = groups != 2;
                    reference_.layer_norm(x.expected.data(), features, groups, weight.data(), bias.data(), 1e-12f,
                                          asked ? range.expected.data() : nullptr);
                    ours_.layer_norm(x.ours.data(), features, groups, weight.data(), bias.data(), 1e-12f,
                                     asked ? range.ours.data() : nullptr);
                    compare(x), compare(range);
                }
        end();
    }

    void softmax() {
        begin("softmax");
        for (const int keys : {1, 2, 3, 40})
            for (int groups = 1; groups <= ours_.query_groups; ++groups)
                for (const float magnitude : {0.0f, 0.1f, 3.0f, 60.0f, 1e30f}) softmax_of(keys, groups, magnitude);
        // Many, because a product with kLn2Low that is rounded before it is subtracted seldom shows.
        for (const float magnitude : {20.0f, 40.0f}) softmax_of(4000, ours_.query_groups, magnitude);
        end();
    }
    void softmax_of(int keys, int groups, float magnitude) {
        const int lanes = groups * kGroup;
        Pair<float> scores(size(keys * lanes), random_), inverse(size(lanes), random_);
        scores.fill([&](std::size_t) { return random_.around(0, magnitude); });
        reference_.softmax(scores.expected.data(), keys, groups, inverse.expected.data());
        ours_.softmax(scores.ours.data(), keys, groups, inverse.ours.data());
        compare(scores), compare(inverse);
    }

    // A sequence somewhere in the tiles, its queries block by block; whatever lies in the padding is random.
    void attend(int head_size, int first_lane, int length) {
        const int end = first_lane + (length + kGroup - 1) / kGroup * kGroup;
        const std::size_t stride = tile(head_size), count = size((end + kLanes - 1) / kLanes) * stride;
        const Pair<float> query(count, random_), key(count, random_), value(count, random_);
        Pair<float> context(count, random_);
        Pair<float> scratch(attention_scratch(head_size, length), random_);
        for (int groups = 1, lane = first_lane; lane < end; groups = groups % ours_.query_groups + 1) {
            const int taken = std::min(groups, (end - lane) / kGroup);
            AttentionBlock block{query.ours.data(),
                                 key.ours.data(),
                                 value.ours.data(),
                                 context.expected.data(),
                                 stride,
                                 head_size,
                                 first_lane,
                                 length,
                                 lane,
                                 taken};
            reference_.attention(block, scratch.expected.data());
            block.context = context.ours.data();
            ours_.attention(block, scratch.ours.data());
            lane += taken * kGroup;
        }
        compare(context);
    }

    void attention() {
        begin("attention");
        for (const int head_size : {1, 3, 4, 7, 8, 12, 17})
            for (const int first_lane : {0, 8, 24})
                for (const int length : {1, 7, 8, 25, 70}) attend(head_size, first_lane, length);
        attend(64, 40, 200);
        end();
    }

    // The parts of a HeadTile that are written; between its end and the next lies what was there before. The order of
    // a key's bytes is the kernels' own: integer_attention shows whether it is right.
    void quantize_head() {
        begin("quantize a head");
        for (const int head_size : {1, 3, 4, 7, 8, 17, 48, 64})
            for (const float magnitude : {1e-30f, 1e-3f, 1.0f, 1e4f, 1e30f}) {
                Pair<float> query(tile(head_size), random_), key(tile(head_size), random_);
                Pair<float> value(tile(head_size), random_);
                for (auto* x : {&query, &key, &value})
                    x->fill([&](std::size_t i) { return i % kLanes == 5 ? 0.0f : random_.around(0, magnitude); });
                Pair<std::uint8_t> head(HeadTile::bytes(head_size), random_);
                reference_.quantize_head(query.ours.data(), key.ours.data(), value.ours.data(), head_size,
                                         HeadTile(head.expected.data(), head_size));
                ours_.quantize_head(query.ours.data(), key.ours.data(), value.ours.data(), head_size,
                                    HeadTile(head.ours.data(), head_size));
                for (auto* bytes : {&head.expected, &head.ours}) {
                    std::int8_t* keys = HeadTile(bytes->data(), head_size).key;
                    std::sort(keys, keys + HeadTile::quads(head_size));
                }
                compare(head);
            }
        end();
    }

    // As attend(), on levels. Padding holds whatever quantizing random numbers leaves.
    void attend_integers(int head_size, int first_lane, int length, float magnitude) {
        const int end = first_lane + (length + kGroup - 1) / kGroup * kGroup, tiles = (end + kLanes - 1) / kLanes;
        const std::size_t stride = HeadTile::bytes(head_size);
        Buffer<std::uint8_t> expected, ours;
        for (auto* heads : {&expected, &ours}) heads->reserve(size(tiles) * stride);
        for (int t = 0; t < tiles; ++t) {
            Pair<float> query(tile(head_size), random_), key(tile(head_size), random_);
            const Pair<float> value(tile(head_size), random_);
            for (auto* x : {&query, &key}) x->fill([&](std::size_t) { return random_.around(0, magnitude); });
            for (const auto& [kernels, heads] : {std::pair{&reference_, &expected}, std::pair{&ours_, &ours}})
                kernels->quantize_head(query.ours.data(), key.ours.data(), value.ours.data(), head_size,
                                       HeadTile(heads->data() + size(t) * stride, head_size));
        }
        Pair<float> context(size(tiles) * tile(head_size), random_);
        Pair<float> scratch(attention_scratch(head_size, length), random_);
        for (int groups = 1, lane = first_lane; lane < end; groups = groups % ours_.query_groups + 1) {
            const int taken = std::min(groups, (end - lane) / kGroup);
            IntegerAttentionBlock block{expected.data(), stride,    context.expected.data(),
                                        tile(head_size), head_size, first_lane,
                                        length,          lane,      taken};
            reference_.integer_attention(block, scratch.expected.data());
            block.heads = ours.data(), block.context = context.ours.data();
            ours_.integer_attention(block, scratch.ours.data());
            lane += taken * kGroup;
        }
        compare(context);
    }

    void integer_attention() {
        begin("attention in 8 bits");
        for (const int head_size : {1, 3, 4, 7, 8, 16, 17, 32, 48})
            for (const int first_lane : {0, 8, 24})
                for (const int length : {1, 2, 7, 8, 25, 70})
                    for (const float magnitude : {0.0f, 2.0f, 30.0f})
                        attend_integers(head_size, first_lane, length, magnitude);
        attend_integers(64, 40, 200, 3.0f);
        end();
    }

    void dense() {
        begin("task head");
        for (const int rows : {1, 2, 8, 9, 17})
            for (const int columns : {1, 2, 33})
                for (int groups = 1; groups <= kGroups; ++groups) {
                    const auto w = random_floats(rows * columns, random_), bias = random_floats(rows, random_);
                    const Pair<float> x(tile(columns), random_);
                    Pair<float> y(tile(rows), random_);
                    reference_.dense(w.data(), bias.data(), rows, columns, x.expected.data(), groups,
                                     y.expected.data());
                    ours_.dense(w.data(), bias.data(), rows, columns, x.ours.data(), groups, y.ours.data());
                    compare(y);
                }
        end();
    }

    const Kernels& reference_ = reference_kernels();
    const Kernels& ours_;
    Random random_{20261121};
    const char* function_ = "";
    std::size_t cases_ = 0, different_ = 0;
    bool same_ = true;
};

}  // namespace
}  // namespace sparselane

int main() {
    using namespace sparselane;
    bool same = true;
#if defined(__x86_64__) && defined(__linux__)
    if (amx_int8_kernels != nullptr) syscall(SYS_arch_prctl, 0x1023, 18);  // as isa.cpp asks; a stand-in needs it not
#endif
    for (const auto table : {avx2_kernels, avx_vnni_kernels, avx512_vnni_kernels, amx_int8_kernels, neon_kernels})
        if (table != nullptr) same = Comparison(table()).all() && same;
    print(same ? "all the same\n" : "not all the same\n");
    return same ? 0 : 1;
}
