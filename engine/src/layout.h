// The token-lane layout: how activations lie in memory, and the buffers that hold them.
//
// A tile is 32 tokens wide and feature-major: x[tile][feature][32]. Sequences lie side by side along the lanes; each
// starts at a multiple of 8 lanes (one AVX2 register of floats), so a group of 8 lanes never holds two sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace sparselane {

inline constexpr int kLanes = 32;  // tokens in a tile: 32 bytes of uint8 fill one AVX2 register
inline constexpr int kGroup = 8;   // lanes handled together: 8 floats fill one AVX2 register
inline constexpr int kGroups = kLanes / kGroup;

struct Sequence {
    int first_token;  // in the caller's ragged arrays
    int first_lane;   // in the tiles, a multiple of kGroup
    int length;
};

inline std::size_t size(int value) { return static_cast<std::size_t>(value); }

inline int ceil_divide(int value, int by) { return (value + by - 1) / by; }

// Elements of a tile of `features` features.
inline std::size_t tile_floats(int features) { return size(features) * kLanes; }

// Where lane `lane`, feature 0 of a tiled array with `features` features begins, in elements.
inline std::size_t lane_offset(int lane, int features) {
    return tile_floats(features) * size(lane / kLanes) + size(lane % kLanes);
}

// The features of a lane, one after another.
inline void copy_lane(const float* tiles, int lane, int features, float* to) {
    const float* from = tiles + lane_offset(lane, features);
    for (int f = 0; f < features; ++f) to[f] = from[f * kLanes];
}

// The same, into a lane of other tiles.
inline void copy_lane(const float* tiles, int lane, int features, float* to_tiles, int to_lane) {
    const float* from = tiles + lane_offset(lane, features);
    float* to = to_tiles + lane_offset(to_lane, features);
    for (int f = 0; f < features; ++f) to[f * kLanes] = from[f * kLanes];
}

// Memory aligned to a cache line that only grows; its contents do not survive growing.
template <class T>
class Buffer {
public:
    void reserve(std::size_t count) {
        if (count <= capacity_) return;
        data_.reset();  // first give back, then take: the two never live together
        capacity_ = 0;
        const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        void* memory = std::aligned_alloc(64, bytes);
        if (memory == nullptr) throw std::bad_alloc();
        std::memset(memory, 0, bytes);
        data_.reset(static_cast<T*>(memory));
        capacity_ = count;
    }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }

private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> data_;
    std::size_t capacity_ = 0;
};

}  // namespace sparselane
