#include "model.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "costs.h"

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

FileTable::File::~File() {
    if (descriptor >= 0) close(descriptor);
}

FileTable::FileTable(int descriptor, std::int64_t offset, std::vector<float> scales, int columns)
    : file_(fcntl(descriptor, F_DUPFD_CLOEXEC, 0)),
      offset_(offset),
      columns_(static_cast<std::size_t>(columns)),
      scales_(std::move(scales)),
      kept_(kKept, -1),
      memory_(static_cast<std::int8_t*>(std::calloc(kKept, columns_))) {
    if (file_.descriptor < 0)
        throw std::runtime_error(std::string("the file of the model's words cannot be kept open: ") + std::strerror(errno));
    if (!memory_) throw std::bad_alloc();
    struct stat found {};
    if (fstat(file_.descriptor, &found) != 0 ||
        found.st_size < offset + static_cast<std::int64_t>(scales_.size() * columns_))
        throw std::runtime_error("the file of the model's words became shorter while it was read");
}

void FileTable::read(int row, std::int8_t* to) {
    const int place = row % kKept;
    std::int8_t* kept = memory_.get() + static_cast<std::size_t>(place) * columns_;
    if (int& there = kept_[static_cast<std::size_t>(place)]; there != row) {
        there = -1;
        const std::int64_t from = offset_ + row * static_cast<std::int64_t>(columns_);
        for (std::size_t done = 0; done < columns_;) {
            const ssize_t got = pread(file_.descriptor, kept + done, columns_ - done, from + static_cast<off_t>(done));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0)
                throw std::runtime_error(std::string("the model's words cannot be read: ") + std::strerror(errno));
            if (got == 0) throw std::runtime_error("the file of the model's words became shorter since it was loaded");
            done += static_cast<std::size_t>(got);
        }
        there = row;
    }
    std::memcpy(to, kept, columns_);
}

Model::Model(const Architecture& a, int threads, const Kernels& k, bool measure)
    : architecture(checked(a)),
      kernels(k),
      pool(Pool::shared(threads)),
      costs(measure ? measure_costs(k, *pool) : k.costs) {
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
        PackedMatrix& packed = target.matrices[i] = arrange(survivors, cheapest(survivors, costs));
        packed.scales.assign(sources[i].scales.begin(), sources[i].scales.end());
        packed.biases.assign(sources[i].biases.begin(), sources[i].biases.end());
    });
    for (const PackedMatrix& matrix : target.matrices) (wants_quads(matrix.format) ? any_quads : any_levels) = true;
    target.loaded = true;
}

}  // namespace sparselane
