#include "model.h"

#include <stdexcept>

namespace sparselane {
namespace {

void check(const char* what, int value, int lowest, int highest) {
    if (value < lowest || value > highest)
        throw std::invalid_argument(std::string(what) + " is " + std::to_string(value) + ", must be " +
                                    std::to_string(lowest) + " to " + std::to_string(highest));
}

// The limits keep every product of sizes far from overflow; the same ones stand in docs/artifact.md.
const Architecture& checked(const Architecture& a) {
    check("layers", a.layers, 1, 1024);
    check("hidden", a.hidden, 1, kMaxColumns);
    check("heads", a.heads, 1, a.hidden);
    if (a.hidden % a.heads != 0)
        throw std::invalid_argument("hidden is " + std::to_string(a.hidden) + ", must be a multiple of heads, " +
                                    std::to_string(a.heads));
    check("ffn", a.ffn, 1, kMaxColumns);
    check("vocabulary", a.vocabulary, 1, 1 << 24);
    check("positions", a.positions, 1, 1 << 16);
    check("types", a.types, 0, 16);
    check("labels", a.labels, 1, 1 << 16);
    return a;
}

// Rethrows the error in flight, one of the matrix's, with the matrix's name in front.
template <class Error>
[[noreturn]] void rethrow_named(const std::string& name, const Error& error) {
    throw Error(name + ": " + error.what());
}

Survivors decode_named(const MatrixSource& source) {
    try {
        return decode(source);
    } catch (const IndexOutOfRange& error) {
        rethrow_named(source.name, error);
    } catch (const PositionsTruncated& error) {
        rethrow_named(source.name, error);
    } catch (const PositionsTrailing& error) {
        rethrow_named(source.name, error);
    } catch (const ValueCodeWrong& error) {
        rethrow_named(source.name, error);
    } catch (const ValuesTruncated& error) {
        rethrow_named(source.name, error);
    } catch (const ValuesTrailing& error) {
        rethrow_named(source.name, error);
    }
}

}  // namespace

Model::Model(const Architecture& a, int threads, const Kernels& k)
    : architecture(checked(a)), kernels(k), pool(Pool::shared(threads)) {
    layers.resize(static_cast<std::size_t>(a.layers));
    workspace.workers.resize(static_cast<std::size_t>(pool->threads()));
}

int Model::rows(Matrix matrix) const { return matrix == kFfnIn ? architecture.ffn : architecture.hidden; }

int Model::columns(Matrix matrix) const { return matrix == kFfnOut ? architecture.ffn : architecture.hidden; }

void Model::load_matrices(int layer, std::span<const MatrixSource> sources) {
    check("layer", layer, 0, architecture.layers - 1);
    Layer& target = layers[static_cast<std::size_t>(layer)];
    Pool::Lease lease(*pool);
    lease.run(kMatrices, [&](std::size_t i, int) {
        const Survivors survivors = decode_named(sources[i]);
        PackedMatrix& packed = target.matrices[i] = arrange(survivors, cheapest(survivors, kernels.costs));
        packed.scales.assign(sources[i].scales.begin(), sources[i].scales.end());
        packed.biases.assign(sources[i].biases.begin(), sources[i].biases.end());
    });
    for (const PackedMatrix& matrix : target.matrices) any_quads = any_quads || wants_quads(matrix.format);
    target.loaded = true;
}

}  // namespace sparselane
