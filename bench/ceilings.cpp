// What this machine can do at most, measured: int8 and fp32 arithmetic, read bandwidth by size of the data. One thread.
// Prints JSON. Compiled with -march=native by bench/ceilings.py; not part of the engine.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
const char* separator = "";

void print(const char* name, double value) {
    std::printf("%s\"%s\": %.4g", separator, name, value);
    separator = ", ";
}

// The best of many short runs: on a shared machine a run of 0.1 ms often has a core to itself, one of 0.1 s never has.
// The kernels' times that are compared with this are the best of many short runs too.
template <class Work>
double best_rate(double per_run, Work work) {
    double best = 0;
    const auto end = Clock::now() + std::chrono::milliseconds(700);
    for (int i = 0; i < 20 || Clock::now() < end; ++i) {
        const auto began = Clock::now();
        work();
        best = std::max(best, per_run / std::chrono::duration<double>(Clock::now() - began).count());
    }
    return best;
}

// Twelve independent sums hide the latency; an empty asm keeps the compiler from folding them.
constexpr int kSums = 12;
#if defined(__aarch64__)
#define KEEP(x) asm volatile("" : "+w"(x))
#else
#define KEEP(x) asm volatile("" : "+v"(x))
#endif

// rounds x kSums times: sum = operation(sum).
template <class Sum, class Operation>
void repeat(std::int64_t rounds, Operation operation) {
    Sum sums[kSums] = {};
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            sum = operation(sum);
            KEEP(sum);
        }
}

#if defined(__AVX2__)
void maddubs(std::int64_t rounds) {
    const __m256i s = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    repeat<__m256i>(rounds, [=](__m256i sum) {
        __m256i u = s;
        KEEP(u);  // else the product would be computed once
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), ones));
    });
}
#endif
#if defined(__AVX2__) && defined(__FMA__)
void fma256(std::int64_t rounds) {
    const __m256 a = _mm256_set1_ps(0.5f);
    repeat<__m256>(rounds, [=](__m256 sum) { return _mm256_fmadd_ps(a, a, sum); });
}
#endif
#if defined(__AVXVNNI__)
void vnni256(std::int64_t rounds) {
    const __m256i a = _mm256_set1_epi8(1);
    repeat<__m256i>(rounds, [=](__m256i sum) { return _mm256_dpbusd_avx_epi32(sum, a, a); });
}
#endif
#if defined(__AVX512VNNI__)
void vnni512(std::int64_t rounds) {
    const __m512i a = _mm512_set1_epi8(1);
    repeat<__m512i>(rounds, [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, a, a); });
}
void fma512(std::int64_t rounds) {
    const __m512 a = _mm512_set1_ps(0.5f);
    repeat<__m512>(rounds, [=](__m512 sum) { return _mm512_fmadd_ps(a, a, sum); });
}
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#define HAS_TILES
// Asks the system for the tile registers, as the engine does, and makes all of them 16 rows of 64 bytes.
bool take_tiles() {
    if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return false;
    struct alignas(64) {
        std::uint8_t palette = 1, rest[15] = {};
        std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
    return true;
}
void tiles(std::int64_t rounds) {
    for (std::int64_t r = 0; r < rounds; ++r) {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
}
#endif
#if defined(__ARM_FEATURE_DOTPROD)
void sdot(std::int64_t rounds) {
    const int8x16_t a = vdupq_n_s8(1);
    repeat<int32x4_t>(rounds, [=](int32x4_t sum) { return vdotq_s32(sum, a, a); });
}
#endif

// The inner step of an unstructured product with everything in registers: four columns interleaved by eight unpacks,
// then multiplied. Loads, addresses and loops come on top of it in the real one. Two sets of sums hide the latency;
// they are single variables, because GCC stores an array's at every step.
#define STEP(bits, dot, s0, s1, s2, s3)                                                                 \
    do {                                                                                                \
        asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d));                                          \
        const auto ab_low = _mm##bits##_unpacklo_epi8(a, b), ab_high = _mm##bits##_unpackhi_epi8(a, b); \
        const auto cd_low = _mm##bits##_unpacklo_epi8(c, d), cd_high = _mm##bits##_unpackhi_epi8(c, d); \
        dot(s0, _mm##bits##_unpacklo_epi16(ab_low, cd_low));                                            \
        dot(s1, _mm##bits##_unpackhi_epi16(ab_low, cd_low));                                            \
        dot(s2, _mm##bits##_unpacklo_epi16(ab_high, cd_high));                                          \
        dot(s3, _mm##bits##_unpackhi_epi16(ab_high, cd_high));                                          \
    } while (false)
#define STEPS(name, type, bits, dot)                                               \
    void name(std::int64_t rounds) {                                               \
        type a = _mm##bits##_set1_epi8(3), b = a, c = a, d = a;                    \
        type s0{}, s1{}, s2{}, s3{}, t0{}, t1{}, t2{}, t3{};                       \
        const type w = _mm##bits##_set1_epi8(1), ones = _mm##bits##_set1_epi16(1); \
        for (std::int64_t r = 0; r < rounds; ++r) {                                \
            STEP(bits, dot, s0, s1, s2, s3);                                       \
            STEP(bits, dot, t0, t1, t2, t3);                                       \
        }                                                                          \
        asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3));                 \
        asm volatile("" : "+v"(t0), "+v"(t1), "+v"(t2), "+v"(t3));                 \
        (void)ones;                                                                \
    }
#if defined(__AVX2__)
#define MADDUBS(s, x) s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones))
STEPS(step_maddubs, __m256i, 256, MADDUBS)
#endif
// As in the kernel: around the intrinsics GCC 12 copies registers.
#if defined(__AVXVNNI__)
#define DPBUSD_VEX(s, x) asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(s) : "x"(x), "x"(w))
STEPS(step_vnni256, __m256i, 256, DPBUSD_VEX)
#endif
#if defined(__AVX512VNNI__)
#define DPBUSD(s, x) asm volatile("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(x), "v"(w))
STEPS(step_vnni512, __m512i, 512, DPBUSD)
#endif
// Reads with wide, independent loads; 128 bytes a step.
std::uint64_t read_all(const std::uint64_t* data, std::size_t count) {
    std::uint64_t sums[16] = {};
    for (std::size_t i = 0; i + 16 <= count; i += 16)
        for (std::size_t k = 0; k < 16; ++k) sums[k] ^= data[i + k];
    std::uint64_t all = 0;
    for (const auto sum : sums) all ^= sum;
    return all;
}

volatile std::uint64_t sink;

// Goes round through `bytes`, a megabyte in each timed run: long enough for the clock, short enough to be undisturbed.
double bandwidth(std::size_t bytes) {
    constexpr std::size_t kRun = std::size_t{1} << 20;
    const std::vector<std::uint64_t> data(bytes / 8, 1);
    const std::size_t part = std::min(bytes, kRun), rounds = kRun / part;
    std::size_t at = 0;
    return best_rate(static_cast<double>(part * rounds), [&] {
        for (std::size_t r = 0; r < rounds; ++r) sink = read_all(data.data() + at / 8, part / 8);
        at = (at + part) % bytes;
    });
}

[[maybe_unused]] double arithmetic(double per_round, void (*work)(std::int64_t)) {
    constexpr std::int64_t kRounds = 10'000;  // about 50 microseconds
    return best_rate(per_round * kRounds, [&] { work(kRounds); });
}

}  // namespace

int main() {
    std::printf("{");
#if defined(__AVX2__)
    print("int8 maddubs+madd+add, 256 bit", arithmetic(32.0 * kSums, maddubs));
    print("survivors step, maddubs+madd+add, 256 bit", arithmetic(2 * 128.0, step_maddubs));
#endif
#if defined(__AVXVNNI__)
    print("int8 dpbusd, 256 bit", arithmetic(32.0 * kSums, vnni256));
    print("survivors step, dpbusd, 256 bit", arithmetic(2 * 128.0, step_vnni256));
#endif
#if defined(__AVX512VNNI__)
    print("int8 dpbusd, 512 bit", arithmetic(64.0 * kSums, vnni512));
    print("survivors step, dpbusd, 512 bit", arithmetic(2 * 256.0, step_vnni512));
    print("fp32 fma, 512 bit", arithmetic(16.0 * kSums, fma512));
#endif
#if defined(HAS_TILES)
    if (take_tiles()) print("int8 tdpbsud, tiles", arithmetic(4 * 16.0 * 64 * 16, tiles));
#endif
#if defined(__AVX2__) && defined(__FMA__)
    print("fp32 fma, 256 bit", arithmetic(8.0 * kSums, fma256));
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    print("int8 sdot, 128 bit", arithmetic(16.0 * kSums, sdot));
#endif
    print("read 24 KiB", bandwidth(24u << 10));
    print("read 512 KiB", bandwidth(512u << 10));
    print("read 8 MiB", bandwidth(8u << 20));
    print("read 256 MiB", bandwidth(256u << 20));
    std::printf("}\n");
}
