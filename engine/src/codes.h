// How numbers lie in the file (docs/artifact.md, section 3): Rice codes of positions, a canonical Huffman code of values.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparselane {

struct PositionsTruncated : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct PositionsTrailing : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ValueCodeWrong : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ValuesTruncated : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ValuesTrailing : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline constexpr int kWeightLimit = 64;                   // 255 * 64 * 2 fits in int16: `maddubs` never saturates
inline constexpr std::size_t kValues = 2 * kWeightLimit;  // -64 to -1 and 1 to 64: a survivor is not 0
inline constexpr int kLongestCode = 12;                   // the table of all codes, 8 KiB, stays in L1

// Reads bits, the lowest of a byte first. The window shows zeros behind the end; count() says how many bits are real.
class BitReader {
public:
    explicit BitReader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

    // After this the window holds at least 32 bits, or all that are left.
    void refill() {
        if (count_ > 32) return;
        if (used_ + 4 <= bytes_.size()) {
            std::uint32_t word = 0;
            for (int i = 0; i < 4; ++i) word |= std::uint32_t{bytes_[used_ + static_cast<std::size_t>(i)]} << (8 * i);
            window_ |= std::uint64_t{word} << count_;
            count_ += 32;
            used_ += 4;
            return;
        }
        for (; count_ <= 56 && used_ < bytes_.size(); count_ += 8)
            window_ |= std::uint64_t{bytes_[used_++]} << count_;
    }
    std::uint64_t window() const { return window_; }
    int count() const { return count_; }
    void drop(int count) {
        window_ = count < 64 ? window_ >> count : 0;
        count_ -= count;
    }

    // Whether only the zero bits that fill the last byte are left.
    bool finished() const { return used_ == bytes_.size() && count_ < 8 && window_ == 0; }

private:
    std::span<const std::uint8_t> bytes_;
    std::size_t used_ = 0;      // bytes taken into the window
    std::uint64_t window_ = 0;  // unread bits, the next one lowest
    int count_ = 0;             // how many bits of the window are real; all others are zero
};

// Reads gaps between survivors.
class PositionReader {
public:
    PositionReader(std::span<const std::uint8_t> bytes, int parameter) : bits_(bytes), parameter_(parameter) {}

    // The next gap, or `limit` or more if it is too large to be one. Throws PositionsTruncated.
    std::uint32_t next(std::uint32_t limit) {
        std::uint32_t quotient = 0;
        for (;;) {
            bits_.refill();
            if (bits_.count() == 0) throw PositionsTruncated("the stream ends inside a gap");
            if (bits_.window() != 0) break;
            quotient += static_cast<std::uint32_t>(bits_.count());  // nothing but zero bits so far
            bits_.drop(bits_.count());
            if (quotient > limit) return quotient;
        }
        const int zeros = std::countr_zero(bits_.window());
        quotient += static_cast<std::uint32_t>(zeros);
        bits_.drop(zeros + 1);
        if (quotient > limit) return quotient;
        bits_.refill();
        if (bits_.count() < parameter_) throw PositionsTruncated("the stream ends inside a gap");
        const auto low = static_cast<std::uint32_t>(bits_.window() & ((std::uint64_t{1} << parameter_) - 1));
        bits_.drop(parameter_);
        return (quotient << parameter_) | low;  // quotient <= 8192 and parameter <= 15: below 2^30
    }

    // Throws PositionsTrailing if bits are left.
    void finish() const {
        if (!bits_.finished()) throw PositionsTrailing("bits are left over after the last survivor");
    }

private:
    BitReader bits_;
    int parameter_;
};

// Reads the values of survivors by a table of all codes: as many bits as the longest code has lead to the value.
class ValueReader {
public:
    // `lengths`: [kValues] bits of each value's code, 0 for a value that does not occur. Throws ValueCodeWrong unless
    // every sequence of bits is a sequence of codes; a single value has a code of one bit, and no value none.
    ValueReader(std::span<const std::uint8_t> lengths, std::span<const std::uint8_t> bytes, std::size_t count)
        : bits_(bytes) {
        if (lengths.size() != kValues)
            throw std::invalid_argument("value_lengths must hold " + std::to_string(kValues) + " entries");
        // No code has less than a bit. Said here, before anyone makes room for so many.
        if (count > 8 * bytes.size()) throw ValuesTruncated(std::to_string(count) + " values do not fit in the stream");
        std::array<std::uint32_t, kLongestCode + 1> of_length{};
        for (const std::uint8_t length : lengths) {
            if (length > kLongestCode)
                throw ValueCodeWrong("a code has " + std::to_string(length) + " bits, must be 0 to " +
                                     std::to_string(kLongestCode));
            ++of_length[length];
        }
        std::uint32_t used = 0;  // of the table
        for (int length = 1; length <= kLongestCode; ++length)
            used += of_length[static_cast<std::size_t>(length)] << (kLongestCode - length);
        const bool single = of_length[0] == kValues - 1 && of_length[1] == 1;
        if (used != table_.size() && !single && !(used == 0 && count == 0))
            throw ValueCodeWrong("the lengths of its codes fill " + std::to_string(used) + " of " +
                                 std::to_string(table_.size()) + " places");
        fill(lengths, of_length);
    }

    // Throws ValuesTruncated, or ValueCodeWrong for a bit that a single value's code does not have.
    std::int8_t next() {
        bits_.refill();
        const Entry entry = table_[bits_.window() & (table_.size() - 1)];
        if (entry.length > bits_.count()) throw ValuesTruncated("the stream ends inside a value");
        if (entry.length == 0) throw ValueCodeWrong("the stream holds a code that stands for no value");
        bits_.drop(entry.length);
        return entry.value;
    }

    // Throws ValuesTrailing if bits are left.
    void finish() const {
        if (!bits_.finished()) throw ValuesTrailing("bits are left over after the last value");
    }

private:
    struct Entry {
        std::int8_t value = 0;
        std::uint8_t length = 0;
    };

    // Canonical codes: shorter ones first, then lower values; the first bit in the stream is the code's highest.
    void fill(std::span<const std::uint8_t> lengths, const std::array<std::uint32_t, kLongestCode + 1>& of_length) {
        std::array<std::uint32_t, kLongestCode + 1> next_code{};
        for (std::size_t length = 2; length <= kLongestCode; ++length)
            next_code[length] = (next_code[length - 1] + of_length[length - 1]) << 1;
        for (std::size_t i = 0; i < kValues; ++i) {
            const std::uint8_t length = lengths[i];
            if (length == 0) continue;
            const int value = static_cast<int>(i) - kWeightLimit;
            const Entry entry{static_cast<std::int8_t>(value < 0 ? value : value + 1), length};
            const std::uint32_t code = next_code[length]++;
            std::uint32_t first = 0;  // the code with its highest bit lowest
            for (int bit = 0; bit < length; ++bit) first |= (code >> bit & 1) << (length - 1 - bit);
            for (std::size_t at = first; at < table_.size(); at += std::size_t{1} << length) table_[at] = entry;
        }
    }

    BitReader bits_;
    std::array<Entry, std::size_t{1} << kLongestCode> table_{};
};

}  // namespace sparselane
