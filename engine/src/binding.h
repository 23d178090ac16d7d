// What the two halves of the binding share: typed arrays, and checks that raise Python's own exceptions.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "layout.h"

namespace sparselane {

namespace nb = nanobind;

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<N>>;

template <class Array>
auto view(const Array& array) {
    return std::span(array.data(), array.size());
}

// A new numpy array of that shape, and its memory.
template <class T, int N>
std::pair<Out<T, N>, T*> make(const std::array<std::size_t, N>& shape) {
    std::size_t count = 1;
    for (const std::size_t side : shape) count *= side;
    T* data = new T[count]();
    nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<T*>(memory); });
    return {Out<T, N>(data, N, shape.data(), owner), data};
}

inline void check_size(const std::string& name, std::size_t size, std::size_t expected) {
    if (size != expected)
        throw nb::value_error(
            (name + " holds " + std::to_string(size) + " numbers, must hold " + std::to_string(expected)).c_str());
}

// Without the interpreter's lock while it lives. nanobind's own release would end the process of a daemon thread that comes
// back when the interpreter is gone: Python ends such a thread by unwinding it, out of a destructor.
class Unlocked {
public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked();
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

private:
    PyThreadState* state_;
};

// The single kernels, for their tests: binding_kernels.cpp.
void bind_kernels(nb::module_& m);

}  // namespace sparselane
