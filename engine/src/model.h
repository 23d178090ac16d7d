// A loaded model: its sizes, its numbers in the engine's order, and the checks on both. forward.h runs it.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "packed.h"
#include "pool.h"

namespace sparselane {

enum class Activation { gelu, relu };
enum class Attention { floats, integers };                 // arithmetic of its two products: float32, or 8 bits
enum class Head { tokens, sequence_tanh, sequence_relu };  // logits per token, or per sequence behind a dense layer

struct Architecture {
    int layers, hidden, heads, ffn, vocabulary, positions, types, labels;
    Activation activation;
    Attention attention;
    Head head;
    float epsilon;
};

// One embedding table: int8 rows, a scale per row.
struct Table {
    std::vector<std::int8_t> rows;
    std::vector<float> scales;
};

// A table whose int8 rows stay in their file and are read when a text asks for them: words are half of a model's memory,
// and few of them are ever used. Not mapped: if somebody cut the file short, the process would die of it, while a read
// says so. A row that was read stays, until another one needs its place.
class FileTable {
public:
    FileTable() = default;
    // Keeps a descriptor of its own. Throws std::runtime_error if it cannot have one or the file does not hold that much.
    FileTable(int descriptor, std::int64_t offset, std::vector<float> scales, int columns);

    // Copies the row [columns] to `to`. Throws std::runtime_error if the file is no longer what it was.
    void read(int row, std::int8_t* to);
    float scale(int row) const { return scales_[static_cast<std::size_t>(row)]; }

private:
    // Tokens are numbered by how common they are, so that the most common ones have places of their own; 3 MB at most
    // for BERT-Base.
    static constexpr int kKept = 4096;
    struct File {  // closed once
        int descriptor = -1;
        File() = default;
        explicit File(int opened) : descriptor(opened) {}
        File(File&& other) noexcept : descriptor(std::exchange(other.descriptor, -1)) {}
        File& operator=(File&& other) noexcept {
            std::swap(descriptor, other.descriptor);
            return *this;
        }
        ~File();
    } file_;
    struct Free {
        void operator()(std::int8_t* memory) const { std::free(memory); }
    };
    std::int64_t offset_ = 0;
    std::size_t columns_ = 0;
    std::vector<float> scales_;
    std::vector<int> kept_;                     // [kKept] which row is there, -1 for none
    std::unique_ptr<std::int8_t, Free> memory_;  // [kKept][columns], untouched until a row comes
};

// A table in parts of four columns: each part of a row is one of 256 code words; a scale per part.
struct ProductTable {
    static constexpr int kPart = 4, kCodeWords = 256;
    std::vector<std::uint8_t> codes;      // [rows][parts]
    std::vector<std::int8_t> code_words;  // [parts][kCodeWords][kPart]
    std::vector<float> scales;            // [parts]
};

struct Norm {
    std::vector<float> weight, bias;
};

struct Dense {
    std::vector<float> weight, bias;  // [out, in], [out]
};

// In the order of the artifact's names: query, key, value, attention_output, ffn_in, ffn_out.
enum Matrix { kQuery, kKey, kValue, kAttentionOutput, kFfnIn, kFfnOut, kMatrices };
inline constexpr const char* kMatrixNames[kMatrices] = {"query",  "key",    "value", "attention_output",
                                                        "ffn_in", "ffn_out"};

struct Layer {
    PackedMatrix matrices[kMatrices];
    Norm attention_norm, output_norm;
    bool loaded = false;
};

// Queries of a sequence that attention takes at once: `groups` groups of lanes from its query `first` on.
struct QueryBlock {
    Sequence sequence;
    int first, groups;
};

// The working memory of one thread, or of all of them when they work on the same tiles (then the first one's).
struct alignas(64) Worker {  // written by one thread while others write theirs
    Buffer<float> scores;                // of attention
    Buffer<float> wide;                  // behind the first matrix of the feed-forward pair; or query, key and value
    Buffer<float> ranges;                // lowest and highest values, for the quantizer
    Buffer<std::uint8_t> levels, quads;  // what a product reads
    Buffer<float> scales;                // of the levels, one a token
    Buffer<std::int32_t> zeros;          // which level is 0, one a token
    Buffer<float> x;                     // where all threads work on the same tiles: a copy of theirs, then its ranges
    std::uint64_t x_version = 0, levels_version = 0;  // which x and levels these are, by Workspace::version
};

// A chunk that all threads work on together, and the norm that each still has to apply before it is x (inputs.h).
struct Awaiting {
    float* x = nullptr;
    const Norm* norm = nullptr;  // none: x is there
    int tiles = 0;
    std::uint64_t version = 0;
};

// What one forward needs beside the model; kept from call to call, so that a warm model allocates nothing.
struct Workspace {
    Buffer<float> x, context, pooled, logits;
    Buffer<float> query, key, value;  // where attention works on floats
    Buffer<std::uint8_t> heads;       // [tile][head], see HeadTile: where it works on integers
    Buffer<float> sums;               // behind attention's last matrix, where all threads work on the same tiles
    std::vector<Awaiting> awaiting;   // [tiles], at the first tile of such a chunk
    std::uint64_t version = 0;        // of what threads copy, counted on
    Buffer<std::int8_t> words;        // [tokens][hidden], rows of the word table
    std::vector<Worker> workers;
    std::vector<Sequence> sequences;
    std::vector<QueryBlock> query_blocks;
};

struct Model {
    // `measure`: the costs of formats are measured here, not those of the kernels' table.
    Model(const Architecture& architecture, int threads, const Kernels& kernels, bool measure);

    // Rows and columns of a matrix of every layer.
    int rows(Matrix matrix) const;
    int columns(Matrix matrix) const;

    // Decodes, chooses a format for and packs the six matrices of a layer on the pool. Throws what decode() throws,
    // with the matrix's name.
    void load_matrices(int layer, std::span<const MatrixSource> sources);

    Architecture architecture;
    const Kernels& kernels;
    std::shared_ptr<Pool> pool;
    std::array<float, kFormats> costs;  // by which a matrix gets its format
    FileTable word;
    ProductTable product_word;  // instead of `word` where the artifact has it so
    Table position, type;
    Norm embedding_norm;
    std::vector<Layer> layers;
    Dense head_dense, head_output;
    Workspace workspace;     // guarded by the pool's lease
    bool any_levels = false, any_quads = false;  // some matrix reads its input as it is, or interleaved by quads
    bool embeddings_loaded = false;
    bool head_loaded = false;
};

}  // namespace sparselane
