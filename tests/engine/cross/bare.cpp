// What a program needs to run on 64-bit Arm Linux, or in an emulator that knows two of its system calls, with no
// library at all: a start, a heap, and the few functions that compilers and the kernels call. With it a cross
// compiler's headers are enough to build compare.cpp, and any emulator of the instructions to run it.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Linux's numbers of its system calls on this CPU: 64 is write, 94 exit_group.
__asm__(".globl _start\n_start: bl main\nmov x8, #94\nsvc #0\n");

extern "C" {
static long call(long number, long a, long b, long c) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}

ssize_t write(int file, const void* bytes, std::size_t count) {
    return call(64, file, reinterpret_cast<long>(bytes), static_cast<long>(count));
}

void abort() {
    static const char kMessage[] = "aborted\n";
    write(1, kMessage, sizeof kMessage - 1);
    for (;;) call(94, 134, 0, 0);
}

// The compiler must not make calls to these functions out of their own loops.
#define PLAIN __attribute__((no_builtin, used))

PLAIN void* memcpy(void* to, const void* from, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) static_cast<char*>(to)[i] = static_cast<const char*>(from)[i];
    return to;
}

PLAIN void* memmove(void* to, const void* from, std::size_t count) {
    if (reinterpret_cast<std::uintptr_t>(to) <= reinterpret_cast<std::uintptr_t>(from)) return memcpy(to, from, count);
    while (count-- > 0) static_cast<char*>(to)[count] = static_cast<const char*>(from)[count];
    return to;
}

PLAIN void* memset(void* to, int value, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) static_cast<char*>(to)[i] = static_cast<char>(value);
    return to;
}

PLAIN int memcmp(const void* a, const void* b, std::size_t count) {
    const auto *x = static_cast<const unsigned char*>(a), *y = static_cast<const unsigned char*>(b);
    for (std::size_t i = 0; i < count; ++i)
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    return 0;
}

PLAIN int bcmp(const void* a, const void* b, std::size_t count) { return memcmp(a, b, count); }

PLAIN std::size_t strlen(const char* text) {
    std::size_t length = 0;
    while (text[length] != 0) ++length;
    return length;
}

// Exact: a product with a power of two, as long as both are ordinary numbers; the kernels' reference asks for no other.
float ldexpf(float x, int exponent) {
    if (exponent < -126 || exponent > 127) abort();
    return x * __builtin_bit_cast(float, static_cast<std::uint32_t>(exponent + 127) << 23);
}

float nextafterf(float x, float towards) {  // upwards from a positive number
    if (!(x > 0 && towards > x)) abort();
    return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, x) + 1);
}

// A heap of blocks whose sizes are powers of two; what is given back waits for the next of its size.
struct Block {
    std::size_t kind;
    Block* next;
};
alignas(64) static unsigned char heap[64u << 20];
static std::size_t taken = 0;
static Block* waiting[32];

void* malloc(std::size_t size) {
    constexpr std::size_t kHeader = 64;  // keeps the alignment
    std::size_t kind = 7;
    while ((std::size_t{1} << kind) < size + kHeader) ++kind;
    Block* block = kind < 32 ? waiting[kind] : nullptr;
    if (block != nullptr) {
        waiting[kind] = block->next;
    } else {
        if (kind >= 32 || taken + (std::size_t{1} << kind) > sizeof heap) abort();
        block = reinterpret_cast<Block*>(heap + taken);
        taken += std::size_t{1} << kind;
    }
    block->kind = kind;
    return reinterpret_cast<unsigned char*>(block) + kHeader;
}

void* aligned_alloc(std::size_t alignment, std::size_t size) {
    if (alignment > 64) abort();
    return malloc(size);
}

void free(void* memory) {
    if (memory == nullptr) return;
    auto* block = reinterpret_cast<Block*>(static_cast<unsigned char*>(memory) - 64);
    block->next = waiting[block->kind];
    waiting[block->kind] = block;
}
}

void* operator new(std::size_t size) { return malloc(size); }
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, std::size_t) noexcept { free(memory); }
