// One encoder matrix: from the file's coded positions and values to the order in which the kernels read it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "codes.h"

namespace sparselane {

// One of the ways in which the numbers of a matrix can be wrong (docs/artifact.md, section 5); the others: codes.h.
struct IndexOutOfRange : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Unit of PackedMatrix::offsets in a tile that lies by itself; where two lie side by side it is twice that, the largest
// factor that the CPU multiplies an index by. So an offset is used as it is, and uint16 reach 8192 columns.
inline constexpr int kOffsetUnit = 4;
inline constexpr int kMaxColumns = 8192;
inline constexpr int kQuad = 4;          // int8 weights that one 32-bit broadcast holds
inline constexpr int kPanel = 4;         // rows that share their columns in blocks_4x1 and dense

// Rows that one task works on: their int32 sums (4 KiB a tile) stay in L1 between product and epilogue, and one tile of
// BERT-Base still makes 24 tasks.
inline constexpr int kRowBlock = 32;

// How the weights of a matrix are grouped. Any matrix can be stored in any format, zeros filling the gaps; which one is
// fastest depends on how many groups it needs (cheapest()).
enum class Format {
    survivors,   // a row's survivors, four at a time, wherever their columns are
    blocks_1x4,  // a row's runs of four columns that hold a survivor; the input is interleaved by quads
    blocks_4x1,  // columns that any of four rows uses, four at a time, with the weights of all four rows
    dense,       // every run of four columns with the weights of four rows; the input is interleaved by quads
    masked,      // 64 columns of 32 rows as bits, and the survivors alone, from which a kernel makes dense tiles on its
                 // way to a matrix unit; the input is interleaved by quads
};
inline constexpr int kFormats = 5;
inline constexpr const char* kFormatNames[kFormats] = {"survivors", "blocks_1x4", "blocks_4x1", "dense", "masked"};
inline bool wants_quads(Format format) {
    return format == Format::blocks_1x4 || format == Format::dense || format == Format::masked;
}

// Columns of a step of `masked`: what a register of 64 bytes holds.
inline constexpr int kMaskColumns = 64;

// The decoded survivors of a matrix, row by row, their columns ascending.
struct Survivors {
    int rows = 0;
    int columns = 0;
    std::vector<std::uint32_t> row_starts;  // [rows + 1]
    std::vector<std::uint16_t> column;      // [survivors]
    std::vector<std::int8_t> weight;        // [survivors]
};

// A matrix in the order in which a kernel reads it. A "strip" is a row in the formats survivors and blocks_1x4, a block of
// kRowBlock rows in masked, a panel of four rows in the others. A "step" is what the kernel's inner loop does at once:
//
//     format      one step                           offsets   weights
//     survivors   four survivors of a row            4         [4 columns]
//     blocks_1x4  four neighbouring columns          1         [4 columns]
//     blocks_4x1  four columns x four rows           4         [4 rows][4 columns]
//     dense       four neighbouring columns x 4 rows 0         [4 rows][4 columns]
//     masked      64 neighbouring columns x 32 rows  128       as many as there are survivors
//
// In masked, the offsets of a step are 32 masks of 64 bits, the lowest bit the first column, and its survivors follow row
// by row; kMaskColumns zeros stand behind the last, because a kernel reads a register full of them.
// Steps are filled up with weight 0 on column 0, the last panel with rows of zeros. Within every kRowBlock rows, strips
// of one row stand in the order of their number of steps: the end of a loop that is as long as the last is predicted.
struct PackedMatrix {
    int rows = 0;
    int columns = 0;
    Format format = Format::survivors;
    std::vector<std::uint32_t> strip_steps;  // [strips + 1] the first step of each strip; in masked its first survivor
    std::vector<std::uint8_t> strip_rows;    // [rows] for strips of one row: which row of its block a strip is
    std::vector<std::uint16_t> offsets;      // where the step's columns begin in the input, see kOffsetUnit
    std::vector<std::int8_t> weights;
    std::vector<std::int32_t> row_sums;  // [rows] sum of the row's weights, for the zero point
    std::vector<float> scales;           // [rows]
    std::vector<float> biases;           // [rows]
};

// One matrix as it lies in the artifact (docs/artifact.md, sections 2 and 3).
struct MatrixSource {
    std::string name;  // for error messages
    int rows = 0;
    int columns = 0;
    int rice = 0;
    std::span<const std::uint8_t> positions;
    std::span<const std::uint16_t> row_survivors;
    std::span<const std::uint8_t> value_lengths;
    std::span<const std::uint8_t> values;
    std::span<const float> scales;
    std::span<const float> biases;
};

// Decodes and checks. Throws IndexOutOfRange, an error of codes.h, or std::invalid_argument if the sizes disagree.
Survivors decode(const MatrixSource& source);

// How many steps each format needs, in the order of Format.
std::array<std::size_t, kFormats> count_steps(const Survivors& survivors);

// The format with the least steps x costs; `costs` is what a step takes, in any unit.
Format cheapest(const Survivors& survivors, std::span<const float, kFormats> costs);

// Puts the survivors in the kernels' order; scales and biases stay empty.
PackedMatrix arrange(const Survivors& survivors, Format format);

}  // namespace sparselane
