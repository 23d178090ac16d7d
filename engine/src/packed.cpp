#include "packed.h"

#include <bit>
#include <cstring>

#include "layout.h"

namespace sparselane {
namespace {

// Reads Rice codes, lowest bit first; every read is checked against the end of the stream.
class RiceReader {
public:
    RiceReader(std::span<const std::uint8_t> bytes, int parameter) : bytes_(bytes), parameter_(parameter) {}

    // The next gap, or `limit` or more if it is too large to be one. Throws PositionsTruncated.
    std::uint32_t next(std::uint32_t limit) {
        std::uint32_t quotient = 0;
        for (;;) {
            refill();
            if (bits_ == 0) throw PositionsTruncated("the stream ends inside a gap");
            if (window_ != 0) break;
            quotient += static_cast<std::uint32_t>(bits_);  // nothing but zero bits so far
            bits_ = 0;
            if (quotient > limit) return quotient;
        }
        const int zeros = std::countr_zero(window_);
        quotient += static_cast<std::uint32_t>(zeros);
        drop(zeros + 1);
        if (quotient > limit) return quotient;
        refill();
        if (bits_ < parameter_) throw PositionsTruncated("the stream ends inside a gap");
        const auto low = static_cast<std::uint32_t>(window_ & ((std::uint64_t{1} << parameter_) - 1));
        drop(parameter_);
        return (quotient << parameter_) | low;  // quotient <= 16384 and parameter <= 15: below 2^30
    }

    // Whether only the zero bits that fill the last byte are left.
    bool finished() const { return used_ == bytes_.size() && bits_ < 8 && window_ == 0; }

private:
    void refill() {
        if (bits_ > 32) return;
        if (used_ + 4 <= bytes_.size()) {
            std::uint32_t word = 0;
            for (int i = 0; i < 4; ++i) word |= std::uint32_t{bytes_[used_ + static_cast<std::size_t>(i)]} << (8 * i);
            window_ |= std::uint64_t{word} << bits_;
            bits_ += 32;
            used_ += 4;
            return;
        }
        for (; bits_ <= 56 && used_ < bytes_.size(); bits_ += 8) window_ |= std::uint64_t{bytes_[used_++]} << bits_;
    }
    void drop(int count) {
        window_ = count < 64 ? window_ >> count : 0;
        bits_ -= count;
    }

    std::span<const std::uint8_t> bytes_;
    int parameter_;
    std::size_t used_ = 0;      // bytes taken into the window
    std::uint64_t window_ = 0;  // unread bits, the next one lowest
    int bits_ = 0;              // how many bits of the window are real; all others are zero
};

void check_sizes(const MatrixSource& s) {
    const auto fail = [&](const std::string& what) { throw std::invalid_argument(s.name + ": " + what); };
    if (s.rows < 1) fail("rows is " + std::to_string(s.rows) + ", must be at least 1");
    if (s.columns < 1 || s.columns > kMaxColumns)
        fail("columns is " + std::to_string(s.columns) + ", must be 1 to " + std::to_string(kMaxColumns));
    if (s.rice < 0 || s.rice > 15) fail("rice is " + std::to_string(s.rice) + ", must be 0 to 15");
    const auto rows = static_cast<std::size_t>(s.rows);
    if (s.row_survivors.size() != rows || s.scales.size() != rows || s.biases.size() != rows)
        fail("row_survivors, scale and bias must hold " + std::to_string(rows) + " entries each");
    std::size_t survivors = 0;
    for (const auto count : s.row_survivors) survivors += count;
    if (survivors != s.values.size())
        fail("row_survivors sum to " + std::to_string(survivors) + ", but there are " +
             std::to_string(s.values.size()) + " values");
    if (survivors > std::uint32_t{0xFFFFFFFF}) fail("more than 2^32 survivors");
}

// Appends the survivors of one row; `values` holds exactly those.
void pack_row(const MatrixSource& s, int row, std::span<const std::int8_t> values, RiceReader& reader,
              PackedMatrix& to) {
    const auto columns = static_cast<std::uint32_t>(s.columns);
    std::uint32_t next_column = 0;
    std::int32_t sum = 0;
    for (const std::int8_t value : values) {
        const std::uint32_t column = next_column + reader.next(columns);
        if (column >= columns)
            throw IndexOutOfRange("row " + std::to_string(row) + " has a survivor at column " + std::to_string(column) +
                                  " or beyond, but there are " + std::to_string(columns) + " columns");
        if (value < -kWeightLimit || value > kWeightLimit)
            throw WeightOutOfRange("row " + std::to_string(row) + " has a weight of " + std::to_string(value) +
                                   ", must be -64 to 64");
        to.offsets.push_back(static_cast<std::uint16_t>(column * (kLanes / 8)));
        to.weights.push_back(value);
        sum += value;
        next_column = column + 1;
    }
    while (to.weights.size() % kSurvivorGroup != 0) {
        to.offsets.push_back(0);
        to.weights.push_back(0);
    }
    to.row_groups.push_back(static_cast<std::uint32_t>(to.weights.size() / kSurvivorGroup));
    to.row_sums.push_back(sum);
}

}  // namespace

PackedMatrix pack(const MatrixSource& source) {
    check_sizes(source);
    PackedMatrix packed;
    packed.rows = source.rows;
    packed.columns = source.columns;
    packed.scales.assign(source.scales.begin(), source.scales.end());
    packed.biases.assign(source.biases.begin(), source.biases.end());
    std::size_t slots = 0;
    for (const std::size_t count : source.row_survivors)
        slots += (count + kSurvivorGroup - 1) / kSurvivorGroup * kSurvivorGroup;
    packed.offsets.reserve(slots);
    packed.weights.reserve(slots);
    packed.row_sums.reserve(source.row_survivors.size());
    packed.row_groups.reserve(source.row_survivors.size() + 1);
    packed.row_groups.push_back(0);

    RiceReader reader(source.positions, source.rice);
    std::size_t first = 0;
    for (int row = 0; row < source.rows; ++row) {
        const std::size_t count = source.row_survivors[static_cast<std::size_t>(row)];
        pack_row(source, row, source.values.subspan(first, count), reader, packed);
        first += count;
    }
    if (!reader.finished()) throw PositionsTrailing("bits are left over after the last survivor");
    return packed;
}

}  // namespace sparselane
