#include "packed.h"

#include <algorithm>
#include <numeric>

#include "layout.h"

namespace sparselane {
namespace {

void check_sizes(const MatrixSource& s) {
    const auto fail = [&](const std::string& what) { throw std::invalid_argument(s.name + ": " + what); };
    if (s.rows < 1) fail("rows is " + std::to_string(s.rows) + ", must be at least 1");
    if (s.columns < 1 || s.columns > kMaxColumns)
        fail("columns is " + std::to_string(s.columns) + ", must be 1 to " + std::to_string(kMaxColumns));
    if (s.rice < 0 || s.rice > 15) fail("rice is " + std::to_string(s.rice) + ", must be 0 to 15");
    const auto rows = static_cast<std::size_t>(s.rows);
    if (s.row_survivors.size() != rows || s.scales.size() != rows || s.biases.size() != rows)
        fail("row_survivors, scale and bias must hold " + std::to_string(rows) + " entries each");
}

// Appends the survivors of one row.
void decode_row(const MatrixSource& s, int row, PositionReader& positions, ValueReader& values, Survivors& to) {
    const auto columns = static_cast<std::uint32_t>(s.columns);
    std::uint32_t next_column = 0;
    for (int left = s.row_survivors[static_cast<std::size_t>(row)]; left > 0; --left) {
        const std::uint32_t column = next_column + positions.next(columns);
        if (column >= columns)
            throw IndexOutOfRange("row " + std::to_string(row) + " has a survivor at column " + std::to_string(column) +
                                  " or beyond, but there are " + std::to_string(columns) + " columns");
        to.column.push_back(static_cast<std::uint16_t>(column));
        to.weight.push_back(values.next());
        next_column = column + 1;
    }
    to.row_starts.push_back(static_cast<std::uint32_t>(to.weight.size()));
}

// The survivors of one strip, as the kernels see them: columns that any row uses, ascending, each with its weights.
class Strip {
public:
    Strip(const Survivors& s, int height) : s_(s), height_(height), at_(static_cast<std::size_t>(height)) {}

    // Starts with the rows from `row` on; rows beyond the last are empty.
    void open(int row) {
        row_ = row;
        for (int r = 0; r < height_; ++r) at_[size(r)] = begin(r);
    }

    // The next column with a survivor, or -1.
    int column() const {
        int lowest = -1;
        for (int r = 0; r < height_; ++r)
            if (at_[size(r)] < end(r) && (lowest < 0 || s_.column[at_[size(r)]] < lowest))
                lowest = s_.column[at_[size(r)]];
        return lowest;
    }

    // The weight of row r in `column`, which must be the next one or before it; moves on behind it.
    std::int8_t take(int r, int column) {
        std::size_t& at = at_[size(r)];
        return at < end(r) && s_.column[at] == column ? s_.weight[at++] : std::int8_t{0};
    }

private:
    static std::size_t size(int value) { return static_cast<std::size_t>(value); }
    std::size_t begin(int r) const { return s_.row_starts[size(std::min(row_ + r, s_.rows))]; }
    std::size_t end(int r) const { return s_.row_starts[size(std::min(row_ + r + 1, s_.rows))]; }

    const Survivors& s_;
    int height_, row_ = 0;
    std::vector<std::size_t> at_;  // each row's next survivor
};

// Steps of a row in one of the formats of single rows.
std::size_t row_steps(const Survivors& s, int row, Format format) {
    const std::size_t begin = s.row_starts[static_cast<std::size_t>(row)],
                      end = s.row_starts[static_cast<std::size_t>(row) + 1];
    if (format == Format::survivors) return (end - begin + kQuad - 1) / kQuad;
    std::size_t blocks = 0;
    for (std::size_t i = begin; i < end; ++i) blocks += i == begin || s.column[i] / kQuad != s.column[i - 1] / kQuad;
    return blocks;
}

// For every block of rows: its rows by their number of steps.
std::vector<std::uint8_t> order_rows(const Survivors& s, Format format) {
    std::vector<std::uint8_t> order(static_cast<std::size_t>(s.rows));
    for (int first = 0; first < s.rows; first += kRowBlock) {
        const auto begin = order.begin() + first, end = begin + std::min(kRowBlock, s.rows - first);
        std::iota(begin, end, std::uint8_t{0});
        std::stable_sort(begin, end, [&](int a, int b) {
            return row_steps(s, first + a, format) < row_steps(s, first + b, format);
        });
    }
    return order;
}

// Four columns wherever they are: formats survivors (height 1) and blocks_4x1 (height 4).
void add_gathered(Strip& strip, int height, PackedMatrix& to) {
    for (int column = strip.column(); column >= 0;) {
        std::array<std::array<std::int8_t, kQuad>, kPanel> weights{};
        for (std::size_t i = 0; i < kQuad; ++i) {
            to.offsets.push_back(static_cast<std::uint16_t>(std::max(column, 0) * (kLanes / kOffsetUnit)));
            if (column < 0) continue;
            for (int r = 0; r < height; ++r) weights[static_cast<std::size_t>(r)][i] = strip.take(r, column);
            column = strip.column();
        }
        for (int r = 0; r < height; ++r) {
            const auto& row = weights[static_cast<std::size_t>(r)];
            to.weights.insert(to.weights.end(), row.begin(), row.end());
        }
    }
}

// Four neighbouring columns: format blocks_1x4 (height 1, only quads with a survivor) and dense (height 4, every quad).
void add_quads(Strip& strip, int height, bool every, PackedMatrix& to) {
    const int quads = ceil_divide(to.columns, kQuad);
    for (int quad = every ? 0 : strip.column() / kQuad; every ? quad < quads : strip.column() >= 0;
         quad = every ? quad + 1 : strip.column() / kQuad) {
        if (!every) to.offsets.push_back(static_cast<std::uint16_t>(quad * (kQuad * kLanes / kOffsetUnit)));
        for (int r = 0; r < height; ++r)
            for (int i = 0; i < kQuad; ++i) to.weights.push_back(strip.take(r, quad * kQuad + i));
    }
}

// The survivors of 32 rows, 64 columns at a time: format masked.
void add_masked(const Survivors& s, int block, PackedMatrix& to) {
    std::array<std::size_t, kRowBlock> at{};  // each row's next survivor
    for (int r = 0; r < kRowBlock; ++r)
        at[static_cast<std::size_t>(r)] = s.row_starts[static_cast<std::size_t>(std::min(block + r, s.rows))];
    for (int column = 0; column < s.columns; column += kMaskColumns)
        for (int r = 0; r < kRowBlock; ++r) {
            const std::size_t end = s.row_starts[static_cast<std::size_t>(std::min(block + r + 1, s.rows))];
            std::uint64_t mask = 0;
            for (std::size_t& i = at[static_cast<std::size_t>(r)]; i < end && s.column[i] < column + kMaskColumns; ++i) {
                mask |= std::uint64_t{1} << (s.column[i] - column);
                to.weights.push_back(s.weight[i]);
            }
            for (int part = 0; part < 64; part += 16) to.offsets.push_back(static_cast<std::uint16_t>(mask >> part));
        }
}

void arrange_masked(const Survivors& s, PackedMatrix& to) {
    const auto blocks = static_cast<std::size_t>(ceil_divide(s.rows, kRowBlock));
    to.offsets.reserve(blocks * static_cast<std::size_t>(ceil_divide(s.columns, kMaskColumns)) * kRowBlock * 4);
    to.weights.reserve(s.weight.size() + kMaskColumns);
    to.strip_steps.push_back(0);
    for (int block = 0; block < s.rows; block += kRowBlock) {
        add_masked(s, block, to);
        to.strip_steps.push_back(static_cast<std::uint32_t>(to.weights.size()));
    }
    to.weights.resize(to.weights.size() + kMaskColumns);
}

// The others.
void arrange_steps(const Survivors& s, PackedMatrix& packed) {
    const Format format = packed.format;
    const int height = format == Format::blocks_4x1 || format == Format::dense ? kPanel : 1;
    const std::size_t step_offsets = format == Format::dense ? 0 : format == Format::blocks_1x4 ? 1 : kQuad;
    const auto step_weights = static_cast<std::size_t>(height * kQuad);
    const std::size_t steps = count_steps(s)[static_cast<std::size_t>(format)];
    packed.offsets.reserve(steps * step_offsets);
    packed.weights.reserve(steps * step_weights);
    packed.strip_steps.reserve(static_cast<std::size_t>(ceil_divide(s.rows, height)) + 1);
    packed.strip_steps.push_back(0);
    if (height == 1) packed.strip_rows = order_rows(s, format);
    Strip strip(s, height);
    for (int row = 0; row < s.rows; row += height) {
        strip.open(height == 1 ? row / kRowBlock * kRowBlock + packed.strip_rows[static_cast<std::size_t>(row)] : row);
        if (wants_quads(format))
            add_quads(strip, height, format == Format::dense, packed);
        else
            add_gathered(strip, height, packed);
        packed.strip_steps.push_back(static_cast<std::uint32_t>(packed.weights.size() / step_weights));
    }
}

}  // namespace

Survivors decode(const MatrixSource& source) {
    check_sizes(source);
    Survivors decoded{source.rows, source.columns, {}, {}, {}};
    decoded.row_starts.reserve(source.row_survivors.size() + 1);
    decoded.row_starts.push_back(0);
    const std::size_t survivors =
        std::accumulate(source.row_survivors.begin(), source.row_survivors.end(), std::size_t{0});
    PositionReader positions(source.positions, source.rice);
    ValueReader values(source.value_lengths, source.values, survivors);
    decoded.column.reserve(survivors);
    decoded.weight.reserve(survivors);
    for (int row = 0; row < source.rows; ++row) decode_row(source, row, positions, values, decoded);
    positions.finish();
    values.finish();
    return decoded;
}

std::array<std::size_t, kFormats> count_steps(const Survivors& s) {
    std::size_t groups = 0, blocks = 0, shared = 0;
    std::vector<int> seen(static_cast<std::size_t>(s.columns), -1);  // the last panel that used the column
    std::size_t used = 0;                                            // columns of the present panel
    for (int row = 0; row < s.rows; ++row) {
        const std::size_t begin = s.row_starts[static_cast<std::size_t>(row)],
                          end = s.row_starts[static_cast<std::size_t>(row) + 1];
        groups += row_steps(s, row, Format::survivors);
        blocks += row_steps(s, row, Format::blocks_1x4);
        for (std::size_t i = begin; i < end; ++i) {
            int& panel = seen[s.column[i]];
            used += panel != row / kPanel;
            panel = row / kPanel;
        }
        if (row % kPanel == kPanel - 1 || row == s.rows - 1) {
            shared += (used + kQuad - 1) / kQuad;
            used = 0;
        }
    }
    const auto panels = static_cast<std::size_t>(ceil_divide(s.rows, kPanel));
    const auto strips = static_cast<std::size_t>(ceil_divide(s.rows, kRowBlock));
    return {groups, blocks, shared, panels * static_cast<std::size_t>(ceil_divide(s.columns, kQuad)),
            strips * static_cast<std::size_t>(ceil_divide(s.columns, kMaskColumns))};
}

Format cheapest(const Survivors& survivors, std::span<const float, kFormats> costs) {
    const auto steps = count_steps(survivors);
    std::size_t best = 0;
    for (std::size_t format = 1; format < kFormats; ++format)
        if (static_cast<double>(steps[format]) * costs[format] < static_cast<double>(steps[best]) * costs[best])
            best = format;
    return static_cast<Format>(best);
}

PackedMatrix arrange(const Survivors& s, Format format) {
    PackedMatrix packed;
    packed.rows = s.rows;
    packed.columns = s.columns;
    packed.format = format;
    if (format == Format::masked)
        arrange_masked(s, packed);
    else
        arrange_steps(s, packed);
    packed.row_sums.reserve(static_cast<std::size_t>(s.rows));
    for (std::size_t row = 0; row < static_cast<std::size_t>(s.rows); ++row)
        packed.row_sums.push_back(
            std::accumulate(s.weight.begin() + s.row_starts[row], s.weight.begin() + s.row_starts[row + 1], 0));
    return packed;
}

}  // namespace sparselane
